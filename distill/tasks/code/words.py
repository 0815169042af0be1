"""Families on a list of words: filters, maps, sorting, the longest, lengths."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill.tasks.code.build import CodeFamily, Program, family, word_list
from distill.tasks.code.frames import Say
from distill.tasks.code.number_ops import pick_reducer
from distill.tasks.code.ops import (
    map_slots,
    pred_slots,
    reducer_slots,
)
from distill.tasks.code.phrases import (
    HELD_OUT_KEEP,
    HELD_OUT_KEEP_EACH,
    HELD_OUT_KEEP_EACH_ORDERS,
    HELD_OUT_KEEP_ORDERS,
    KEEP,
    KEEP_EACH,
    KEEP_EACH_ORDERS,
    KEEP_ORDERS,
    listed,
)
from distill.tasks.code.samples import lists_for, word_lists
from distill.tasks.code.word_ops import (
    pick_word_map,
    pick_word_pred,
)
from distill.tasks.code.wordings import numbers as numbers_say
from distill.tasks.code.wordings import words as say
from distill.tasks.phrasing import pick


@dataclass(frozen=True)
class _SortKey:
    key: str
    code: str  # the `key=` argument with its comma, or nothing
    of: Callable[[str], Any]
    wordings: tuple[str, ...]


_SORT_KEYS = (
    _SortKey("alphabet", "", lambda w: w, ("in alphabetical order", "alphabetically")),
    _SortKey("length", ", key=len", lambda w: sum(1 for _ in w), ("by length", "by their number of letters")),
    _SortKey("last", ", key=lambda w: w[-1]", lambda w: ord(w[-1]), ("by their last letter", "by last letter")),
    _SortKey("backwards", ", key=lambda w: w[::-1]", lambda w: "".join(reversed(w)), ("by their spelling backwards",)),
)


def _word_filter(rng: random.Random) -> Program:
    param, slots = word_list(rng)
    pred = pick_word_pred(rng)
    return Program(
        key=pred.key,
        params=(param,),
        body=f"return [w for w in {param} if {pred.on('w')}]",
        run=lambda items: list(filter(pred.test, items)),
        inputs=lists_for(rng, pred),
        slots=slots | pred_slots(rng, pred),
    )


def _word_map(rng: random.Random) -> Program:
    param, slots = word_list(rng)
    first, second = pick_word_map(rng), pick_word_map(rng)
    while second.key == first.key:
        second = pick_word_map(rng)
    return Program(
        key=f"{first.key} | {second.key}",
        params=(param,),
        body=f"return [{second.on(first.on('w'))} for w in {param}]",
        run=lambda items: [second.apply(first.apply(w)) for w in items],
        inputs=[*word_lists(rng), (["entertainment", "Area"],)],
        slots=slots | map_slots(rng, first) | map_slots(rng, second, "2"),
    )


def _word_filter_map(rng: random.Random) -> Program:
    param, slots = word_list(rng)
    pred, op = pick_word_pred(rng), pick_word_map(rng)
    return Program(
        key=f"{pred.key} | {op.key}",
        params=(param,),
        body=f"return [{op.on('w')} for w in {param} if {pred.on('w')}]",
        run=lambda items: [op.apply(w) for w in items if pred.test(w)],
        inputs=lists_for(rng, pred),
        slots=slots | pred_slots(rng, pred) | map_slots(rng, op),
    )


def _word_sort(rng: random.Random) -> Program:
    param, slots = word_list(rng)
    pred, by, down = pick_word_pred(rng), pick(rng, _SORT_KEYS), rng.random() < 0.5

    def run(items: list[str]) -> list[str]:
        kept: list[str] = []
        for item in filter(pred.test, items):
            value = by.of(item)
            kept.insert(sum((by.of(w) >= value) if down else (by.of(w) <= value) for w in kept), item)
        return kept

    order = pick(rng, by.wordings) + (pick(rng, (", in reverse", " in reverse order", ", reversed")) if down else "")
    return Program(
        key=f"{pred.key} | {by.key} {'down' if down else 'up'}",
        params=(param,),
        body=f"kept = [w for w in {param} if {pred.on('w')}]\n"
        f"return sorted(kept{by.code}{', reverse=True' if down else ''})",
        run=run,
        inputs=[*lists_for(rng, pred), (rng.sample(pred.yes, min(4, len(pred.yes))),)],
        slots=slots | pred_slots(rng, pred) | {"order": order},
    )


def _word_best(rng: random.Random) -> Program:
    param, slots = word_list(rng)
    pred, longest = pick_word_pred(rng), rng.random() < 0.5
    word = "max" if longest else "min"
    default = pick(rng, ("", "none", "-", None))

    def run(items: list[str]) -> str | None:
        best: str | None = default
        size: int | None = None
        for item in filter(pred.test, items):
            if size is None or (len(item) > size if longest else len(item) < size):
                best, size = item, len(item)
        return best

    code = "None" if default is None else f'"{default}"'
    text = "None" if default is None else f"'{default}'"
    return Program(
        key=f"{pred.key} | {word} {default}",
        params=(param,),
        body=f"kept = [w for w in {param} if {pred.on('w')}]\nreturn {word}(kept, key=len, default={code})",
        run=run,
        inputs=[*lists_for(rng, pred), (rng.sample(pred.yes, min(4, len(pred.yes))),)],
        slots=slots | pred_slots(rng, pred) | {"best": "longest" if longest else "shortest", "default": text},
    )


def _word_lengths(rng: random.Random) -> Program:
    param, slots = word_list(rng)
    pred, reducer = pick_word_pred(rng), pick_reducer(rng)
    return Program(
        key=f"{pred.key} | {reducer.key}",
        params=(param,),
        body="return " + reducer.on(f"[len(w) for w in {param} if {pred.on('w')}]"),
        run=lambda items: reducer.apply([sum(1 for _ in w) for w in items if pred.test(w)]),
        inputs=lists_for(rng, pred),
        slots=slots | pred_slots(rng, pred) | reducer_slots(rng, reducer),
    )


def _word_dict(rng: random.Random) -> Program:
    param, slots = word_list(rng)
    pred, op = pick_word_pred(rng), pick_word_map(rng)
    lengths = rng.random() < 0.3
    value = "len(w)" if lengths else op.on("w")
    said = pick(rng, ("its length", "its number of letters")) if lengths else f"the word {pick(rng, op.wordings)}"
    return Program(
        key=f"{pred.key} | {'len' if lengths else op.key}",
        params=(param,),
        body=f"return {{w: {value} for w in {param} if {pred.on('w')}}}",
        run=lambda items: dict((w, len(w) if lengths else op.apply(w)) for w in items if pred.test(w)),
        inputs=lists_for(rng, pred),
        slots=slots | pred_slots(rng, pred) | {"value": said},
    )


WORD_FAMILIES: tuple[CodeFamily, ...] = (
    family("word_filter", Say(listed(KEEP), KEEP_ORDERS, HELD_OUT_KEEP, HELD_OUT_KEEP_ORDERS), _word_filter),
    family("word_steps", numbers_say.TWO_MAPS, _word_map),
    family(
        "word_filter_map",
        Say(listed(KEEP_EACH), KEEP_EACH_ORDERS, HELD_OUT_KEEP_EACH, HELD_OUT_KEEP_EACH_ORDERS),
        _word_filter_map,
    ),
    family("word_sort", say.WORD_SORT, _word_sort),
    family("word_best", say.WORD_BEST, _word_best),
    family("word_lengths", say.WORD_LENGTHS, _word_lengths),
    family("word_dict", say.WORD_DICT, _word_dict),
)
