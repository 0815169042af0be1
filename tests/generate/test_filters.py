"""The pure rules, by hand-computed values."""

from __future__ import annotations

import random

import pytest

from distill.generate.filters import Seen, Unlike, bad_instruction
from distill.generate.prompts import text_prompt
from distill.text.code import extract_code
from distill.text.likeness import rouge_l


def longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """By definition, for short lists."""
    if not first or not second:
        return 0
    if first[0] == second[0]:
        return 1 + longest_common_subsequence(first[1:], second[1:])
    return max(longest_common_subsequence(first[1:], second), longest_common_subsequence(first, second[1:]))


def test_rouge_l() -> None:
    # "the cat sat" is common to both: L = 3, lengths 4 and 5, F = 6/9
    assert rouge_l(["the", "cat", "sat", "down"], ["the", "cat", "often", "sat", "there"]) == pytest.approx(6 / 9)
    assert rouge_l(["a"], ["a"]) == 1.0
    assert rouge_l([], ["a"]) == 0.0
    rng = random.Random(0)
    for _ in range(200):
        first = [rng.choice("abc") for _ in range(rng.randint(1, 7))]
        second = [rng.choice("abc") for _ in range(rng.randint(1, 7))]
        expected = 2 * longest_common_subsequence(first, second) / (len(first) + len(second))
        assert rouge_l(first, second) == pytest.approx(expected)


def test_likeness_is_rouge_l_over_the_threshold() -> None:
    likeness = Unlike(profile="english")
    likeness.add("List five uses of a brick in a garden.")
    assert likeness.too_like("List five uses of a brick in the garden!")  # 8 of 9 words: F = 16/18
    assert not likeness.too_like("Name four reasons to plant a tree in a garden.")
    # F = 0.7 exactly is kept: 7 of 10 words in order
    exact = Unlike(profile="english")
    exact.add("a b c d e f g h i j")
    assert not exact.too_like("a b c d e f g x y z")
    assert exact.too_like("a b c d e f g h y z")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Explain why ice floats on water.", None),
        ("Say hello there", "too_short"),
        ("word " * 151, "too_long"),
        ("Draw a horse in the field.", "not_for_text"),
        ("Describe the picture that you see.", "not_for_text"),
        ("Withdraw money and graphically explain it.", None),
        ("- start with a bullet here", "odd_start"),
        ("Write a program that sorts numbers.", "write_a_program"),
        ("Écris une lettre à ta mère.", "odd_start"),
    ],
)
def test_self_instruct_rules(text: str, reason: str | None) -> None:
    assert bad_instruction(text, profile="english") == reason


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f(): pass", "def f(): pass"),
        ("```python\ndef f(): pass\n```", "def f(): pass\n"),
        ("```\nx = 1\n```\n```py\nasync def f(): pass\n```", "async def f(): pass\n"),
        ("```\nx = 1\n```\n```\ny = 2\n```", "x = 1\n"),
        ("```\ndef ff(): pass\n```\n```\ndef f(): pass\n```", "def f(): pass\n"),
        ("Sure:\n```python\ndef f(): pass", "def f(): pass"),  # the fence never closes
        ("Use ``` in text. def f(): pass", "Use ``` in text. def f(): pass"),
    ],
)
def test_extract_code(text: str, code: str) -> None:
    assert extract_code(text, "f") == code


def test_seen_is_blind_to_case_width_and_space() -> None:
    seen = Seen()
    assert not seen.before(text_prompt("What is  2 + 2?", None))
    assert seen.before(text_prompt(" what is 2 + 2?\n", None))
    assert seen.before(text_prompt("What is 2 + 2\uff1f", None))  # full-width question mark
    assert not seen.before(text_prompt("What is 2 + 3?", None))
    assert not seen.before(text_prompt("What is 2 + 2?", "Be brief."))
    assert not seen.before(text_prompt("두 수를 더하세요", None))
