"""The shapes shared by every task family: a task, a verdict on an answer, one draw of values, and a family."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

Kind = Literal["instruction", "code", "judge"]
Split = Literal["train", "values", "phrasings"]


@dataclass(frozen=True)
class Task:
    """One prompt with its reference answer and everything needed to verify another answer.

    `train` tasks use training phrasings and training values; `values` keep the training phrasings but take held-out
    values; `phrasings` take held-out phrasings and held-out values.
    """

    id: str  # 16 hex characters of sha256(family + prompt)
    family: str
    kind: Kind
    split: Split
    phrasing: int  # index of the phrasing inside the list (training or held out) that the split takes it from
    prompt: str  # the user message
    answer: str  # a reference assistant message, steps included
    entry_point: str | None = None  # code: the function's name
    tests: tuple[str, ...] = ()  # code: assert statements, one a string


@dataclass(frozen=True)
class Verdict:
    """Whether an answer passed, and why in a few words."""

    ok: bool
    reason: str


@dataclass(frozen=True)
class Draw:
    """One draw of a family's values."""

    slots: Mapping[str, str]  # what the phrasing's {placeholders} are filled with
    answer: str  # the reference assistant message
    entry_point: str | None = None
    tests: tuple[str, ...] = ()
    held_out_key: str = ""  # canonical text of the values; decides the split, see `registry.is_held_out`


@dataclass(frozen=True)
class Family:
    """A kind of task: its phrasings, how its values are drawn, and how the same content reads as plain text."""

    name: str
    kind: Kind
    phrasings: tuple[str, ...]
    held_out_phrasings: tuple[str, ...]
    draw: Callable[[random.Random], Draw]
    plain: Callable[[random.Random, Draw], str]  # the same content as a small document, without the instruction format


def make_task(family: str, kind: Kind, split: Split, phrasing: int, prompt: str, draw: Draw) -> Task:
    """A task from a rendered prompt and its draw."""
    return Task(
        id=sha256((family + prompt).encode()).hexdigest()[:16],
        family=family,
        kind=kind,
        split=split,
        phrasing=phrasing,
        prompt=prompt,
        answer=draw.answer,
        entry_point=draw.entry_point,
        tests=tuple(draw.tests),
    )
