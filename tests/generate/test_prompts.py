"""Prompt sources: what is read, in which order, and what a broken file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.errors import DataError
from distill.generate.prompts import PromptSource, open_prompts
from distill.recipe.generate import FilePrompts, TaskPrompts
from distill.tasks.registry import verify


def opened(path: Path, **settings: Any) -> PromptSource:
    return open_prompts(FilePrompts(source="file", path=str(path), **settings), settings.pop("system", None))


def test_jsonl_and_parquet_read_alike(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    turns = [*chat, {"role": "user", "content": "why?"}]
    rows = [{"q": turns, "id": "first", "family": "talk"}, {"q": [turns[2]], "id": "second", "family": None}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    for name in ("p.jsonl", "p.parquet"):
        source = opened(tmp_path / name, column="q")
        prompts = list(source.prompts)
        assert source.total == 2
        assert [list(prompt.messages) for prompt in prompts] == [turns, [turns[2]]]
        assert [prompt.seed_row for prompt in prompts] == ["first", "second"]
        assert prompts[0].family == "talk" and prompts[0].question == "why?"
        assert opened(tmp_path / name, column="q", count=1).total == 1
        assert len(list(opened(tmp_path / name, column="q", count=1).prompts)) == 1


def test_a_row_is_known_by_its_text_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    before = [prompt.seed_row for prompt in opened(path).prompts]
    path.write_text('{"prompt": "new"}\n{"prompt": "a"}\n{"prompt": "b"}\n')
    assert [prompt.seed_row for prompt in opened(path).prompts][1:] == before


def test_system_goes_first_unless_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}]
    path.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": own}) + "\n")
    source = open_prompts(FilePrompts(source="file", path=str(path)), "Be brief.")
    assert [prompt.messages[0]["content"] for prompt in source.prompts] == ["Be brief.", "own"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"}\n{"prompt": \n', "p.jsonl:2: not JSON"),
        (b'["a"]\n', "a row is an object"),
        (b'{"text": "a"}\n', "no column 'prompt'; there are text"),
        (b'{"prompt": 3}\n', "a prompt is a text, or messages"),
        (b'{"prompt": []}\n', "a prompt is a text, or messages"),
        (b'{"prompt": [{"role": "assistant", "content": "x"}]}\n', "end with the user's"),
        (b'{"prompt": [{"role": "robot", "content": "x"}]}\n', "a prompt is a text, or messages"),
        (b'{"prompt": "a", "tests": "assert f()"}\n', "tests is a list"),
        (b'{"prompt": "\xff"}\n', "not UTF-8"),
    ],
)
def test_a_broken_file_says_where(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(opened(path).prompts)


def test_answers_that_are_there_already(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "a", "code": "x = 1"}, {"prompt": "b", "code": " "}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = opened(path, answer="code").prompts
    assert first.given is not None and (first.given.text, first.given.cost_usd) == ("x = 1", 0.0)
    assert first.given.teacher == "file:p.jsonl" and second.given is None
    assert next(iter(opened(path).prompts)).given is None
    with pytest.raises(DataError, match="no column 'answer'; there are prompt, code"):
        list(opened(path, answer="answer").prompts)
    path.write_text('{"prompt": "a", "code": 3}\n')
    with pytest.raises(DataError, match="an answer is a text, not int"):
        list(opened(path, answer="code").prompts)


def test_missing_and_corrupt_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompts at"):
        opened(tmp_path / "none.jsonl")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a readable Parquet"):
        opened(tmp_path / "bad.parquet")


def test_tasks_carry_their_verifier() -> None:
    section = TaskPrompts(source="tasks", kinds=("instruction", "code"), count=40, seed=5)
    source = open_prompts(section, None)
    prompts = list(source.prompts)
    assert source.total == len(prompts) == 40
    assert prompts == list(open_prompts(section, None).prompts)
    assert {prompt.is_code for prompt in prompts} == {True, False}
    for prompt in prompts:
        assert prompt.task is not None and prompt.task.split == "train" and prompt.family == prompt.task.family
        assert prompt.is_code or verify(prompt.task, prompt.task.answer).ok
