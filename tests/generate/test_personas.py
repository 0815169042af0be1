"""Prompts by personas: the published rules by hand, and whole jobs on a scripted teacher."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distill.errors import DataError
from distill.generate.outcome import Rejected
from distill.generate.personas import READERS, RELATIONS, People, Personas, read_seeds
from distill.generate.prompts import Prompt, text_prompt
from distill.recipe.prompts import PersonaPrompts, Sampling
from tests.generate.conftest import Project
from tests.generate.test_methods import question, reasons
from tests.generate.test_writers import answer, asked
from tests.teacher.mock import Body, MockTeacher, Reply, completion

ROOT = Path(__file__).parents[2]
DIVER = "a diver who counts seagrass and hates spreadsheets"
COOK = "a cook who sells dumplings from a cart in the rain"


def section(**fields: Any) -> PersonaPrompts:
    return PersonaPrompts.model_validate({"source": "personas", "count": 4, **fields})


def people(known: list[str], **fields: Any) -> People:
    return People(section(written=4, **fields), known, sampling=Sampling(), method="m")


def test_a_persona_is_shown_by_itself_and_its_prompt_comes_bare() -> None:
    writer = Personas(section(language="Korean"), [DIVER, COOK], system=None, sampling=Sampling(), method="m")
    requests = [writer.request(index, []) for index in range(4)]
    assert [DIVER in str(request.question()) for request in requests] == [True, False, True, False]
    assert [request.sample for request in requests] == [0, 0, 1, 1]  # asked again, it is another draw
    assert "Write in Korean." in str(requests[0].question()) and "prompt only" in str(requests[0].question())
    (found,) = writer.read(answer('User prompt: Make a table of "Zostera" counts.'), 2)
    assert isinstance(found, Prompt)
    assert (found.question, found.persona) == ('Make a table of "Zostera" counts.', DIVER)
    assert found.family == f"persona:{DIVER}"
    for text, finish in (("half of", "length"), (" ", "stop")):
        (bad,) = writer.read(answer(text, finish_reason=finish), 0)
        assert isinstance(bad, Rejected)
    writer.keep(found)
    assert writer.reason(text_prompt("Make a table of Zostera counts.", None)) == "too_like_another"


@pytest.mark.parametrize(("ask", "words"), [("math", "mathematical problem"), ("reasoning", "logical reasoning")])
def test_problems_are_asked_for_without_solutions(ask: str, words: str) -> None:
    writer = Personas(section(ask=ask), [DIVER], system=None, sampling=Sampling(), method="m")
    text = str(writer.request(0, []).question())
    assert words in text and "without its solution" in text and DIVER in text


def test_persona_to_persona_goes_on_from_those_it_wrote() -> None:
    writer = people([DIVER, COOK])
    kept = [text_prompt("a fishmonger who knows the cook's mother", None)]
    shown = [asked(writer, index, kept) for index in range(3)]
    assert [DIVER in shown[0], COOK in shown[1], "fishmonger" in shown[2]] == [True, True, True]
    relations = {re.search(r"close to this person as (.+?)\?", asked(writer, index))[1] for index in range(300)}  # type: ignore[index]
    assert relations == set(RELATIONS)
    assert asked(writer, 5) == asked(writer, 5)


def test_text_to_persona_asks_who_reads_or_writes_it() -> None:
    writer = people(["Queues grow without bound when work comes faster than it is done."], seeds="texts")
    texts = [asked(writer, index, [text_prompt("somebody else who should not be shown", None)]) for index in range(200)]
    assert all("Queues grow" in text and "should not be shown" not in text for text in texts)
    assert {re.search(r"likely to (\w+) it", text)[1] for text in texts} == set(READERS)  # type: ignore[index]


def test_personas_are_kept_apart_by_single_words() -> None:
    """Twenty words in another order are the same; with six others the Jaccard similarity is 14/26 = 0.54."""
    seed = [f"word{number}" for number in range(20)]
    writer = people([" ".join(seed)])
    assert (
        writer.reason(text_prompt(" ".join([*reversed(seed)]), None)) == "persona_too_like_another"
    )  # order is nothing
    assert writer.reason(text_prompt(" ".join([*seed[:14], *"abcdef"]), None)) is None
    assert writer.reason(text_prompt("a man", None)) == "persona_too_short"
    assert writer.reason(text_prompt("long " * 200, None)) == "persona_too_long"
    (cut,) = writer.read(answer("a man who", finish_reason="length"), 0)
    assert isinstance(cut, Rejected) and cut.reason == "prompt_persona_truncated"


def test_seeds_are_lines_or_a_column(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(f"# who\n{DIVER}\n\n{COOK}\n")
    assert read_seeds(section(path=str(tmp_path / "p.txt"))) == [DIVER, COOK]
    rows = [{"persona": DIVER}, {"persona": COOK}, {"persona": DIVER}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_seeds(section(path=str(tmp_path / "p.jsonl"))) == [DIVER, COOK]
    with pytest.raises(DataError, match="no text in 'who'; there are persona"):
        read_seeds(section(path=str(tmp_path / "p.jsonl"), column="who"))
    with pytest.raises(ValidationError, match="texts are no personas"):
        section(seeds="texts")
    shipped = read_seeds(section(path=str(ROOT / "data" / "personas.txt")))
    assert len(shipped) == len(set(shipped)) == 40 and all(20 <= len(text) <= 600 for text in shipped)


def scripted(body: Body, number: int) -> Reply:
    """Describes people by number (every third twice the same), and asks what only they would ask."""
    text = question(body)
    if "Who is close" in text or "Who is likely" in text:
        seed = number - number % 3 if number % 3 < 2 else number
        return completion(f"Persona: someone {seed}th who {'x' * (seed % 7 + 1)} knows {'y' * (seed % 5 + 1)}")
    if text.startswith("Here is a person"):
        name = re.search(r"person:\n\n(.+)", text)
        assert name is not None
        return completion(f"What does {name[1]} want to know?")
    return completion("An answer.")


def test_a_whole_job_writes_no_more_people_than_prompts_and_asks_nothing_twice(project: Project) -> None:
    (project.path / "p.txt").write_text(f"{DIVER}\n{COOK}\n")
    prompts = {"source": "personas", "path": str(project.path / "p.txt"), "count": 5, "written": 100, "likeness": 1.0}
    job = {"name": "who", "kind": "instruction", "prompts": prompts}
    with MockTeacher(scripted) as mock:
        recipe = project.recipe(mock.base_url, job, max_concurrency=1)
        preview = project.run(recipe, rows=2)
        assert not any("Who is close" in text for text in mock.prompts())  # the file's own are enough for two
        assert "What does a diver" in preview
        project.run(recipe)
        kinds = Counter(text.split("\n")[0][:22] if "Who is" not in text else "people" for text in mock.prompts())
        assert kinds["Here is a person:"] == 5 and 3 <= kinds["people"] <= 6
        asked_for = len(mock.requests)
        (project.path / "runs/test/generate-who/manifest.json").unlink()
        project.run(recipe)
        assert len(mock.requests) == asked_for
    rows = project.data("who")
    assert len(rows) == 5 and rows[0]["messages"][0]["content"] == f"What does {DIVER} want to know?"
    assert [row["family"] for row in rows[:2]] == [f"persona:{DIVER}", f"persona:{COOK}"]
    assert all("someone" in row["family"] for row in rows[2:])
    assert set(reasons(project, "who")) <= {"prompt_persona_too_like_another"}
    assert "| template: more personas |" in (project.path / "runs/test/generate-who/README.md").read_text()


def test_texts_become_people(project: Project) -> None:
    path = project.prompts([{"text": "Queues grow."}, {"text": "Bees dance."}], name="t.jsonl")["path"]
    prompts = {"source": "personas", "path": path, "column": "text", "seeds": "texts", "written": 3, "count": 2}
    job = {"name": "who", "kind": "instruction", "prompts": {**prompts, "likeness": 1.0}}
    with MockTeacher(scripted) as mock:
        project.run(project.recipe(mock.base_url, job, max_concurrency=1))
    assert all("someone" in row["family"] for row in project.data("who")) and len(project.data("who")) == 2
