"""Families that walk over a list of numbers: running values, branches inside the loop, replacement."""

import random

from distill.tasks.code.build import CodeFamily, Program, family, number_list, number_list_and_pred
from distill.tasks.code.number_ops import pick_map
from distill.tasks.code.ops import (
    map_slots,
)
from distill.tasks.code.samples import lists_for, plain_lists
from distill.tasks.code.wordings import loops as say
from distill.tasks.phrasing import pick


def _running(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    op, start = pick_map(rng), rng.randrange(21)

    def run(items: list[int]) -> list[int]:
        return [start + sum(op.apply(i) for i in items[: k + 1]) for k in range(len(items))]

    return Program(
        key=f"{op.key} | {start}",
        params=(param,),
        body=f"total = {start}\nresult = []\nfor x in {param}:\n    total += {op.on('x')}\n"
        "    result.append(total)\nreturn result",
        run=run,
        inputs=plain_lists(rng),
        slots=slots | map_slots(rng, op) | {"start": str(start)},
    )


def _until(rng: random.Random) -> Program:
    param, pred, slots = number_list_and_pred(rng)
    op = pick_map(rng)

    def run(items: list[int]) -> list[int]:
        stop = next((k for k, i in enumerate(items) if pred.test(i)), len(items))
        return [op.apply(i) for i in items[:stop]]

    inputs = [*lists_for(rng, pred)[:4], (list(pred.no[:3] + pred.yes[:2]),), (list(pred.no[3:6]),)]
    return Program(
        key=f"{pred.key} | {op.key}",
        params=(param,),
        body=f"result = []\nfor x in {param}:\n    if {pred.on('x')}:\n        break\n    result.append({op.on('x')})\n"
        "return result",
        run=run,
        inputs=inputs,
        slots=slots | map_slots(rng, op),
    )


def _score(rng: random.Random) -> Program:
    param, pred, slots = number_list_and_pred(rng)
    start, gain, loss = rng.randrange(16), rng.randrange(1, 10), rng.randrange(1, 10)
    return Program(
        key=f"{pred.key} | {start} {gain} {loss}",
        params=(param,),
        body=f"score = {start}\nfor x in {param}:\n    if {pred.on('x')}:\n        score += {gain}\n    else:\n"
        f"        score -= {loss}\nreturn score",
        run=lambda items: start + sum(gain if pred.test(i) else -loss for i in items),
        inputs=lists_for(rng, pred),
        slots=slots | {"start": str(start), "gain": str(gain), "loss": str(loss)},
    )


def _product(rng: random.Random) -> Program:
    param, pred, slots = number_list_and_pred(rng)

    def run(items: list[int]) -> int:
        value = 1
        for item in filter(pred.test, items):
            value = item * value
        return value

    return Program(
        key=pred.key,
        params=(param,),
        body=f"result = 1\nfor x in {param}:\n    if {pred.on('x')}:\n        result *= x\nreturn result",
        run=run,
        inputs=lists_for(rng, pred),
        slots=slots,
    )


def _partition(rng: random.Random) -> Program:
    param, pred, slots = number_list_and_pred(rng)
    return Program(
        key=pred.key,
        params=(param,),
        body=f"first = [x for x in {param} if {pred.on('x')}]\nrest = [x for x in {param} if not ({pred.on('x')})]\n"
        "return first, rest",
        run=lambda items: (list(filter(pred.test, items)), [i for i in items if not pred.test(i)]),
        inputs=lists_for(rng, pred),
        slots=slots,
    )


def _replace(rng: random.Random) -> Program:
    param, pred, slots = number_list_and_pred(rng)
    new = pick(rng, (*range(-9, 31), None))
    return Program(
        key=f"{pred.key} | {new}",
        params=(param,),
        body=f"return [{new} if {pred.on('x')} else x for x in {param}]",
        run=lambda items: [(i, new)[pred.test(i)] for i in items],
        inputs=lists_for(rng, pred),
        slots=slots | {"new": str(new)},
    )


def _branch(rng: random.Random) -> Program:
    param, pred, slots = number_list_and_pred(rng)
    op, other = pick_map(rng), pick_map(rng)
    while other.key == op.key:
        other = pick_map(rng)
    return Program(
        key=f"{pred.key} | {op.key} | {other.key}",
        params=(param,),
        body=f"return [{op.on('x')} if {pred.on('x')} else {other.on('x')} for x in {param}]",
        run=lambda items: [(op if pred.test(i) else other).apply(i) for i in items],
        inputs=lists_for(rng, pred),
        slots=slots | map_slots(rng, op) | map_slots(rng, other, "2"),
    )


def _clamp(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    low, high = rng.randrange(-9, 10), rng.randrange(11, 31)
    return Program(
        key=f"{low} {high}",
        params=(param,),
        body=f"return [min(max(x, {low}), {high}) for x in {param}]",
        run=lambda items: [low if i < low else high if i > high else i for i in items],
        inputs=[*plain_lists(rng), ([low - 1, low, low + 1, high - 1, high, high + 1],)],
        slots=slots | {"low": str(low), "high": str(high)},
    )


LOOP_FAMILIES: tuple[CodeFamily, ...] = (
    family("running", say.RUNNING, _running),
    family("until", say.UNTIL, _until),
    family("score", say.SCORE, _score),
    family("product", say.PRODUCT, _product),
    family("partition", say.PARTITION, _partition),
    family("replace", say.REPLACE, _replace),
    family("branch", say.BRANCH, _branch),
    family("clamp", say.CLAMP, _clamp),
)
