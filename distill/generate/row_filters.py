"""A recipe's filters on finished rows, in the order of the rows: a row stays, or is kept aside with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.generate.outcome import Outcome, Rejected, Row
from distill.generate.prompts import Prompt, read_rows
from distill.recipe.filters import Decontaminate, Duplicates, Filters, Profile
from distill.text.code import extract_code
from distill.text.language import language_of
from distill.text.minhash import MinHash, NearDuplicates
from distill.text.overlap import SHORT, Benchmark
from distill.text.pii import personal_data
from distill.text.refusals import boilerplate_in, refusal_in
from distill.text.units import grams, length, normalize, units

Finding = tuple[str, str]  # reason and detail
_LONGEST_DETAIL = 120


class RowFilters:
    """One pass over a job's rows. `too_short` counts benchmark texts that are too short to be looked for."""

    def __init__(self, section: Filters) -> None:
        self.section = section
        self._benchmark = None
        if section.decontaminate is not None:
            self._benchmark = read_benchmarks(section.decontaminate, section.profile)
        self._repeats = None if section.duplicates is None else _Repeats(section.duplicates, section.profile)

    def apply(self, outcome: Outcome) -> Outcome:
        """The outcome with its rows filtered; those removed are among the rejected, whole."""
        kept: list[Row] = []
        removed: list[Rejected] = []
        for row in outcome.rows:
            finding = self.finding(row)
            if finding is None:
                kept.append(row)
            else:
                removed.append(Rejected(prompt_of(row), finding[0], finding[1][:_LONGEST_DETAIL], row=row))
        return replace(outcome, rows=kept, rejected=[*outcome.rejected, *removed]) if removed else outcome

    def finding(self, row: Row) -> Finding | None:
        """Why the row goes; None: it stays, and later ones like it go."""
        answers = answers_of(row)
        for answer in answers:
            found = self._answer(answer)
            if found is not None:
                return found
        question = question_of(row)
        if self.section.personal_data:
            kinds = personal_data("\n".join((question, *answers)))
            if kinds:
                return "personal_data", ", ".join(kinds)
        if self._benchmark is not None:
            found = _contamination(self._benchmark, question, answers, row.get("entry_point"))
            if found is not None:
                return found
        return None if self._repeats is None else self._repeats.finding(row, question, answers)

    def _answer(self, answer: str) -> Finding | None:
        section = self.section
        if section.length is not None:
            size = length(answer, section.profile)
            if size < section.length.min:
                return "answer_too_short", str(size)
            if section.length.max is not None and size > section.length.max:
                return "answer_too_long", str(size)
        if section.languages:
            language = language_of(answer)
            if language is not None and language not in section.languages:
                return "other_language", language
        if section.refusals:
            words = refusal_in(answer)
            if words is not None:
                return "refusal", words
        if section.boilerplate:
            words = boilerplate_in(answer)
            if words is not None:
                return "boilerplate", words
        return None


class _Repeats:
    """Rows that were before, exactly or nearly; each is named by its request's hash."""

    def __init__(self, section: Duplicates, profile: Profile) -> None:
        self.section = section
        self.profile = profile
        self._exact: dict[str, str] = {}
        self._hasher = MinHash(section.permutations)
        self._near = NearDuplicates(section.threshold, section.permutations)

    def finding(self, row: Row, question: str, answers: list[str]) -> Finding | None:
        parts = {"row": [question, *answers], "prompt": [question], "answer": answers}[self.section.on]
        text, name = normalize("\n".join(parts)), str(row["request_hash"])[:16]
        earlier = self._exact.setdefault(text, name)
        if earlier != name:
            return "exact_duplicate", f"of {earlier}"
        if not self.section.near:
            return None
        signature = self._hasher.signature(grams(units(text, self.profile), self.section.ngram))
        found = self._near.find(signature)
        if found is not None:
            return "near_duplicate", f"of {found}"
        self._near.add(signature, name)
        return None


def read_benchmarks(section: Decontaminate, profile: Profile) -> Benchmark:
    """All texts and programs of the named files."""
    benchmark = Benchmark(profile=profile, share=section.share, ast_threshold=section.ast_threshold)
    for name in section.files:
        path = Path(name)
        if not path.is_file():
            raise DataError(f"no benchmark at {path}", remedy="mend filters.decontaminate.files")
        found_any = False
        for number, row in enumerate(read_rows(path)[0], 1):
            for text in _texts(row, section, path):
                found_any = True
                benchmark.add_text(text, f"{path.name}:{number}")
                benchmark.add_program(text, f"{path.name}:{number}")
            program = _whole_program(row)
            if program is not None:
                benchmark.add_program(program, f"{path.name}:{number}")
        if not found_any:
            raise DataError(
                f"{path} has no text to look for", remedy="name its columns in filters.decontaminate.columns"
            )
    return benchmark


def _texts(row: Any, section: Decontaminate, path: Path) -> Iterator[str]:
    if section.columns:
        for column in section.columns:
            if column not in row:
                raise DataError(
                    f"{path}: no column '{column}'; there are {', '.join(row)}",
                    remedy="mend filters.decontaminate.columns",
                )
            yield from _strings(row[column])
        return
    for value in row.values():
        yield from (text for text in _strings(value) if len(units(text)) >= SHORT)


def _strings(value: Any) -> Iterator[str]:
    """The texts in a value: itself, or those of a list (turns of MT-bench) or of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item["content"] if isinstance(item, dict) and "content" in item else item)


def _whole_program(row: Any) -> str | None:
    """HumanEval keeps the head of a function in `prompt` and its body in `canonical_solution`."""
    head, body = row.get("prompt"), row.get("canonical_solution")
    return head + body if isinstance(head, str) and isinstance(body, str) else None


def _contamination(benchmark: Benchmark, question: str, answers: list[str], entry_point: Any) -> Finding | None:
    for text in (question, *answers):
        overlap = benchmark.overlap(text)
        if overlap is not None:
            return f"contaminated_{overlap[0]}", overlap[1]
    for answer in answers:
        name = benchmark.same_program(extract_code(answer, entry_point))
        if name is not None:
            return "contaminated_ast", name
    return None


def question_of(row: Row) -> str:
    """What the row asks: every turn of a pair's prompt but the system's, or the user's turns of a chat."""
    if "chosen" in row:
        return "\n".join(turn["content"] for turn in row["prompt"] if turn["role"] != "system")
    return "\n".join(turn["content"] for turn in row["messages"] if turn["role"] == "user")


def answers_of(row: Row) -> list[str]:
    """What a student learns to say (or not to): the assistant's turns, or the chosen and the rejected one."""
    if "chosen" in row:
        return [row["chosen"][-1]["content"], row["rejected"][-1]["content"]]
    return [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]


def prompt_of(row: Row) -> Prompt:
    """The prompt that a row came of, as far as the row tells."""
    turns = row["prompt"] if "chosen" in row else row["messages"][:-1]
    return Prompt(tuple(turns), row["seed_row"], row["family"])


def removed_row(rejected: Rejected) -> str | None:
    """A removed row as JSON, from which it can be had back."""
    return None if rejected.row is None else json.dumps(rejected.row, ensure_ascii=False, default=str)
