"""Families on strings: characters kept or counted, whole-string steps, checks, joining."""

import random

from distill.tasks.code.build import NUMBER_LISTS, NUMBER_NOUNS, TEXTS, CodeFamily, Program, family, said, source_slots
from distill.tasks.code.char_ops import (
    pick_char_pred,
)
from distill.tasks.code.number_ops import COUNT, pick_map
from distill.tasks.code.number_preds import pick_pred
from distill.tasks.code.ops import (
    map_slots,
    pred_slots,
    reducer_slots,
)
from distill.tasks.code.phrases import REDUCED_KEEP
from distill.tasks.code.samples import chars, lists_for, words
from distill.tasks.code.word_ops import (
    pick_word_map,
    pick_word_pred,
)
from distill.tasks.code.wordings import search as search_say
from distill.tasks.code.wordings import texts as say
from distill.tasks.phrasing import pick

_SEPARATORS = (",", "-", "_", "/", ";", ":", "+", " ", ", ", "--", "|")


def _text(rng: random.Random) -> tuple[str, dict[str, str]]:
    param = pick(rng, TEXTS)
    return param, source_slots(rng, param, ("characters",), "string")


def _texts_for(rng: random.Random, pred_chars: list[str]) -> list[tuple[object, ...]]:
    return [("",), *((text,) for text in pred_chars), (" ".join(words(rng, 2)),)]


def _keep_chars(rng: random.Random) -> Program:
    param, slots = _text(rng)
    pred = pick_char_pred(rng)
    return Program(
        key=pred.key,
        params=(param,),
        body=f'return "".join([c for c in {param} if {pred.on("c")}])',
        run=lambda text: "".join(filter(pred.test, text)),
        inputs=_texts_for(rng, [chars(rng, pred, k) for k in (4, 6, 8)]),
        slots=slots | pred_slots(rng, pred),
    )


def _keep_chars_map(rng: random.Random) -> Program:
    param, slots = _text(rng)
    pred, op = pick_char_pred(rng), pick_word_map(rng)
    return Program(
        key=f"{pred.key} | {op.key}",
        params=(param,),
        body=f'kept = "".join([c for c in {param} if {pred.on("c")}])\nreturn {op.on("kept")}',
        run=lambda text: op.apply("".join(filter(pred.test, text))),
        inputs=_texts_for(rng, [chars(rng, pred, k) for k in (5, 7, 8)]),
        slots=slots | pred_slots(rng, pred) | map_slots(rng, op),
    )


def _count_chars(rng: random.Random) -> Program:
    param, slots = _text(rng)
    pred = pick_char_pred(rng)
    return Program(
        key=pred.key,
        params=(param,),
        body=f"return len([c for c in {param} if {pred.on('c')}])",
        run=lambda text: sum(map(pred.test, text)),
        inputs=_texts_for(rng, [chars(rng, pred, k) for k in (4, 6, 8)]),
        slots=slots | pred_slots(rng, pred) | reducer_slots(rng, COUNT),
    )


def _where_chars(rng: random.Random) -> Program:
    param, slots = _text(rng)
    pred = pick_char_pred(rng)
    return Program(
        key=pred.key,
        params=(param,),
        body=f"return [i for i, c in enumerate({param}) if {pred.on('c')}]",
        run=lambda text: [k for k in range(len(text)) if pred.test(text[k])],
        inputs=_texts_for(rng, [chars(rng, pred, k) for k in (4, 6, 8)]),
        slots=slots | pred_slots(rng, pred),
    )


def _text_steps(rng: random.Random) -> Program:
    param = pick(rng, TEXTS)
    first, second = pick_word_map(rng), pick_word_map(rng)
    while second.key == first.key:
        second = pick_word_map(rng)
    return Program(
        key=f"{first.key} | {second.key}",
        params=(param,),
        body=f"return {second.on(first.on(param))}",
        run=lambda text: second.apply(first.apply(text)),
        inputs=[("",), *((word,) for word in words(rng, 3)), (" ".join(words(rng, 2)),), ("entertainment Area",)],
        slots={"src": said(rng, param, "string")} | map_slots(rng, first) | map_slots(rng, second, "2"),
    )


