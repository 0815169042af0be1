"""Instruction families: right answers by independent means, phrasings, word coverage, value spaces."""

import json
import random
import re

import pytest

from distill.tasks.families import INSTRUCTION_FAMILIES
from distill.tasks.instructions import arithmetic, words
from distill.tasks.phrasing import INSTRUCTION_SUFFIXES, PREFIXES, SUFFIXES, expand, render_plainly
from distill.tasks.registry import FAMILIES
from distill.tasks.types import Draw, Family

FAMILY_IDS = [family.name for family in INSTRUCTION_FAMILIES]
WORD = re.compile(r"[a-z']+")


def final(draw: Draw) -> str:
    return draw.answer.rpartition("Answer: ")[2]


def draws(name: str, count: int = 200) -> list[Draw]:
    rng = random.Random(name)
    return [FAMILIES[name].draw(rng) for _ in range(count)]


def words_of(texts: tuple[str, ...]) -> set[str]:
    return {word for text in texts for word in WORD.findall(re.sub(r"\{\w+\}", " ", text.lower()))}


def normalised(template: str) -> str:
    return " ".join(re.findall(r"\{\w+\}|\w+", template.lower()))


def test_column_arithmetic_by_hand() -> None:
    assert arithmetic.addition_steps(478, 56) == [
        "8 + 6 = 14, write 4 carry 1",
        "7 + 5 + 1 = 13, write 3 carry 1",
        "4 + 0 + 1 = 5, write 5",
    ]
    assert arithmetic.subtraction_steps(203, 45) == [
        "13 - 5 = 8, write 8 borrow 1",
        "10 - 4 - 1 = 5, write 5 borrow 1",
        "2 - 0 - 1 = 1, write 1",
    ]
    assert arithmetic.multiplication_steps(47, 6) == [
        "7 x 6 = 42, write 2 carry 4",
        "4 x 6 = 24, 24 + 4 = 28, write 28",
    ]
    assert arithmetic.division_steps(438, 6) == ["4 / 6 = 0 rest 4", "43 / 6 = 7 rest 1", "18 / 6 = 3 rest 0"]
    assert arithmetic.comparison_steps(478, 487) == ["4 = 4, 7 < 8"]
    assert words.count_steps("banana", "a") == "b, a 1, n, a 2, n, a 3"


@pytest.mark.parametrize("name", ["add", "subtract", "multiply"])
def test_written_digits_read_upwards_are_the_answer(name: str) -> None:
    for draw in draws(name):
        written = re.findall(r"write (\d+)", draw.answer)
        assert str(int("".join(reversed(written)))) == final(draw)


def test_every_step_equation_holds() -> None:
    checked = 0
    for family in INSTRUCTION_FAMILIES:
        for draw in draws(family.name, 50):
            for left, right in re.findall(r"(?<![\w-])(\d+(?: [-+x] \d+)+) = (\d+)(?!\d| x)", draw.answer):
                assert eval(left.replace("x", "*")) == int(right), (family.name, draw.answer)
                checked += 1
    assert checked > 1000


def test_answers_by_independent_means() -> None:
    for draw in draws("divide"):
        assert int(draw.slots["a"]) == int(final(draw)) * int(draw.slots["b"])
    for draw in draws("reverse_word"):
        assert list(final(draw)) == list(reversed(draw.slots["word"]))
    for draw in draws("sort_words"):
        assert final(draw).split(", ") == sorted(draw.slots["items"].split(", "))
    for draw in draws("remove_duplicates"):
        assert final(draw).split(", ") == list(dict.fromkeys(draw.slots["items"].split(", ")))
    for draw in draws("largest"):
        assert int(final(draw)) == max(map(int, draw.slots["numbers"].split(", ")))
    for draw in draws("smallest"):
        assert int(final(draw)) == min(map(int, draw.slots["numbers"].split(", ")))
    for draw in draws("extract_json"):
        assert all(str(value) in draw.slots["text"] for value in json.loads(final(draw)).values())
    for draw in draws("question_about_text"):
        assert final(draw) in draw.slots["text"]
    for draw in draws("order_of_three"):
        names = re.findall(r'"(\w+)" is (\w+) than "(\w+)"', draw.slots["facts"])
        above = {x for x, _, _ in names} - {z for _, _, z in names}
        below = {z for _, _, z in names} - {x for x, _, _ in names}
        relation = names[0][1]
        top = draw.slots["most"].rstrip("st") == relation.rstrip("r")
        assert {final(draw)} == (above if top else below), draw


