"""Prompts that the teacher writes, in rounds: ask, read, keep by the method's rules, until there are enough."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from distill.errors import DataError, TeacherError
from distill.generate.outcome import Rejected
from distill.generate.prompts import Prompt
from distill.teacher.client import TeacherClient
from distill.teacher.requests import Answer, Request

_BARREN_ROUNDS = 5
_NUMBERED = re.compile(r"^\s*(?:task\s*)?\d+\s*[.):]\s*(.+?)\s*$", re.IGNORECASE)
NOTHING_ASKED = Prompt((), "")  # of a rejection that no prompt came to


@dataclass
class Invented:
    """Prompts that passed the rules, what did not and why, and every answer it took."""

    prompts: list[Prompt] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    sifted: dict[str, Any] = field(default_factory=dict)  # what the sifting of seeds found out, where there was one


class Writer(Protocol):
    """One method: what request number `index` asks, and which prompts its answer holds."""

    def requests_in_a_round(self, missing: int) -> int:
        """How many to send before looking at what came: more at once, less learnt from each other."""

    def request(self, index: int, kept: Sequence[Prompt]) -> Request:
        """Depends on nothing but its arguments, so that a restart finds the answers in the ledger."""

    def read(self, answer: Answer, index: int) -> list[Prompt | Rejected]:
        """The prompts in an answer; a Rejected for what is none."""

    def reason(self, prompt: Prompt) -> str | None:
        """Why a prompt is dropped; None: keep."""

    def keep(self, prompt: Prompt) -> None:
        """Remember a kept prompt, for the reasons of later ones."""


async def invent(writer: Writer, client: TeacherClient, count: int) -> Invented:
    """Up to `count` new prompts; fewer when five rounds in a row bring none."""
    made = Invented()
    barren = sent = 0
    while len(made.prompts) < count and barren < _BARREN_ROUNDS:
        numbers = range(sent, sent + writer.requests_in_a_round(count - len(made.prompts)))
        kept_before = list(made.prompts)
        asks = [writer.request(number, kept_before) for number in numbers]
        answers = await asyncio.gather(*(try_to_ask(client, ask) for ask in asks))
        for number, answer in zip(numbers, answers, strict=True):
            if isinstance(answer, TeacherError):
                made.rejected.append(Rejected(NOTHING_ASKED, "prompt_request_failed", answer.message))
                continue
            made.answers.append(answer)
            _take(writer, answer, number, made, count)
        barren = 0 if len(made.prompts) > len(kept_before) else barren + 1
        sent = numbers.stop
    return made


def _take(writer: Writer, answer: Answer, number: int, made: Invented, count: int) -> None:
    for found in writer.read(answer, number):
        if len(made.prompts) == count:
            return
        if isinstance(found, Rejected):
            made.rejected.append(found)
            continue
        reason = writer.reason(found)
        if reason is not None:
            made.rejected.append(Rejected(found, f"prompt_{reason}", answer=found.given))
            continue
        writer.keep(found)
        made.prompts.append(found)


async def try_to_ask(client: TeacherClient, request: Request) -> Answer | TeacherError:
    """The answer, or why there is none; raises when the client has stopped."""
    try:
        return await client.ask(request)
    except TeacherError as error:
        if client.stopped is not None:
            raise client.stopped from None
        return error


def unreadable(answer: Answer, reason: str) -> Rejected:
    """An answer that holds no prompt, kept with the reason."""
    return Rejected(NOTHING_ASKED, f"prompt_{reason}", answer=answer)


def numbered_items(text: str) -> list[str]:
    """The items of a numbered list, one a line. The first may lack its number, with which the question ended."""
    lines = text.strip().splitlines()
    numbered = [match.group(1) for match in map(_NUMBERED.match, lines) if match is not None]
    if numbered and not _NUMBERED.match(lines[0]):
        return [lines[0].strip(), *numbered]
    return numbered


def read_lines(path: str) -> list[str]:
    """The lines of a text file that are not empty and no comments."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path}: {error}", remedy="mend prompts.path: a text file, a topic a line"
        ) from None
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise DataError(f"{path} is empty", remedy="write a topic a line into it")
    return lines


def in_language(language: str | None) -> str:
    """A sentence for the end of a request, or nothing."""
    return f" Write in {language}." if language else ""


def drawn(seed: int, index: int) -> random.Random:
    """The random choices of request number `index`."""
    return random.Random(f"{seed}:{index}")


def share(answer: Answer, text: str, *, index: int, parts: int) -> Answer:
    """One of the `parts` texts that came in one answer, with its part of the tokens and dollars."""

    def part(total: int) -> int:
        return total // parts + (index < total % parts)

    return replace(
        answer,
        text=text,
        finish_reason="stop",
        logprobs=None,  # they are of the whole answer
        prompt_tokens=part(answer.prompt_tokens),
        completion_tokens=part(answer.completion_tokens),
        cached_tokens=part(answer.cached_tokens),
        cost_usd=None if answer.cost_usd is None else answer.cost_usd / parts,
    )
