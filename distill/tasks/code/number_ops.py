"""The maps and reducers of numbers. Constants are bound when the tables are built: a draw is a choice from a tuple."""

import random
from collections.abc import Sequence

from distill.tasks.code.ops import (
    Map,
    Reducer,
)
from distill.tasks.phrasing import pick


def _maps() -> tuple[tuple[Map, ...], ...]:
    """All maps, grouped by kind."""
    return (
        (
            Map(
                "square",
                "{x} ** 2",
                lambda x: x * x,
                (
                    "squared",
                    "multiplied by itself",
                    "raised to the power of 2",
                    "raised to the second power",
                    "taken to the power of 2",
                ),
                (
                    "square it",
                    "multiply it by itself",
                    "raise it to the power of 2",
                    "raise it to the second power",
                    "take it to the power of 2",
                ),
            ),
            Map(
                "cube",
                "{x} ** 3",
                lambda x: x * x * x,
                ("cubed", "raised to the power of 3", "raised to the third power", "taken to the power of 3"),
                ("cube it", "raise it to the power of 3", "take it to the power of 3", "raise it to the third power"),
            ),
            Map(
                "double",
                "{x} * 2",
                lambda x: x + x,
                ("doubled", "multiplied by 2", "taken twice", "made twice as large", "scaled by 2"),
                ("double it", "multiply it by 2", "make it twice as large", "scale it by 2", "take it twice"),
            ),
            Map(
                "negate",
                "-{x}",
                lambda x: 0 - x,
                (
                    "negated",
                    "made to change its sign",
                    "given the opposite sign",
                    "turned into its opposite",
                    "changed in sign",
                ),
                (
                    "negate it",
                    "flip its sign",
                    "change its sign",
                    "give it the opposite sign",
                    "turn it into its opposite",
                ),
            ),
            Map(
                "abs",
                "abs({x})",
                lambda x: x if x > 0 else 0 - x,
                (
                    "replaced by its absolute value",
                    "stripped of its sign",
                    "turned into its absolute value",
                    "changed to its absolute value",
                ),
                (
                    "take its absolute value",
                    "drop its sign",
                    "replace it by its absolute value",
                    "strip it of its sign",
                    "turn it into its absolute value",
                ),
            ),
        ),
        tuple(
            Map(
                f"add {k}",
                f"{{x}} + {k}",
                lambda x, k=k: k + x,
                (
                    f"increased by {k}",
                    f"raised by {k}",
                    f"made {k} larger",
                    f"enlarged by {k}",
                    f"made greater by {k}",
                    f"moved up by {k}",
                ),
                (
                    f"add {k} to it",
                    f"increase it by {k}",
                    f"add {k}",
                    f"raise it by {k}",
                    f"make it {k} larger",
                    f"enlarge it by {k}",
                ),
            )
            for k in range(1, 31)
        ),
        tuple(
            Map(
                f"sub {k}",
                f"{{x}} - {k}",
                lambda x, k=k: -(k - x),
                (
                    f"decreased by {k}",
                    f"reduced by {k}",
                    f"made {k} smaller",
                    f"lowered by {k}",
                    f"diminished by {k}",
                    f"made less by {k}",
                ),
                (
                    f"subtract {k} from it",
                    f"decrease it by {k}",
                    f"take {k} away from it",
                    f"reduce it by {k}",
                    f"lower it by {k}",
                    f"make it {k} smaller",
                    f"subtract {k}",
                ),
            )
            for k in range(1, 31)
        ),
        tuple(
            Map(
                f"mul {k}",
                f"{{x}} * {k}",
                lambda x, k=k: k * x,
                (
                    f"multiplied by {k}",
                    f"taken {k} times",
                    f"scaled by {k}",
                    f"made {k} times as large",
                    f"multiplied with {k}",
                ),
                (
                    f"multiply it by {k}",
                    f"scale it by {k}",
                    f"take it {k} times",
                    f"make it {k} times as large",
                    f"multiply by {k}",
                ),
            )
            for k in range(3, 13)
        ),
        tuple(
            Map(
                f"mod {k}",
                f"{{x}} % {k}",
                lambda x, k=k: x - x // k * k,
                (
                    f"reduced modulo {k}",
                    f"taken modulo {k}",
                    f"replaced by its remainder after division by {k}",
                    f"replaced by its remainder modulo {k}",
                    f"turned into its remainder after division by {k}",
                ),
                (
                    f"take it modulo {k}",
                    f"take its remainder after division by {k}",
                    f"reduce it modulo {k}",
                    f"replace it by its remainder after division by {k}",
                    f"divide it by {k} and keep the remainder",
                ),
            )
            for k in range(3, 13)
        ),
        tuple(
            Map(
                f"floordiv {k}",
                f"{{x}} // {k}",
                lambda x, k=k: (x - x % k) // k,
                (
                    f"divided by {k} and rounded down",
                    f"integer-divided by {k}",
                    f"floor-divided by {k}",
                    f"divided by {k} with rounding down",
                ),
                (
                    f"divide it by {k} and round down",
                    f"integer-divide it by {k}",
                    f"floor-divide it by {k}",
                    f"divide it by {k} with rounding down",
                ),
            )
            for k in range(2, 11)
        ),
        tuple(
            Map(
                f"rsub {k}",
                f"{k} - {{x}}",
                lambda x, k=k: -(x - k),
                (
                    f"subtracted from {k}",
                    f"taken away from {k}",
                    f"deducted from {k}",
                    f"replaced by {k} minus itself",
                    f"turned into {k} minus itself",
                ),
                (
                    f"subtract it from {k}",
                    f"take it away from {k}",
                    f"deduct it from {k}",
                    f"replace it by {k} minus itself",
                    f"compute {k} minus it",
                ),
            )
            for k in range(5, 31)
        ),
    )


