"""Families on one number: ranges, recursion, loops with a condition, digits."""

import random

from distill.tasks.code.build import SCALARS, CodeFamily, Program, family, scalar
from distill.tasks.code.frames import Say
from distill.tasks.code.number_ops import COUNT, pick_map, pick_reducer
from distill.tasks.code.number_preds import pick_pred
from distill.tasks.code.ops import (
    Pred,
    map_slots,
    pred_slots,
    reducer_slots,
)
from distill.tasks.code.phrases import (
    HELD_OUT_KEEP,
    HELD_OUT_KEEP_ORDERS,
    KEEP,
    KEEP_ORDERS,
    REDUCED_KEEP,
    REDUCED_KEEP_EACH,
    listed,
)
from distill.tasks.code.wordings import scalars as say
from distill.tasks.phrasing import pick


def _range_source(rng: random.Random) -> tuple[str, int, dict[str, str]]:
    """The integers from a constant up to a parameter."""
    param, start = pick(rng, SCALARS), rng.randrange(0, 6)
    src = pick(rng, (f"the range from {start} to `{param}`", f"the range from {start} to {param} inclusive"))
    items = pick(rng, ("numbers", "integers", "numbers"))
    return param, start, {"src": src, "items": items, "item": items[:-1]}


def _ends(rng: random.Random, pred: Pred) -> list[tuple[object, ...]]:
    near = [x for x in (*pred.yes[:2], *pred.no[:2]) if 0 <= x <= 33]
    ends = dict.fromkeys((0, rng.randrange(4, 12), rng.randrange(12, 24), *near))
    return [(end,) for end in ends]


def _range_filter(rng: random.Random) -> Program:
    param, start, slots = _range_source(rng)
    pred = pick_pred(rng)
    return Program(
        key=f"{start} | {pred.key}",
        params=(param,),
        body=f"return [x for x in range({start}, {param} + 1) if {pred.on('x')}]",
        run=lambda end: [i for i in range(end + 1) if i >= start and pred.test(i)],
        inputs=_ends(rng, pred),
        slots=slots | pred_slots(rng, pred),
    )


def _range_reduce(rng: random.Random) -> Program:
    param, start, slots = _range_source(rng)
    pred, op = pick_pred(rng), pick_map(rng)
    reducer = pick_reducer(rng)
    return Program(
        key=f"{start} | {pred.key} | {op.key} | {reducer.key}",
        params=(param,),
        body="return " + reducer.on(f"[{op.on('x')} for x in range({start}, {param} + 1) if {pred.on('x')}]"),
        run=lambda end: reducer.apply([op.apply(i) for i in range(end + 1) if i >= start and pred.test(i)]),
        inputs=_ends(rng, pred),
        slots=slots | pred_slots(rng, pred) | map_slots(rng, op) | reducer_slots(rng, reducer),
    )


def _recursive(rng: random.Random) -> Program:
    param, slots = scalar(rng)
    base, value, step = rng.randrange(0, 4), rng.randrange(0, 11), rng.randrange(1, 5)
    factor = rng.randrange(2, 6)
    words, code, combine = pick(
        rng,
        (
            (f"{param} plus the result for", f"{param} + <call>", lambda n, r: r + n),
            (f"{param} times the result for", f"{param} * <call>", lambda n, r: r * n),
            (f"{factor} plus the result for", f"{factor} + <call>", lambda n, r: r + factor),
            (f"{factor} times the result for", f"{factor} * <call>", lambda n, r: r * factor),
        ),
    )
    call = f"<self>({param} - {step})"

    def run(n: int) -> int:
        chain = []
        while n > base:
            chain.append(n)
            n -= step
        result = value
        for item in reversed(chain):
            result = combine(item, result)
        return result

    return Program(
        key=f"{base} {value} {step} | {code.replace(param, 'n')}",
        params=(param,),
        body=f"if {param} <= {base}:\n    return {value}\nreturn {code.replace('<call>', call)}",
        run=run,
        inputs=[(0,), (base,), (base + 1,), (base + step,), (base + step + 1,), (7,)],
        slots=slots | {"base": str(base), "value": str(value), "rule": f"{words} {param} - {step}", "n": param},
    )


def _two_steps(rng: random.Random) -> Program:
    param, slots = scalar(rng)
    first, second = pick_map(rng), pick_map(rng)
    while second.key == first.key:
        second = pick_map(rng)
    return Program(
        key=f"{first.key} | {second.key}",
        params=(param,),
        body=f"return {second.on(first.on(param))}",
        run=lambda n: second.apply(first.apply(n)),
        inputs=[(0,), (1,), (-3,), (rng.randrange(2, 10),), (rng.randrange(10, 31),)],
        slots=slots | map_slots(rng, first) | map_slots(rng, second, "2"),
    )


def _steps(rng: random.Random) -> Program:
    param, slots = scalar(rng)
    limit, amount = rng.randrange(1, 21), rng.randrange(2, 11)
    divide = rng.random() < 0.5
    orders = (
        (f"integer-divided by {amount}", f"divided by {amount} and rounded down")
        if divide
        else (f"decreased by {amount}", f"reduced by {amount}", f"lowered by {amount}")
    )

    def run(n: int) -> int:
        count = 0
        while n > limit:
            n = (n - n % amount) // amount if divide else n - amount
            count += 1
        return count

    return Program(
        key=f"{'divide' if divide else 'subtract'} {amount} {limit}",
        params=(param,),
        body=f"steps = 0\nwhile {param} > {limit}:\n    {param} {'//=' if divide else '-='} {amount}\n    steps += 1\n"
        "return steps",
        run=run,
        inputs=[(limit,), (limit + 1,), (limit + amount,), (limit + amount + 1,), (60,), (rng.randrange(61, 200),)],
        slots=slots | {"limit": str(limit), "map": pick(rng, orders)},
    )


def _digits(rng: random.Random) -> Program:
    param = pick(rng, SCALARS)
    pred = pick_pred(rng)
    while {True, False} != {pred.test(d) for d in range(10)}:
        pred = pick_pred(rng)
    reducer = COUNT if rng.random() < 0.2 else pick_reducer(rng)
    src = pick(rng, (f"`{param}`", param, f"the number `{param}`"))
    return Program(
        key=f"{pred.key} | {reducer.key}",
        params=(param,),
        body=f"digits = [int(c) for c in str({param})]\nreturn " + reducer.on(f"[x for x in digits if {pred.on('x')}]"),
        run=lambda n: reducer.apply([d for d in map("0123456789".index, f"{n}") if pred.test(d)]),
        inputs=[(0,), (rng.randrange(1, 10),), *((rng.randrange(100, 10**7),) for _ in range(4))],
        slots={"src": src, "items": "digits", "item": "digit"} | pred_slots(rng, pred) | reducer_slots(rng, reducer),
    )


SCALAR_FAMILIES: tuple[CodeFamily, ...] = (
    family("range_filter", Say(listed(KEEP), KEEP_ORDERS, HELD_OUT_KEEP, HELD_OUT_KEEP_ORDERS), _range_filter),
    family(
        "range_reduce",
        REDUCED_KEEP_EACH,
        _range_reduce,
    ),
    family("recursive", say.RECURSIVE, _recursive),
    family("two_steps", say.TWO_STEPS, _two_steps),
    family("steps", say.STEPS, _steps),
    family(
        "digits",
        REDUCED_KEEP,
        _digits,
    ),
)
