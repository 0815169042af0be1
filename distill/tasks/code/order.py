"""Families about order: sorting, slices, rotation."""

import random

from distill.tasks.code.build import CodeFamily, Program, family, number_list
from distill.tasks.code.number_ops import pick_map
from distill.tasks.code.number_preds import pick_pred
from distill.tasks.code.ops import (
    map_slots,
    pred_slots,
)
from distill.tasks.code.samples import ints, lists_for, long_lists
from distill.tasks.code.wordings import order as say
from distill.tasks.phrasing import pick


def _sorted_take(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    op, count, down = pick_map(rng), rng.randrange(2, 6), rng.random() < 0.5
    ordered = f"sorted({param}, reverse=True)" if down else f"sorted({param})"

    def run(items: list[int]) -> list[int]:
        rest = list(items)
        picked: list[int] = []
        while rest and len(picked) < count:
            best = max(rest) if down else min(rest)
            rest.remove(best)
            picked.append(op.apply(best))
        return picked

    said = ("largest", "biggest", "greatest") if down else ("smallest", "lowest", "least")
    first = "largest" if down else "smallest"
    return Program(
        key=f"{first} {count} | {op.key}",
        params=(param,),
        body=f"return [{op.on('x')} for x in {ordered}[:{count}]]",
        run=run,
        inputs=long_lists(rng),
        slots=slots | map_slots(rng, op) | {"count": str(count), "best": pick(rng, said), "first": first},
    )


def _filter_sorted(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    pred, down = pick_pred(rng), rng.random() < 0.5

    def run(items: list[int]) -> list[int]:
        kept: list[int] = []
        for item in filter(pred.test, items):
            place = sum((other >= item) if down else (other <= item) for other in kept)
            kept.insert(place, item)
        return kept

    said = (
        ("in descending order", "from largest to smallest", "sorted downwards")
        if down
        else ("in ascending order", "from smallest to largest", "sorted upwards")
    )
    return Program(
        key=f"{pred.key} | {'down' if down else 'up'}",
        params=(param,),
        body=f"return sorted([x for x in {param} if {pred.on('x')}]{', reverse=True' if down else ''})",
        run=run,
        inputs=[*lists_for(rng, pred), (rng.sample(pred.yes, min(4, len(pred.yes))),)],
        slots=slots | pred_slots(rng, pred) | {"order": pick(rng, said)},
    )


def _slice(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    op, count = pick_map(rng), rng.randrange(2, 6)
    items = slots["items"]
    part, code, keep = pick(
        rng,
        (
            (f"the first {count} {items} of", f"[:{count}]", lambda i, n: i < count),
            (f"the last {count} {items} of", f"[-{count}:]", lambda i, n: i >= n - count),
            (f"all but the first {count} {items} of", f"[{count}:]", lambda i, n: i >= count),
            (f"all but the last {count} {items} of", f"[:-{count}]", lambda i, n: i < n - count),
            (f"the {items} at every index divisible by {count} in", f"[::{count}]", lambda i, n: i % count == 0),
        ),
    )
    return Program(
        key=f"{code} | {op.key}",
        params=(param,),
        body=f"return [{op.on('x')} for x in {param}{code}]",
        run=lambda given: [op.apply(x) for i, x in enumerate(given) if keep(i, len(given))],
        inputs=long_lists(rng),
        slots=slots | map_slots(rng, op) | {"part": part},
    )


def _rotate(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    op, count = pick_map(rng), rng.randrange(1, 5)
    right = rng.random() < 0.5
    code = f"{param}[-{count}:] + {param}[:-{count}]" if right else f"{param}[{count}:] + {param}[:{count}]"

    def run(given: list[int]) -> list[int]:
        head = [x for i, x in enumerate(given) if (i >= len(given) - count if right else i >= count)]
        tail = [x for i, x in enumerate(given) if not (i >= len(given) - count if right else i >= count)]
        return [op.apply(x) for x in head + tail]

    return Program(
        key=f"{'right' if right else 'left'} {count} | {op.key}",
        params=(param,),
        body=f"turned = {code}\nreturn [{op.on('x')} for x in turned]",
        run=run,
        inputs=[([],), *((ints(rng, k),) for k in (5, 6, 7))],
        slots=slots | map_slots(rng, op) | {"count": str(count), "side": "right" if right else "left"},
    )


ORDER_FAMILIES: tuple[CodeFamily, ...] = (
    family("sorted_take", say.SORTED_TAKE, _sorted_take),
    family("filter_sorted", say.FILTER_SORTED, _filter_sorted),
    family("slice", say.SLICE, _slice),
    family("rotate", say.ROTATE, _rotate),
)
