"""Families on dicts from words to numbers."""

import random
from collections.abc import Callable

from distill.tasks.code.build import (
    DICTS,
    CodeFamily,
    Program,
    family,
    said,
    source_slots,
)
from distill.tasks.code.number_ops import COUNT, pick_map, pick_reducer
from distill.tasks.code.number_preds import pick_pred
from distill.tasks.code.ops import (
    Pred,
    map_slots,
    pred_slots,
    reducer_slots,
)
from distill.tasks.code.phrases import REDUCED_KEEP_EACH
from distill.tasks.code.samples import dicts_for, ints, words
from distill.tasks.code.wordings import dicts as say
from distill.tasks.phrasing import pick


def _dict(rng: random.Random) -> tuple[str, dict[str, str]]:
    param = pick(rng, DICTS)
    return param, {"src": said(rng, param, pick(rng, ("dict", "dictionary")))}


def _plain_dicts(rng: random.Random) -> list[tuple[object, ...]]:
    return [({},), *((dict(zip(words(rng, size), ints(rng, size), strict=True)),) for size in (1, 2, 3, 4))]


def _dict_program(
    rng: random.Random, body: Callable[[str, Pred], str], run: Callable[[dict[str, int], Pred], object]
) -> Program:
    """A program of one dict and one predicate on its values."""
    param, slots = _dict(rng)
    pred = pick_pred(rng)
    return Program(
        key=pred.key,
        params=(param,),
        body=body(param, pred),
        run=lambda given: run(given, pred),
        inputs=dicts_for(rng, pred),
        slots=slots | pred_slots(rng, pred),
    )


def _dict_filter(rng: random.Random) -> Program:
    return _dict_program(
        rng,
        lambda param, pred: f"return {{k: v for k, v in {param}.items() if {pred.on('v')}}}",
        lambda given, pred: dict(pair for pair in given.items() if pred.test(pair[1])),
    )


def _dict_keys(rng: random.Random) -> Program:
    return _dict_program(
        rng,
        lambda param, pred: f"return sorted([k for k, v in {param}.items() if {pred.on('v')}])",
        lambda given, pred: sorted(filter(lambda key: pred.test(given[key]), given)),
    )


def _dict_invert(rng: random.Random) -> Program:
    return _dict_program(
        rng,
        lambda param, pred: f"return {{v: k for k, v in {param}.items() if {pred.on('v')}}}",
        lambda given, pred: dict((given[key], key) for key in given if pred.test(given[key])),
    )


def _dict_map(rng: random.Random) -> Program:
    param, slots = _dict(rng)
    op = pick_map(rng)
    return Program(
        key=op.key,
        params=(param,),
        body=f"return {{k: {op.on('v')} for k, v in {param}.items()}}",
        run=lambda given: dict((key, op.apply(given[key])) for key in given),
        inputs=_plain_dicts(rng),
        slots=slots | map_slots(rng, op),
    )


def _dict_filter_map(rng: random.Random) -> Program:
    param, slots = _dict(rng)
    pred, op = pick_pred(rng), pick_map(rng)
    return Program(
        key=f"{pred.key} | {op.key}",
        params=(param,),
        body=f"return {{k: {op.on('v')} for k, v in {param}.items() if {pred.on('v')}}}",
        run=lambda given: dict((key, op.apply(given[key])) for key in given if pred.test(given[key])),
        inputs=dicts_for(rng, pred),
        slots=slots | pred_slots(rng, pred) | map_slots(rng, op),
    )


def _dict_reduce(rng: random.Random) -> Program:
    param = pick(rng, DICTS)
    pred, op = pick_pred(rng), pick_map(rng)
    reducer = COUNT if rng.random() < 0.1 else pick_reducer(rng)
    return Program(
        key=f"{pred.key} | {op.key} | {reducer.key}",
        params=(param,),
        body="return " + reducer.on(f"[{op.on('v')} for v in {param}.values() if {pred.on('v')}]"),
        run=lambda given: reducer.apply([op.apply(given[key]) for key in given if pred.test(given[key])]),
        inputs=dicts_for(rng, pred),
        slots=source_slots(rng, param, ("values",), "dict")
        | pred_slots(rng, pred)
        | map_slots(rng, op)
        | reducer_slots(rng, reducer),
    )


def _dict_best(rng: random.Random) -> Program:
    param, slots = _dict(rng)
    pred, largest = pick_pred(rng), rng.random() < 0.5
    word = "max" if largest else "min"

    def run(given: dict[str, int]) -> str | None:
        best = None
        for key in given:
            value = given[key]
            if pred.test(value) and (best is None or (value > given[best] if largest else value < given[best])):
                best = key
        return best

    best_said = pick(rng, ("largest", "greatest", "highest") if largest else ("smallest", "least", "lowest"))
    return Program(
        key=f"{pred.key} | {word}",
        params=(param,),
        body=f"kept = {{k: v for k, v in {param}.items() if {pred.on('v')}}}\n"
        f"return {word}(kept, key=kept.get, default=None)",
        run=run,
        inputs=dicts_for(rng, pred),
        slots=slots | pred_slots(rng, pred) | {"best": best_said},
    )


DICT_FAMILIES: tuple[CodeFamily, ...] = (
    family("dict_filter", say.DICT_FILTER, _dict_filter),
    family("dict_keys", say.DICT_KEYS, _dict_keys),
    family("dict_invert", say.DICT_INVERT, _dict_invert),
    family("dict_map", say.DICT_MAP, _dict_map),
    family("dict_filter_map", say.DICT_FILTER_MAP, _dict_filter_map),
    family(
        "dict_reduce",
        REDUCED_KEEP_EACH,
        _dict_reduce,
    ),
    family("dict_best", say.DICT_BEST, _dict_best),
)
