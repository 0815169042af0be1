"""Prompts of the task families or of a file, streamed; `sources.py` has those that the teacher writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill.errors import DataError
from distill.recipe.generate import FilePrompts, TaskPrompts
from distill.records import Message, user_message
from distill.tasks.types import Task
from distill.teacher.requests import Answer

_TURN_ROLES = {"system", "user", "assistant"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question with all that is known for checking its answers."""

    messages: tuple[Message, ...]
    seed_row: str  # the task's id, the row's own `id`, else 16 hex digits of the text's SHA-256
    family: str | None = None
    task: Task | None = None
    entry_point: str | None = None
    tests: tuple[str, ...] = ()
    given: Answer | None = None  # where the teacher wrote the answer together with the question
    persona: str | None = None  # who asks
    reference: str | None = None  # what is known to be true, for a judge

    @property
    def question(self) -> str:
        """The last message, which is the user's."""
        return self.messages[-1]["content"]

    @property
    def is_code(self) -> bool:
        """Whether answers are judged by running tests."""
        return bool(self.tests)


@dataclass(frozen=True)
class PromptSource:
    """Prompts to iterate over once, and how many there will be at most."""

    prompts: Iterable[Prompt]
    total: int | None


def open_prompts(section: TaskPrompts | FilePrompts, system: str | None) -> PromptSource:
    """The prompts of a source, in a fixed order. Raises DataError for files that cannot be read so."""
    if isinstance(section, TaskPrompts):
        return PromptSource(_from_tasks(section, system), section.count)
    path = Path(section.path)
    if not path.is_file():
        raise DataError(f"no prompts at {path}", remedy="mend prompts.path; it is relative to the working folder")
    rows, total = read_rows(path)
    prompts = (_from_row(row, section, system, f"{path}:{number}") for number, row in enumerate(rows, 1))
    limit = section.count
    if limit is None:
        return PromptSource(prompts, total)
    return PromptSource(islice(prompts, limit), min(limit, total))


def text_prompt(
    text: str,
    system: str | None,
    *,
    seed_row: str | None = None,
    family: str | None = None,
    entry_point: str | None = None,
    given: Answer | None = None,
    persona: str | None = None,
) -> Prompt:
    """A one-turn prompt."""
    text = _clean(text)
    return Prompt(
        tuple(user_message(text, system)),
        seed_row or _fingerprint(text),
        family=family,
        entry_point=entry_point,
        given=given,
        persona=persona,
    )


def _from_tasks(section: TaskPrompts, system: str | None) -> Iterator[Prompt]:
    from distill.tasks.registry import sample_tasks  # builds all families, which the other sources need not wait for

    tasks = sample_tasks(
        kinds=section.kinds, families=section.families, split="train", count=section.count, seed=section.seed
    )
    for task in tasks:
        yield Prompt(
            messages=tuple(user_message(task.prompt, system)),
            seed_row=task.id,
            family=task.family,
            task=task,
            entry_point=task.entry_point,
            tests=task.tests,
        )


def read_rows(path: Path) -> tuple[Iterator[Mapping[str, Any]], int]:
    """The rows of a Parquet or JSONL file, and how many there are."""
    return _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)


def _read_jsonl(path: Path) -> tuple[Iterator[Mapping[str, Any]], int]:
    with open(path, "rb") as handle:
        total = sum(1 for line in handle if line.strip())
    return _jsonl_rows(path), total


def _jsonl_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with open(path, encoding="utf-8", errors="strict") as handle:
        try:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}: a row is an object with columns, not {type(row).__name__}")
                yield row
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}", remedy="one JSON object a line") from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8 text: {error}", remedy="a name ending in .parquet is Parquet"
            ) from None


def _read_parquet(path: Path) -> tuple[Iterator[Mapping[str, Any]], int]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file: {error}", remedy="mend prompts.path, or make the file again"
        ) from None
    return (row for batch in file.iter_batches(1024) for row in batch.to_pylist()), file.metadata.num_rows


def _from_row(row: Mapping[str, Any], section: FilePrompts, system: str | None, where: str) -> Prompt:
    for key, column in (("column", section.column), ("answer", section.answer), ("reference", section.reference)):
        if column is not None and column not in row:
            raise DataError(f"{where}: no column '{column}'; there are {', '.join(row)}", remedy=f"set prompts.{key}")
    messages = _messages(row[section.column], where)
    if system is not None and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    named = row.get("id")
    family = row.get("family")
    tests = row.get("tests") or ()
    if isinstance(tests, str) or not all(isinstance(test, str) for test in tests):
        raise DataError(f"{where}: tests is a list of assert statements")
    entry_point = row.get("entry_point")
    return Prompt(
        messages=messages,
        seed_row=_fingerprint(json.dumps(messages)) if named is None else str(named),
        family=None if family is None else str(family),
        entry_point=None if entry_point is None else str(entry_point),
        tests=tuple(tests),
        given=None if section.answer is None else _given(row[section.answer], messages, where),
        persona=_text_or_none(row.get("persona")),
        reference=None if section.reference is None else _reference(row[section.reference], where),
    )


def _text_or_none(value: Any) -> str | None:
    return _clean(value).strip() or None if isinstance(value, str) else None


def _reference(value: Any, where: str) -> str | None:
    """A text, or several, one a line; None where the row has none."""
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: a reference is a text or a list of texts", remedy="set prompts.reference")
    return "\n".join(_clean(text).strip() for text in texts if text.strip()) or None


def _given(value: Any, messages: tuple[Message, ...], where: str) -> Answer | None:
    """An answer that came with the file: nobody was asked and nothing was paid. None for an empty one."""
    if not isinstance(value, str):
        raise DataError(f"{where}: an answer is a text, not {type(value).__name__}", remedy="set prompts.answer")
    text = _clean(value)
    key = hashlib.sha256(json.dumps(["file", messages, text]).encode()).hexdigest()
    name = where.rpartition(":")[0].rpartition("/")[2]
    return Answer(key, text, "stop", 0, 0, 0, 0.0, 0, 0.0, 0.0, teacher=f"file:{name}") if text.strip() else None


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    """A text, or a chat that ends with the user's turn."""
    if isinstance(value, str):
        return ({"role": "user", "content": _clean(value)},)
    problem = DataError(f"{where}: a prompt is a text, or messages with role and content that end with the user's")
    if not isinstance(value, list) or not value:
        raise problem
    turns: list[Message] = []
    for turn in value:
        if (
            not isinstance(turn, dict)
            or turn.get("role") not in _TURN_ROLES
            or not isinstance(turn.get("content"), str)
        ):
            raise problem
        turns.append({"role": turn["role"], "content": _clean(turn["content"])})
    if turns[-1]["role"] != "user":
        raise problem
    return tuple(turns)


def _clean(text: str) -> str:
    """JSON may smuggle in half of a surrogate pair, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
