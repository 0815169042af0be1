"""Families that build dicts: counts, groups, pairs of lists, merged dicts."""

import random

from distill.tasks.code.build import (
    DICTS,
    NUMBER_LISTS,
    WORD_LISTS,
    CodeFamily,
    Program,
    family,
    number_list,
    two_of,
)
from distill.tasks.code.number_ops import pick_map
from distill.tasks.code.number_preds import pick_pred
from distill.tasks.code.ops import (
    map_slots,
    pred_slots,
)
from distill.tasks.code.pairs import PAIR_OPS
from distill.tasks.code.samples import dicts_for, ints, lists_for, mixed, plain_lists, words
from distill.tasks.code.wordings import dicts as say
from distill.tasks.phrasing import pick


def _count_by(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    pred, op = pick_pred(rng), pick_map(rng)

    def run(items: list[int]) -> dict[int, int]:
        keys = [op.apply(i) for i in items if pred.test(i)]
        return {key: keys.count(key) for key in keys}

    repeated = mixed(rng, pred, 3)
    return Program(
        key=f"{pred.key} | {op.key}",
        params=(param,),
        body=f"counts = {{}}\nfor x in {param}:\n    if {pred.on('x')}:\n        key = {op.on('x')}\n"
        "        counts[key] = counts.get(key, 0) + 1\nreturn counts",
        run=run,
        inputs=[*lists_for(rng, pred)[:4], (repeated + repeated[:2],)],
        slots=slots | pred_slots(rng, pred) | map_slots(rng, op),
    )


def _group_by(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    op = pick_map(rng)

    def run(items: list[int]) -> dict[int, list[int]]:
        return {op.apply(i): [j for j in items if op.apply(j) == op.apply(i)] for i in items}

    repeated = ints(rng, 3)
    return Program(
        key=op.key,
        params=(param,),
        body=f"groups = {{}}\nfor x in {param}:\n    groups.setdefault({op.on('x')}, []).append(x)\nreturn groups",
        run=run,
        inputs=[*plain_lists(rng)[:4], (repeated + [-repeated[0], repeated[1]],)],
        slots=slots | map_slots(rng, op),
    )


def _number_dict(rng: random.Random) -> Program:
    param, slots = number_list(rng)
    pred, op = pick_pred(rng), pick_map(rng)
    return Program(
        key=f"{pred.key} | {op.key}",
        params=(param,),
        body=f"return {{x: {op.on('x')} for x in {param} if {pred.on('x')}}}",
        run=lambda items: dict((i, op.apply(i)) for i in items if pred.test(i)),
        inputs=lists_for(rng, pred),
        slots=slots | pred_slots(rng, pred) | map_slots(rng, op),
    )


def _zip_dict(rng: random.Random) -> Program:
    keys, values = pick(rng, WORD_LISTS), pick(rng, NUMBER_LISTS)
    pred, op = pick_pred(rng), pick_map(rng)
    return Program(
        key=f"{pred.key} | {op.key}",
        params=(keys, values),
        body=f"return {{k: {op.on('v')} for k, v in zip({keys}, {values}) if {pred.on('v')}}}",
        run=lambda names, given: dict((names[i], op.apply(x)) for i, x in enumerate(given) if pred.test(x)),
        inputs=[(list(pairs), list(pairs.values())) for (pairs,) in dicts_for(rng, pred)],  # type: ignore[attr-defined, call-overload]
        slots={"keys": f"`{keys}`", "values": f"`{values}`"} | pred_slots(rng, pred) | map_slots(rng, op),
    )


def _merge(rng: random.Random) -> Program:
    first, second = two_of(rng, DICTS)
    pair, default = pick(rng, PAIR_OPS), rng.randrange(13)

    def run(left: dict[str, int], right: dict[str, int]) -> dict[str, int]:
        keys = [*left, *(key for key in right if key not in left)]
        return {key: pair.apply(left.get(key, default), right.get(key, default)) for key in keys}

    inputs: list[tuple[object, ...]] = [({}, {})]
    for size in (1, 2, 2, 3):
        names = words(rng, size + 2)
        left = dict(zip(names[:size], ints(rng, size), strict=True))
        inputs.append((left, dict(zip(names[size - 1 : size + 1], ints(rng, 2), strict=True))))
    value = pair.on(f"{first}.get(k, {default})", f"{second}.get(k, {default})")
    both = pick(rng, (f"`{first}` and `{second}`", f"{first} and {second}", f"the dicts `{first}` and `{second}`"))
    return Program(
        key=f"{pair.key} | {default}",
        params=(first, second),
        body=f"return {{k: {value} for k in {{**{first}, **{second}}}}}",
        run=run,
        inputs=inputs,
        slots={"both": both, "pair": pick(rng, pair.wordings), "default": str(default)},
    )


DICT_MAKING_FAMILIES: tuple[CodeFamily, ...] = (
    family("count_by", say.COUNT_BY, _count_by),
    family("group_by", say.GROUP_BY, _group_by),
    family("number_dict", say.NUMBER_DICT, _number_dict),
    family("zip_dict", say.ZIP_DICT, _zip_dict),
    family("merge", say.MERGE, _merge),
)
