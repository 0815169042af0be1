"""The kinds of primitive operations that code tasks are composed of: predicates, maps, reducers, and their slots.

Each knows its wordings, its Python source as a template over `{x}`, and an independent implementation that makes the
expected values of the tests.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from distill.tasks.phrasing import pick

# Third person plural -> singular, for the first word of a predicate's wording ("are even" -> "is even").
_SINGULAR = {
    "are": "is",
    "have": "has",
    "leave": "leaves",
    "lie": "lies",
    "exceed": "exceeds",
    "give": "gives",
    "start": "starts",
    "begin": "begins",
    "end": "ends",
    "finish": "finishes",
    "contain": "contains",
    "include": "includes",
    "do": "does",
    "come": "comes",
    "consist": "consists",
    "lack": "lacks",
    "occur": "occurs",
    "can": "can",
    "fall": "falls",
    "differ": "differs",
    "stay": "stays",
    "reach": "reaches",
    "hold": "holds",
    "open": "opens",
    "close": "closes",
    "go": "goes",
}


_SINGULAR_NOUNS = (
    ("multiples of", "a multiple of"),
    ("letters of the alphabet", "a letter of the alphabet"),
    ("lower-case vowels", "a lower-case vowel"),
    ("small vowels", "a small vowel"),
    ("decimal digits", "a decimal digit"),
    ("are digits", "are a digit"),
    ("not digits", "not a digit"),
    ("but digits", "but a digit"),
    ("are letters", "are a letter"),
    ("not letters", "not a letter"),
    ("but letters", "but a letter"),
    ("upper-case letters", "an upper-case letter"),
    ("capital letters", "a capital letter"),
    ("lower-case letters", "a lower-case letter"),
    ("small letters", "a small letter"),
    ("not spaces", "not a space"),
    ("their", "its"),
    ("in them", "in it"),
)


@cache
def singular(wording: str) -> str:
    """The same predicate said of one thing."""
    for plural, single in _SINGULAR_NOUNS:
        if plural in wording:
            wording = wording.replace(plural, single)
            break
    first, _, rest = wording.partition(" ")
    return f"{_SINGULAR[first]} {rest}"


@dataclass(frozen=True)
class Pred:
    """A yes-or-no operation with its constants bound."""

    key: str
    code: str  # template over {x}
    test: Callable[..., bool]
    wordings: tuple[str, ...]  # plural, after "the numbers that"
    yes: tuple[Any, ...]  # inputs that hold, nearest to the boundary first
    no: tuple[Any, ...]

    def on(self, x: str) -> str:
        """The source of the predicate applied to the name `x`."""
        assert x.isidentifier(), x
        return self.code.replace("{x}", x)


@dataclass(frozen=True)
class Map:
    """A one-to-one operation with its constants bound."""

    key: str
    code: str
    apply: Callable[..., Any]
    wordings: tuple[str, ...]  # participles, after "each number"
    orders: tuple[str, ...]  # imperatives about "it"

    def on(self, x: str) -> str:
        """The source of the map applied to the expression `x`, which is put in brackets unless it is a name."""
        return self.code.replace("{x}", x if x.isidentifier() or self.code.endswith("({x})") else f"({x})")


@dataclass(frozen=True)
class Reducer:
    """A list-to-value operation; `code` is a template over `{items}`, a list expression."""

    key: str
    code: str
    apply: Callable[[Sequence[Any]], Any]
    wordings: tuple[str, ...]  # before a noun phrase
    orders: tuple[str, ...]  # imperatives before a noun phrase
    empties: tuple[str, ...] = ("",)  # what is said about having nothing to reduce; ends the sentence

    def on(self, items: str) -> str:
        """The source of the reduction of the list expression `items`."""
        return self.code.replace("{items}", items)


def pred_slots(rng: random.Random, pred: Pred, suffix: str = "") -> dict[str, str]:
    """`pred` (plural) and `pred1` (singular), in one wording."""
    wording = pick(rng, pred.wordings)
    return {f"pred{suffix}": wording, f"pred1{suffix}": singular(wording)}


def map_slots(rng: random.Random, op: Map, suffix: str = "") -> dict[str, str]:
    """`map` (participle) and `do` (imperative)."""
    return {f"map{suffix}": pick(rng, op.wordings), f"do{suffix}": pick(rng, op.orders)}


def reducer_slots(rng: random.Random, op: Reducer) -> dict[str, str]:
    """`red` (noun, ends in "of" or "among"), `rdo` (imperative) and `empty` (ends the sentence)."""
    return {"red": pick(rng, op.wordings), "rdo": pick(rng, op.orders), "empty": pick(rng, op.empties)}