def _text_check(rng: random.Random) -> Program:
    param = pick(rng, TEXTS)
    first, second = pick_word_pred(rng), pick_word_pred(rng)
    while second.key.split()[0] == first.key.split()[0]:
        second = pick_word_pred(rng)
    joined = pick(rng, ("and", "or"))
    picked = [*first.yes[:2], *first.no[:1], *second.yes[:2], *second.no[:1]]
    both = f"{first.yes[0]}{second.yes[0]}"
    return Program(
        key=f"{first.key} {joined} {second.key}",
        params=(param,),
        body=f"return {first.on(param)} {joined} {second.on(param)}",
        run=lambda text: (first.test(text) + second.test(text)) >= (2 if joined == "and" else 1),
        inputs=[(text,) for text in dict.fromkeys(["", *picked, both])],
        slots={"src": said(rng, param, "string"), "joined": joined}
        | pred_slots(rng, first)
        | pred_slots(rng, second, "2"),
    )


def _join_numbers(rng: random.Random) -> Program:
    param = pick(rng, NUMBER_LISTS)
    pred, op, sep = pick_pred(rng), pick_map(rng), pick(rng, _SEPARATORS)
    return Program(
        key=f"{pred.key} | {op.key} | {sep}",
        params=(param,),
        body=f'return "{sep}".join([str({op.on("x")}) for x in {param} if {pred.on("x")}])',
        run=lambda items: "".join(f"{sep}{op.apply(i)}" for i in items if pred.test(i))[len(sep) :],
        inputs=lists_for(rng, pred),
        slots=source_slots(rng, param, NUMBER_NOUNS, "list")
        | pred_slots(rng, pred)
        | map_slots(rng, op)
        | {"sep": f"'{sep}'"},
    )


def _sentences(rng: random.Random, yes: tuple[str, ...], no: tuple[str, ...]) -> list[tuple[object, ...]]:
    texts = []
    for count in (2, 3, 4):
        picked = [pick(rng, yes), *(pick(rng, pick(rng, (yes, no))) for _ in range(count - 1)), pick(rng, no)]
        rng.shuffle(picked)
        texts.append((" ".join(picked),))
    return [("",), (yes[0],), *texts]


def _split_join(rng: random.Random) -> Program:
    param = pick(rng, TEXTS)
    pred, op, sep = pick_word_pred(rng), pick_word_map(rng), pick(rng, _SEPARATORS)
    return Program(
        key=f"{pred.key} | {op.key} | {sep}",
        params=(param,),
        body=f"kept = [w for w in {param}.split() if {pred.on('w')}]\n"
        f'return "{sep}".join([{op.on("w")} for w in kept])',
        run=lambda text: "".join(f"{sep}{op.apply(w)}" for w in text.split() if pred.test(w))[len(sep) :],
        inputs=_sentences(rng, pred.yes, pred.no),
        slots=source_slots(rng, param, ("words",), "string")
        | pred_slots(rng, pred)
        | map_slots(rng, op)
        | {"sep": f"'{sep}'"},
    )


def _count_split(rng: random.Random) -> Program:
    param = pick(rng, TEXTS)
    pred = pick_word_pred(rng)
    return Program(
        key=pred.key,
        params=(param,),
        body=f"return len([w for w in {param}.split() if {pred.on('w')}])",
        run=lambda text: sum(map(pred.test, text.split())),
        inputs=_sentences(rng, pred.yes, pred.no),
        slots=source_slots(rng, param, ("words",), "string") | pred_slots(rng, pred) | reducer_slots(rng, COUNT),
    )


_COUNTED = REDUCED_KEEP

TEXT_FAMILIES: tuple[CodeFamily, ...] = (
    family("keep_chars", say.KEEP_CHARS, _keep_chars),
    family("keep_chars_map", say.KEEP_CHARS_MAP, _keep_chars_map),
    family("count_chars", _COUNTED, _count_chars),
    family("where_chars", search_say.POSITIONS, _where_chars),
    family("text_steps", say.TEXT_STEPS, _text_steps),
    family("text_check", say.TEXT_CHECK, _text_check),
    family("join_numbers", say.JOIN_NUMBERS, _join_numbers),
    family("split_join", say.SPLIT_JOIN, _split_join),
    family("count_split", _COUNTED, _count_split),
)
