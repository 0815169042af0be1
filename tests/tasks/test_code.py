"""Every code family: its references pass their own tests, mistakes fail them, and there is enough to hold out."""

import builtins
import itertools
import random
import re
from collections.abc import Iterable
from keyword import iskeyword

import pytest

from distill.tasks.code import CODE_FAMILIES
from distill.tasks.code.build import CodeFamily
from distill.tasks.code.char_ops import (
    CHAR_PREDS,
)
from distill.tasks.code.frames import FRAMES, HELD_OUT_FRAMES, MADE_ORDER
from distill.tasks.code.number_ops import MAPS, REDUCERS
from distill.tasks.code.number_preds import PREDS
from distill.tasks.code.word_ops import (
    WORD_MAPS,
    WORD_PREDS,
)
from distill.tasks.phrasing import expand, pick
from distill.tasks.types import Family

BY_NAME = {family.name: family for family in CODE_FAMILIES}
families = pytest.mark.parametrize("family", CODE_FAMILIES, ids=lambda family: family.name)


def passes(source: str, tests: tuple[str, ...]) -> bool:
    """Whether our own source passes; it runs in this process, so never give it a candidate's."""
    scope: dict[str, object] = {}
    try:
        exec(source, scope)
        for test in tests:
            exec(test, scope)
    except Exception:
        return False
    return True


def test_there_are_enough_families_and_their_names_differ() -> None:
    assert len(CODE_FAMILIES) >= 44
    assert len(BY_NAME) == len(CODE_FAMILIES)
    assert all(family.kind == "code" and family.name.startswith("code_") for family in CODE_FAMILIES)


@families
def test_references_pass_their_tests(family: Family) -> None:
    rng = random.Random(7)
    for _ in range(25):
        draw = family.draw(rng)
        assert passes(draw.answer, draw.tests), draw.answer
        assert draw.answer.startswith(f"def {draw.entry_point}(")
        assert len(draw.tests) >= 4
        assert all(test.startswith(f"assert {draw.entry_point}(") for test in draw.tests)


def test_an_answer_of_another_composition_fails() -> None:
    rng = random.Random(10)
    family = BY_NAME["code_filter_map"]
    draws = [family.draw(rng) for _ in range(60)]
    wrong = 0
    for one, other in zip(draws, draws[1:], strict=False):
        renamed = other.answer.replace(str(other.entry_point), str(one.entry_point))
        wrong += one.held_out_key != other.held_out_key and passes(renamed, one.tests)
    assert wrong <= 1


@families
def test_there_are_compositions_enough(family: Family) -> None:
    rng = random.Random(11)
    assert len({family.draw(rng).held_out_key for _ in range(1500)}) >= 60


@families
def test_phrasings_are_many_and_fill_completely(family: Family) -> None:
    assert len(family.phrasings) >= 15
    assert len(family.held_out_phrasings) >= 5
    assert not set(family.phrasings) & set(family.held_out_phrasings)
    rng = random.Random(12)
    for phrasing in (*family.phrasings, *family.held_out_phrasings):
        for _ in range(8):
            draw = family.draw(rng)
            template = expand(phrasing, rng)
            assert not re.search(r"[\[\]<>|]", template), template
            prompt = template.format_map(draw.slots)
            assert str(draw.entry_point) in prompt
            assert "{" not in prompt.replace("{**", "")
            assert len(prompt) < 420


def readings(texts: Iterable[str]) -> set[str]:
    """Every reading of the texts' alternations, in small letters."""
    found: set[str] = set()
    for text in texts:
        pieces = re.split(r"\[([^\[\]]*\|[^\[\]]*)\]", text.lower())
        options = [piece.split("|") if i % 2 else [piece] for i, piece in enumerate(pieces)]
        found.update(" ".join("".join(picked).split()) for picked in itertools.product(*options))
    return found


def bare_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}|<\w>", " ", text.lower())))


def training_texts() -> set[str]:
    return readings((*FRAMES, *(text for family in CODE_FAMILIES for text in (*family.say.nouns, *family.say.orders))))


def held_out_texts() -> set[str]:
    says = [family.say for family in CODE_FAMILIES]
    return readings((*HELD_OUT_FRAMES, *(t for say in says for t in (*say.held_out_nouns, *say.held_out_orders))))


@families
def test_a_family_has_many_descriptions(family: CodeFamily) -> None:
    for texts in (family.say.nouns, family.say.orders):
        assert len(set(texts)) == len(texts) >= 8


def test_there_are_many_frames() -> None:
    assert len(set(FRAMES)) == len(FRAMES) >= 45


