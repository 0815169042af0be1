"""Inputs of tests: short, hand-checkable, and on both sides of the boundaries of the drawn operations."""

import random
from collections.abc import Callable
from typing import Any

from distill.tasks.code.ops import (
    Pred,
)
from distill.tasks.code.word_ops import (
    WORDS,
)
from distill.tasks.phrasing import pick

_SMALL = tuple(range(-9, 31))


def ints(rng: random.Random, count: int) -> list[int]:
    """Different integers between -9 and 30."""
    return rng.sample(_SMALL, count)


def plain_lists(rng: random.Random) -> list[tuple[object, ...]]:
    """Argument tuples of one list of integers each, for operations without a predicate."""
    repeated = ints(rng, 4)
    return [([],), ([pick(rng, _SMALL)],), (ints(rng, 3),), (ints(rng, 4),), (repeated + repeated[1:2],)]


def mixed(rng: random.Random, pred: Pred, count: int) -> list[Any]:
    """`count` inputs of a predicate, at least one on either side where there is one."""
    yes, no = pred.yes, pred.no
    half = 1 + int(rng.random() * (count - 1))
    picked = [pick(rng, yes) for _ in range(half)] + [pick(rng, no) for _ in range(count - half)]
    rng.shuffle(picked)
    return picked


def lists_for(rng: random.Random, pred: Pred) -> list[tuple[object, ...]]:
    """Argument tuples of one list each: empty, boundaries, and mixtures of inputs that hold and that do not."""
    return [
        ([],),
        (list(pred.yes[:2] + pred.no[:2]),),
        (mixed(rng, pred, 3),),
        (mixed(rng, pred, 4),),
        (mixed(rng, pred, 5),),
    ]


def scalars_for(rng: random.Random, pred: Pred) -> list[tuple[object, ...]]:
    """Argument tuples of one value each, on both sides."""
    return [(x,) for x in (*pred.yes[:3], *pred.no[:2], pick(rng, pred.no))]


def lists_through(
    rng: random.Random, pred: Pred, transform: Callable[[int], int], pool: tuple[int, ...] = tuple(range(-30, 41))
) -> list[tuple[object, ...]]:
    """Argument tuples of one list each, of numbers whose transformed values hold and do not."""
    candidates = rng.sample(pool, 24)
    yes = [x for x in candidates if pred.test(transform(x))][:6]
    no = [x for x in candidates[::-1] if not pred.test(transform(x))][:6]
    return [([],), (no[:1] + yes[:2],), (yes[2:4] + no[1:2],), (no[2:4] + yes[4:6],), (yes[:1] + no[4:6] + yes[3:4],)]


def words(rng: random.Random, count: int) -> list[str]:
    """Different words."""
    return rng.sample(WORDS, count)


def word_lists(rng: random.Random) -> list[tuple[object, ...]]:
    """Argument tuples of one list of words each, for operations without a predicate."""
    return [([],), (words(rng, 1),), (words(rng, 2),), (words(rng, 3),), (words(rng, 4),)]


def chars(rng: random.Random, pred: Pred, count: int) -> str:
    """A string of characters of which some hold."""
    return "".join(mixed(rng, pred, count))


def long_lists(rng: random.Random) -> list[tuple[object, ...]]:
    """Argument tuples of one list each, from empty to six integers."""
    return [([],), (ints(rng, 1),), (ints(rng, 3),), (ints(rng, 5),), (ints(rng, 6),)]


def dicts_for(rng: random.Random, pred: Pred) -> list[tuple[object, ...]]:
    """Argument tuples of one dict each, with values on both sides of the predicate."""
    edges = pred.yes[:2] + pred.no[:2]
    sizes = (3, 4, 5)
    return [
        ({},),
        (dict(zip(words(rng, len(edges)), edges, strict=True)),),
        *((dict(zip(words(rng, size), mixed(rng, pred, size), strict=True)),) for size in sizes),
    ]
