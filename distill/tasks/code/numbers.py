"""Families on one list of numbers: filters, maps, reductions and their compositions."""

import random

from distill.tasks.code.build import CodeFamily, Program, family, number_list
from distill.tasks.code.frames import Say
from distill.tasks.code.number_ops import COUNT, pick_map, pick_reducer
from distill.tasks.code.number_preds import pick_division_pred, pick_pred, pick_range_pred
from distill.tasks.code.ops import (
    map_slots,
    pred_slots,
    reducer_slots,
)
from distill.tasks.code.phrases import (
    EACH,
    EACH_ORDERS,
    HELD_OUT_EACH,
    HELD_OUT_EACH_ORDERS,
    HELD_OUT_KEEP,
    HELD_OUT_KEEP_EACH,
    HELD_OUT_KEEP_EACH_ORDERS,
    HELD_OUT_KEEP_ORDERS,
    KEEP,
    KEEP_EACH,
    KEEP_EACH_ORDERS,
    KEEP_ORDERS,
    REDUCED_EACH,
    REDUCED_KEEP,
    REDUCED_KEEP_EACH,
    listed,
)
from distill.tasks.code.samples import lists_for, lists_through, plain_lists
from distill.tasks.code.wordings import numbers as say
from distill.tasks.phrasing import pick


def _filter(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    pred = pick_pred(rng)
    return Program(
        key=pred.key,
        params=(param,),
        body=f"return [x for x in {param} if {pred.on('x')}]",
        run=lambda items: [i for i in items if pred.test(i)],
        inputs=lists_for(rng, pred),
        slots=slots | pred_slots(rng, pred),
    )


def _map(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    op = pick_map(rng)
    return Program(
        key=op.key,
        params=(param,),
        body=f"return [{op.on('x')} for x in {param}]",
        run=lambda items: [op.apply(i) for i in items],
        inputs=plain_lists(rng),
        slots=slots | map_slots(rng, op),
    )


def _filter_map(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    pred, op = pick_pred(rng), pick_map(rng)
    return Program(
        key=f"{pred.key} | {op.key}",
        params=(param,),
        body=f"return [{op.on('x')} for x in {param} if {pred.on('x')}]",
        run=lambda items: [op.apply(i) for i in items if pred.test(i)],
        inputs=lists_for(rng, pred),
        slots=slots | pred_slots(rng, pred) | map_slots(rng, op),
    )


def _map_filter(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    pred, op = pick_pred(rng), pick_map(rng)
    return Program(
        key=f"{op.key} | {pred.key}",
        params=(param,),
        body=f"return [y for y in [{op.on('x')} for x in {param}] if {pred.on('y')}]",
        run=lambda items: [y for y in map(op.apply, items) if pred.test(y)],
        inputs=lists_through(rng, pred, op.apply),
        slots=slots | pred_slots(rng, pred) | map_slots(rng, op),
    )


def _two_maps(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    first, second = pick_map(rng), pick_map(rng)
    while second.key == first.key:
        second = pick_map(rng)
    return Program(
        key=f"{first.key} | {second.key}",
        params=(param,),
        body=f"return [{second.on(first.on('x'))} for x in {param}]",
        run=lambda items: [second.apply(first.apply(i)) for i in items],
        inputs=plain_lists(rng),
        slots=slots | map_slots(rng, first) | map_slots(rng, second, "2"),
    )


def _two_filters(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    first, second = pick_range_pred(rng), pick_division_pred(rng)
    if rng.random() < 0.5:
        first, second = second, first
    both = rng.random() < 0.5
    joined = "and" if both else "or"
    said = pick(rng, ("and also", "and", "and at the same time") if both else ("or", "or else", "or"))
    return Program(
        key=f"{first.key} {joined} {second.key}",
        params=(param,),
        body=f"return [x for x in {param} if {first.on('x')} {joined} {second.on('x')}]",
        run=lambda items: [i for i in items if (first.test(i) + second.test(i)) >= (2 if both else 1)],
        inputs=[*lists_for(rng, first), *lists_for(rng, second)[1:]],
        slots=slots | pred_slots(rng, first) | pred_slots(rng, second, "2") | {"joined": said},
    )


def _filter_reduce(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    pred = pick_pred(rng)
    reducer = COUNT if rng.random() < 0.2 else pick_reducer(rng)
    return Program(
        key=f"{pred.key} | {reducer.key}",
        params=(param,),
        body="return " + reducer.on(f"[x for x in {param} if {pred.on('x')}]"),
        run=lambda items: reducer.apply([i for i in items if pred.test(i)]),
        inputs=lists_for(rng, pred),
        slots=slots | pred_slots(rng, pred) | reducer_slots(rng, reducer),
    )


def _map_reduce(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    op, reducer = pick_map(rng), pick_reducer(rng)
    return Program(
        key=f"{op.key} | {reducer.key}",
        params=(param,),
        body="return " + reducer.on(f"[{op.on('x')} for x in {param}]"),
        run=lambda items: reducer.apply([op.apply(i) for i in items]),
        inputs=plain_lists(rng),
        slots=slots | map_slots(rng, op) | reducer_slots(rng, reducer),
    )


def _filter_map_reduce(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    pred, op, reducer = pick_pred(rng), pick_map(rng), pick_reducer(rng)
    return Program(
        key=f"{pred.key} | {op.key} | {reducer.key}",
        params=(param,),
        body="return " + reducer.on(f"[{op.on('x')} for x in {param} if {pred.on('x')}]"),
        run=lambda items: reducer.apply([op.apply(i) for i in items if pred.test(i)]),
        inputs=lists_for(rng, pred),
        slots=slots | pred_slots(rng, pred) | map_slots(rng, op) | reducer_slots(rng, reducer),
    )


NUMBER_FAMILIES: tuple[CodeFamily, ...] = (
    family("filter", Say(listed(KEEP), KEEP_ORDERS, HELD_OUT_KEEP, HELD_OUT_KEEP_ORDERS), _filter),
    family("map", Say(listed(EACH), EACH_ORDERS, HELD_OUT_EACH, HELD_OUT_EACH_ORDERS), _map),
    family(
        "filter_map",
        Say(listed(KEEP_EACH), KEEP_EACH_ORDERS, HELD_OUT_KEEP_EACH, HELD_OUT_KEEP_EACH_ORDERS),
        _filter_map,
    ),
    family("map_filter", say.MAP_FILTER, _map_filter),
    family("two_maps", say.TWO_MAPS, _two_maps),
    family("two_filters", say.TWO_FILTERS, _two_filters),
    family(
        "filter_reduce",
        REDUCED_KEEP,
        _filter_reduce,
    ),
    family(
        "map_reduce",
        REDUCED_EACH,
        _map_reduce,
    ),
    family(
        "filter_map_reduce",
        REDUCED_KEEP_EACH,
        _filter_map_reduce,
    ),
)