def _sum(items: Sequence[int]) -> int:
    total = 0
    for item in items:
        total += item
    return total


_EXTREME_VERBS = ("find", "take", "return", "give", "work out", "determine", "pick", "look for")


def _extreme(key: str, word: str, words: tuple[str, ...], default: int | None) -> Reducer:
    def apply(items: Sequence[int]) -> int | None:
        ordered = sorted(items)
        return (ordered[-1] if word == "max" else ordered[0]) if ordered else default

    return Reducer(
        f"{key} {default}",
        f"{word}({{items}}, default={default})",
        apply,
        tuple(f"the {w} of" for w in words),
        tuple(f"{verb} the {w} of" for verb, w in zip(_EXTREME_VERBS, words * 3, strict=False)),
        (
            f", or {default} if there are none",
            f"; if there are none, {default}",
            f", with {default} when nothing is left",
            f", or {default} without any",
            f" (or {default} if there is nothing)",
        ),
    )


def _reducers() -> tuple[tuple[Reducer, ...], ...]:
    """All reducers of a list of numbers, grouped by kind."""
    defaults = (0, -1, None)
    total = Reducer(
        "sum",
        "sum({items})",
        _sum,
        (
            "the sum of",
            "the total of",
            "the overall sum of",
            "the result of adding up",
            "the total you get by adding up",
        ),
        ("add up", "sum", "total", "add together", "work out the sum of", "find the total of", "compute the sum of"),
    )
    distinct = Reducer(
        "distinct",
        "len(set({items}))",
        lambda items: len(dict.fromkeys(items)),
        (
            "the number of distinct values among",
            "how many different values there are among",
            "the count of different values among",
            "the number of different values among",
        ),
        (
            "count the distinct values among",
            "count the different values among",
            "find the number of distinct values among",
            "count how many different values there are among",
        ),
    )
    return (
        (total,),
        tuple(_extreme("max", "max", ("largest", "maximum", "greatest", "biggest"), d) for d in defaults),
        tuple(_extreme("min", "min", ("smallest", "minimum", "lowest"), d) for d in defaults),
        (distinct,),
    )


MAPS = _maps()


REDUCERS = _reducers()


COUNT = Reducer(
    "count",
    "len({items})",
    lambda items: sum(1 for _ in items),
    ("the number of", "the count of", "how many there are of", "the total number of", "the size of the list of"),
    ("count", "count up", "find the number of", "count how many there are of", "work out the number of"),
)


def pick_map(rng: random.Random) -> Map:
    """A map: its kind first, then its constants."""
    return pick(rng, pick(rng, MAPS))


def pick_reducer(rng: random.Random) -> Reducer:
    """A reducer of numbers."""
    return pick(rng, pick(rng, REDUCERS))
