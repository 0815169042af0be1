"""Families about pairs of numbers: neighbours, two lists side by side, all pairs."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from distill.tasks.code.build import (
    NUMBER_LISTS,
    NUMBER_NOUNS,
    CodeFamily,
    Program,
    family,
    number_list,
    source_slots,
    two_of,
)
from distill.tasks.code.number_ops import pick_map, pick_reducer
from distill.tasks.code.number_preds import pick_pred
from distill.tasks.code.ops import (
    Pred,
    map_slots,
    pred_slots,
    reducer_slots,
)
from distill.tasks.code.samples import ints, long_lists
from distill.tasks.code.wordings import order as say
from distill.tasks.phrasing import pick

_SMALL = tuple(range(-9, 21))


@dataclass(frozen=True)
class PairOp:
    """What is computed from two numbers; `wordings` go before "of the two"."""

    key: str
    code: str  # template over {a} and {b}
    apply: Callable[[int, int], int]
    wordings: tuple[str, ...]

    def on(self, a: str, b: str) -> str:
        """The source of the operation on two expressions."""
        return self.code.replace("{a}", a).replace("{b}", b)


PAIR_OPS = (
    PairOp("sum", "{a} + {b}", lambda a, b: b + a, ("sum", "total")),
    PairOp("product", "{a} * {b}", lambda a, b: b * a, ("product",)),
    PairOp("difference", "{a} - {b}", lambda a, b: -b + a, ("difference (first minus second)", "first minus second")),
    PairOp("reverse", "{b} - {a}", lambda a, b: -a + b, ("difference (second minus first)", "second minus first")),
    PairOp("gap", "abs({a} - {b})", lambda a, b: max(a - b, b - a), ("absolute difference", "distance")),
    PairOp("larger", "max({a}, {b})", lambda a, b: a if a > b else b, ("larger", "maximum", "greater")),
    PairOp("smaller", "min({a}, {b})", lambda a, b: a if a < b else b, ("smaller", "minimum", "lesser")),
)


def _two_lists(rng: random.Random) -> list[tuple[object, ...]]:
    return [([], []), (ints(rng, 1), ints(rng, 1)), *((ints(rng, k), ints(rng, k)) for k in (2, 3, 4))]


def _two_lists_for(rng: random.Random, pair: PairOp, pred: Pred) -> list[tuple[object, ...]]:
    """Argument tuples of two lists, whose pairs give results that hold and that do not."""
    holds, fails = pred.yes[0], pred.no[0]  # at the boundary, and these pairs give them under most operations
    candidates = [(holds, 0), (0, holds), (holds, holds), *((pick(rng, _SMALL), pick(rng, _SMALL)) for _ in range(20))]
    candidates += [(fails, fails), (0, fails), (fails, 0)]
    yes = [c for c in candidates if pred.test(pair.apply(*c))][:7]
    no = [c for c in candidates[::-1] if not pred.test(pair.apply(*c))][:7]
    groups = (yes[:1] + no[:2], no[2:3] + yes[1:4], yes[4:6] + no[3:4], no[4:7] + yes[6:7] + yes[:1])
    return [([], []), *(([a for a, _ in group], [b for _, b in group]) for group in groups)]


def _neighbours(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    pair, op = pick(rng, PAIR_OPS), pick_map(rng)
    return Program(
        key=f"{pair.key} | {op.key}",
        params=(param,),
        body=f"pairs = [{pair.on('a', 'b')} for a, b in zip({param}, {param}[1:])]\n"
        f"return [{op.on('x')} for x in pairs]",
        run=lambda given: [op.apply(pair.apply(given[i - 1], given[i])) for i in range(1, len(given))],
        inputs=long_lists(rng),
        slots=slots | map_slots(rng, op) | {"pair": pick(rng, pair.wordings)},
    )


def _zip_slots(rng: random.Random, pair: PairOp) -> tuple[str, str, dict[str, str]]:
    first, second = two_of(rng, NUMBER_LISTS)
    slots = source_slots(rng, first, NUMBER_NOUNS, "list")
    both = pick(rng, (f"`{first}` and `{second}`", f"{first} and {second}", f"the lists `{first}` and `{second}`"))
    return first, second, slots | {"both": both, "pair": pick(rng, pair.wordings)}


def _zip_two(rng: random.Random) -> Program:
    pair, op = pick(rng, PAIR_OPS), pick_map(rng)
    first, second, slots = _zip_slots(rng, pair)
    return Program(
        key=f"{pair.key} | {op.key}",
        params=(first, second),
        body=f"pairs = [{pair.on('a', 'b')} for a, b in zip({first}, {second})]\nreturn [{op.on('x')} for x in pairs]",
        run=lambda left, right: [op.apply(pair.apply(left[i], right[i])) for i in range(len(left))],
        inputs=_two_lists(rng),
        slots=slots | map_slots(rng, op),
    )


def _zip_reduce(rng: random.Random) -> Program:
    pair, pred, reducer = pick(rng, PAIR_OPS), pick_pred(rng), pick_reducer(rng)
    first, second, slots = _zip_slots(rng, pair)
    return Program(
        key=f"{pair.key} | {pred.key} | {reducer.key}",
        params=(first, second),
        body=f"pairs = [{pair.on('a', 'b')} for a, b in zip({first}, {second})]\n"
        "return " + reducer.on(f"[x for x in pairs if {pred.on('x')}]"),
        run=lambda left, right: reducer.apply(
            [y for y in (pair.apply(left[i], right[i]) for i in range(len(left))) if pred.test(y)]
        ),
        inputs=_two_lists_for(rng, pair, pred),
        slots=slots | pred_slots(rng, pred) | reducer_slots(rng, reducer),
    )


def _count_pairs(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    pair, pred = pick(rng, (*PAIR_OPS[:2], *PAIR_OPS[4:])), pick_pred(rng)

    def run(given: list[int]) -> int:
        return sum(pred.test(pair.apply(x, y)) for j, y in enumerate(given) for x in given[:j])

    return Program(
        key=f"{pair.key} | {pred.key}",
        params=(param,),
        body=f"pairs = [{pair.on('a', 'b')} for i, a in enumerate({param}) for b in {param}[i + 1:]]\n"
        f"return len([x for x in pairs if {pred.on('x')}])",
        run=run,
        inputs=[*long_lists(rng)[:4], ([*pred.yes[:2], 0, pred.no[0]],), ([1, *pred.no[:2], pred.yes[0]],)],
        slots=slots | pred_slots(rng, pred) | {"pair": pick(rng, pair.wordings)},
    )


PAIR_FAMILIES: tuple[CodeFamily, ...] = (
    family("neighbours", say.NEIGHBOURS, _neighbours),
    family("zip_two", say.ZIP_TWO, _zip_two),
    family("zip_reduce", say.ZIP_REDUCE, _zip_reduce),
    family("count_pairs", say.COUNT_PAIRS, _count_pairs),
)