def test_held_out_texts_are_not_in_training_texts() -> None:
    training = training_texts()
    for text in held_out_texts():
        assert not [other for other in training if text in other]
    for frame in readings(HELD_OUT_FRAMES):
        assert not [other for other in readings(FRAMES) if other in frame]


@families
def test_no_training_description_is_a_held_out_one_of_its_family(family: CodeFamily) -> None:
    training = readings((*family.say.nouns, *family.say.orders))
    held_out = readings((*family.say.held_out_nouns, *family.say.held_out_orders))
    assert not [text for text in training if any(text in other for other in held_out)]


def test_every_word_of_the_held_out_texts_is_known_from_training() -> None:
    known = set().union(*(bare_words(text) for text in training_texts())) | bare_words(MADE_ORDER)
    met = set().union(*(bare_words(text) for text in held_out_texts())) | {"produce", "return"}
    assert not met - known


@families
def test_every_text_renders(family: CodeFamily) -> None:
    rng = random.Random(15)
    say = family.say
    for text in (*say.nouns, *say.orders, *say.held_out_nouns, *say.held_out_orders):
        for _ in range(200 // len(say.nouns) + 1):
            rendered = expand(text, rng).format_map(family.draw(rng).slots)
            assert not re.search(r"[{}\[\]<>]|  |\|(?!')", rendered), rendered


def test_names_are_varied_and_hide_nothing() -> None:
    rng = random.Random(16)
    draws = [pick(rng, CODE_FAMILIES).draw(rng) for _ in range(4000)]
    names = {str(draw.entry_point) for draw in draws}
    assert len(names) > 3000
    assert all(name.isidentifier() and not iskeyword(name) and name not in dir(builtins) for name in names)
    assert all(not re.search(rf"\b{draw.entry_point}\b", draw.slots["args"]) for draw in draws)
    assert sum("_" not in name for name in names) > 300


@families
def test_plain_text_has_the_code_and_no_instruction(family: Family) -> None:
    rng = random.Random(13)
    for _ in range(20):
        draw = family.draw(rng)
        text = family.plain(rng, draw)
        body = draw.answer.partition("\n")[2]
        assert body in text
        assert not re.search(r"<\w+>", text), text
        assert not re.search(r"\b(Write a|Implement|Please|Complete|Task)\b", text)


def test_a_family_draws_the_same_from_the_same_seed() -> None:
    for family in CODE_FAMILIES:
        assert family.draw(random.Random(3)) == family.draw(random.Random(3))


def test_answers_are_short() -> None:
    rng = random.Random(14)
    lengths = [len(family.draw(rng).answer) for family in CODE_FAMILIES for _ in range(50)]
    assert max(lengths) < 240
    assert sum(lengths) / len(lengths) < 120


def test_a_hand_checked_composition() -> None:
    """One draw is checked against values computed by hand: the odd ones of 1, 2, 3, 9 squared and added up are 91."""
    odd = next(pred for group in PREDS for pred in group if pred.key == "odd")
    square = next(op for group in MAPS for op in group if op.key == "square")
    total = next(op for group in REDUCERS for op in group if op.key == "sum")
    assert total.apply([square.apply(i) for i in [1, 2, 3, 9] if odd.test(i)]) == 91
    assert total.on(f"[{square.on('x')} for x in nums if {odd.on('x')}]") == (
        "sum([x ** 2 for x in nums if x % 2 == 1])"
    )


@pytest.mark.parametrize("groups", [PREDS, WORD_PREDS, CHAR_PREDS], ids=["numbers", "words", "characters"])
def test_predicates_say_in_code_what_they_test(groups: tuple[tuple[object, ...], ...]) -> None:
    for pred in (pred for group in groups for pred in group):
        check = eval(f"lambda x: {pred.on('x')}")  # type: ignore[attr-defined]
        assert all(check(value) for value in pred.yes), pred  # type: ignore[attr-defined]
        assert not any(check(value) for value in pred.no), pred  # type: ignore[attr-defined]
        assert pred.yes and pred.no  # type: ignore[attr-defined]


@pytest.mark.parametrize("groups", [MAPS, WORD_MAPS], ids=["numbers", "words"])
def test_maps_say_in_code_what_they_do(groups: tuple[tuple[object, ...], ...]) -> None:
    values: tuple[object, ...] = (
        ("", "radar", "Anna", "entertainment") if groups is WORD_MAPS else tuple(range(-15, 40))
    )
    for op in (op for group in groups for op in group):
        code = eval(f"lambda x: {op.on('x')}")  # type: ignore[attr-defined]
        assert [code(value) for value in values] == [op.apply(value) for value in values]  # type: ignore[attr-defined]
