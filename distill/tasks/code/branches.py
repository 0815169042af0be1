"""Families that decide about one number: labels, truth values, one of two operations."""

import random

from distill.tasks.code.build import CodeFamily, Program, family, scalar
from distill.tasks.code.number_ops import pick_map
from distill.tasks.code.number_preds import pick_division_pred, pick_pred, pick_range_pred
from distill.tasks.code.ops import (
    map_slots,
    pred_slots,
)
from distill.tasks.code.samples import scalars_for
from distill.tasks.code.wordings import scalars as say
from distill.tasks.phrasing import pick

_LABELS = tuple(
    """
    big small high low good bad yes no hot cold fast slow near far left right up down in out red blue old new first
    other pass fail even odd open closed long short rich poor
    """.split()  # noqa: SIM905
)


def _label(rng: random.Random) -> Program:
    param, slots = scalar(rng)
    pred = pick_pred(rng)
    yes, no = rng.sample(_LABELS, 2)
    return Program(
        key=f"{pred.key} | {yes} {no}",
        params=(param,),
        body=f'if {pred.on(param)}:\n    return "{yes}"\nreturn "{no}"',
        run=lambda n: yes if pred.test(n) else no,
        inputs=scalars_for(rng, pred),
        slots=slots | pred_slots(rng, pred) | {"yes": f"'{yes}'", "no": f"'{no}'"},
    )


def _label3(rng: random.Random) -> Program:
    param, slots = scalar(rng)
    first, second = pick_range_pred(rng), pick_division_pred(rng)
    if rng.random() < 0.5:
        first, second = second, first
    names = rng.sample(_LABELS, 3)
    numbers = [n for (n,) in scalars_for(rng, first)[:5] + scalars_for(rng, second)[:5]]
    return Program(
        key=f"{first.key} | {second.key} | {' '.join(names)}",
        params=(param,),
        body=f'if {first.on(param)}:\n    return "{names[0]}"\nif {second.on(param)}:\n    return "{names[1]}"\n'
        f'return "{names[2]}"',
        run=lambda n: names[0 if first.test(n) else 1 if second.test(n) else 2],
        inputs=[(n,) for n in dict.fromkeys(numbers)][:9],
        slots=slots
        | pred_slots(rng, first)
        | pred_slots(rng, second, "2")
        | {"a": f"'{names[0]}'", "b": f"'{names[1]}'", "c": f"'{names[2]}'"},
    )


def _either(rng: random.Random) -> Program:
    param, slots = scalar(rng)
    first, second = pick_range_pred(rng), pick_division_pred(rng)
    if rng.random() < 0.5:
        first, second = second, first
    joined = pick(rng, ("and", "or"))
    return Program(
        key=f"{first.key} {joined} {second.key}",
        params=(param,),
        body=f"return {first.on(param)} {joined} {second.on(param)}",
        run=lambda n: (first.test(n), second.test(n)) in ([(1, 1)] if joined == "and" else [(1, 1), (1, 0), (0, 1)]),
        inputs=list(dict.fromkeys(scalars_for(rng, first)[:5] + scalars_for(rng, second)[:5])),
        slots=slots | pred_slots(rng, first) | pred_slots(rng, second, "2") | {"joined": joined},
    )


def _branch(rng: random.Random) -> Program:
    param, slots = scalar(rng)
    pred, op, other = pick_pred(rng), pick_map(rng), pick_map(rng)
    while other.key == op.key:
        other = pick_map(rng)
    return Program(
        key=f"{pred.key} | {op.key} | {other.key}",
        params=(param,),
        body=f"if {pred.on(param)}:\n    return {op.on(param)}\nreturn {other.on(param)}",
        run=lambda n: (op if pred.test(n) else other).apply(n),
        inputs=scalars_for(rng, pred),
        slots=slots | pred_slots(rng, pred) | map_slots(rng, op) | map_slots(rng, other, "2"),
    )


BRANCH_FAMILIES: tuple[CodeFamily, ...] = (
    family("label", say.LABEL, _label),
    family("label_three", say.LABEL3, _label3),
    family("both_or_either", say.EITHER, _either),
    family("choose_map", say.BRANCH, _branch),
)
