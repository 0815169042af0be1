"""Families that look for numbers in a list: the first, the last, where, whether all or any."""

import random

from distill.tasks.code.build import CodeFamily, Program, family, number_list_and_pred
from distill.tasks.code.samples import lists_for
from distill.tasks.code.wordings import search as say
from distill.tasks.phrasing import pick


def _first(rng: random.Random) -> Program:
    param, pred, slots = number_list_and_pred(rng)
    default = pick(rng, (0, -1, None))
    return Program(
        key=f"{pred.key} | {default}",
        params=(param,),
        body=f"for x in {param}:\n    if {pred.on('x')}:\n        return x\nreturn {default}",
        run=lambda items: next(filter(pred.test, items), default),
        inputs=lists_for(rng, pred),
        slots=slots | {"default": str(default)},
    )


def _last(rng: random.Random) -> Program:
    param, pred, slots = number_list_and_pred(rng)
    default = pick(rng, (0, -1, None))
    return Program(
        key=f"{pred.key} | {default}",
        params=(param,),
        body=f"for x in reversed({param}):\n    if {pred.on('x')}:\n        return x\nreturn {default}",
        run=lambda items: ([default] + [i for i in items if pred.test(i)])[-1],
        inputs=lists_for(rng, pred),
        slots=slots | {"default": str(default)},
    )


def _index(rng: random.Random) -> Program:
    param, pred, slots = number_list_and_pred(rng)
    default = pick(rng, (-1, None))
    return Program(
        key=f"{pred.key} | {default}",
        params=(param,),
        body=f"for i, x in enumerate({param}):\n    if {pred.on('x')}:\n        return i\nreturn {default}",
        run=lambda items: next((k for k in range(len(items)) if pred.test(items[k])), default),
        inputs=lists_for(rng, pred),
        slots=slots | {"default": str(default)},
    )


def _positions(rng: random.Random) -> Program:
    param, pred, slots = number_list_and_pred(rng)
    return Program(
        key=pred.key,
        params=(param,),
        body=f"return [i for i, x in enumerate({param}) if {pred.on('x')}]",
        run=lambda items: [k for k in range(len(items)) if pred.test(items[k])],
        inputs=lists_for(rng, pred),
        slots=slots,
    )


def _all(rng: random.Random) -> Program:
    param, pred, slots = number_list_and_pred(rng)
    return Program(
        key=pred.key,
        params=(param,),
        body=f"return all({pred.on('x')} for x in {param})",
        run=lambda items: not [i for i in items if not pred.test(i)],
        inputs=[*lists_for(rng, pred)[:3], (list(pred.yes[:3]),), (list(pred.yes[3:5]),), (list(pred.no[:2]),)],
        slots=slots,
    )


def _any(rng: random.Random) -> Program:
    param, pred, slots = number_list_and_pred(rng)
    negated = rng.random() < 0.5
    said = (
        (
            "no {item} in {src} {pred1}",
            "none of the {items} in {src} {pred}",
            "not one {item} in {src} {pred1}",
            "{src} has no {item} that {pred1}",
            "there is no {item} in {src} that {pred1}",
            "not even one {item} of {src} {pred1}",
        )
        if negated
        else (
            "any {item} in {src} {pred1}",
            "at least one {item} in {src} {pred1}",
            "some {item} in {src} {pred1}",
            "one or more of the {items} in {src} {pred}",
            "{src} has at least one {item} that {pred1}",
            "there is some {item} in {src} that {pred1}",
        )
    )
    return Program(
        key=f"{'none' if negated else 'any'} | {pred.key}",
        params=(param,),
        body=f"return {'not ' if negated else ''}any({pred.on('x')} for x in {param})",
        run=lambda items: bool([i for i in items if pred.test(i)]) is not negated,
        inputs=[*lists_for(rng, pred)[:3], (list(pred.no[:3]),), (list(pred.no[3:5]),), (list(pred.yes[:2]),)],
        slots=slots | {"claim": pick(rng, said).format_map(slots)},
    )


SEARCH_FAMILIES: tuple[CodeFamily, ...] = (
    family("first", say.FIRST, _first),
    family("last", say.LAST, _last),
    family("index", say.INDEX, _index),
    family("positions", say.POSITIONS, _positions),
    family("all", say.ALL, _all),
    family("any", say.ANY, _any),
)