def test_dates_agree_with_the_calendar() -> None:
    from datetime import datetime, timedelta

    for draw in draws("date_after"):
        for year in (2023, 2024):  # leap or not must not matter
            start = datetime.strptime(f"{draw.slots['date']} {year}", "%B %d %Y")
            end = start + timedelta(days=int(draw.slots["days"]))
            assert final(draw) == f"{end:%B} {end.day}"
    for draw in draws("weekday_after"):
        monday = datetime(2024, 1, 1)
        start = next(
            day for day in (monday + timedelta(days=i) for i in range(7)) if f"{day:%A}" == draw.slots["weekday"]
        )
        assert final(draw) == f"{start + timedelta(days=int(draw.slots['days'])):%A}"
    for draw in draws("iso_date"):
        assert final(draw) == datetime.strptime(draw.slots["date"], "%B %d, %Y").strftime("%Y-%m-%d")


def test_logic_by_evaluation() -> None:
    for draw in draws("true_or_false"):
        values = {name: value == "true" for name, value in re.findall(r'"(\w+)" is (true|false)', draw.slots["facts"])}
        expression = draw.slots["expr"]
        for name, value in values.items():
            expression = expression.replace(f'"{name}"', str(value))
        assert final(draw) == str(eval(expression)).lower()


def test_at_least_28_families() -> None:
    assert len(INSTRUCTION_FAMILIES) >= 28


@pytest.mark.parametrize("family", INSTRUCTION_FAMILIES, ids=FAMILY_IDS)
def test_phrasings(family: Family) -> None:
    assert len(set(family.phrasings)) >= 20
    assert len(set(family.held_out_phrasings)) >= 5
    rng = random.Random(0)
    draw = family.draw(rng)
    for template in (*family.phrasings, *family.held_out_phrasings):
        expanded = expand(template, rng)
        assert "[" not in expanded and "  " not in expanded, template
        assert set(re.findall(r"\{(\w+)\}", expanded)) <= set(draw.slots)
    known = words_of((*family.phrasings, *PREFIXES, *SUFFIXES, *INSTRUCTION_SUFFIXES))
    assert words_of(family.held_out_phrasings) - known == set()
    for held_out in map(normalised, family.held_out_phrasings):
        for template in family.phrasings:
            variants = {normalised(expand(template, rng)) for _ in range(100)}
            assert not any(held_out in variant for variant in variants), (held_out, template)


@pytest.mark.parametrize("family", INSTRUCTION_FAMILIES, ids=FAMILY_IDS)
def test_every_slot_that_decides_the_answer_is_in_every_phrasing(family: Family) -> None:
    """Two draws with different values must never give the same prompt with different answers."""
    rng = random.Random(1)
    for template in (*family.phrasings, *family.held_out_phrasings):
        answers: dict[str, str] = {}
        for _ in range(60):
            draw = family.draw(rng)
            prompt = render_plainly(template, draw.slots, rng)
            assert answers.setdefault(prompt, final(draw)) == final(draw), prompt


@pytest.mark.parametrize("family", INSTRUCTION_FAMILIES, ids=FAMILY_IDS)
def test_value_space_is_big(family: Family) -> None:
    rng = random.Random(2)
    keys = {family.draw(rng).held_out_key for _ in range(12_000)}
    assert len(keys) >= 2000, len(keys)


@pytest.mark.parametrize("family", INSTRUCTION_FAMILIES, ids=FAMILY_IDS)
def test_plain_text_shows_the_steps_and_the_result(family: Family) -> None:
    rng = random.Random(3)
    for _ in range(20):
        draw = family.draw(rng)
        text = family.plain(rng, draw)
        assert final(draw) in text
        assert "Answer:" not in text
