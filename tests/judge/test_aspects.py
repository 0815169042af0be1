"""Ratings and scores are read as they were said, or not at all."""

from __future__ import annotations

import pytest

from distill.judge.aspects import ASPECTS, Rating, parse_ratings, parse_score, render_ratings, render_score

TWO = "#### Text 1\nRationale: Clear.\nRating: {first}\n\n#### Text 2\nRationale: Vague,\nand long.\nRating: {second}"


def said(first: str, second: str = "3") -> str:
    return TWO.format(first=first, second=second)


def test_all_texts_are_shown_in_one_call_with_the_scale_of_the_aspect() -> None:
    assert ASPECTS == ("instruction_following", "truthfulness", "honesty", "helpfulness")
    asked = {aspect: render_ratings(aspect, "Name a river.", ["The Rhine", "A lake"]) for aspect in ASPECTS}
    for text in asked.values():
        assert "<text 1>\nThe Rhine\n</text 1>" in text and "<text 2>\nA lake\n</text 2>" in text
        assert "Name a river." in text and "scale from 1 to 5" in text and "Rate 2 texts" in text
    assert len(set(asked.values())) == 4
    assert [aspect for aspect in ASPECTS if "N/A" in asked[aspect]] == ["honesty"]


def test_a_reply_in_its_form() -> None:
    assert parse_ratings(said("4"), "helpfulness", 2) == [Rating(4, "Clear."), Rating(3, "Vague, and long.")]
    decorated = "### Output\n#### Output for Text 1:\n**Rating:** 5/5\n**Rationale:** Good."
    assert parse_ratings(decorated, "truthfulness", 1) == [Rating(5, "Good.")]
    assert parse_ratings(said("N/A"), "honesty", 2) == [Rating(None, "Clear."), Rating(3, "Vague, and long.")]


@pytest.mark.parametrize("grade", ["10", "0", "6", "4.5", "4 or 5", "1-5", "four", "", "5/10", "N/A", "-3", "15/5"])
def test_what_is_no_grade_of_the_scale_is_no_judgement(grade: str) -> None:
    assert parse_ratings(said(grade), "helpfulness", 2) is None


@pytest.mark.parametrize(
    "reply",
    [
        said("4").replace("#### Text 2", "#### Text 3"),
        said("4").replace("#### Text 1", "#### Text 2"),
        said("4").partition("#### Text 2")[0],
        said("4") + "\n\n#### Text 3\nRationale: Who?\nRating: 3",
        said("4").replace("Rating: 3", ""),
        said("4") + "\nRating: 5",
        said("4").replace("Rationale: Clear.\n", ""),
        "Both are good: 4 and 3.",
        "",
    ],
)
def test_a_missing_or_doubled_part_is_no_judgement(reply: str) -> None:
    assert parse_ratings(reply, "helpfulness", 2) is None


@pytest.mark.parametrize(
    ("line", "score"),
    [
        ("Overall Score: 1", 1),  # the published reading made 10 of it
        ("Overall Score: 10", 10),
        ("Overall Score: 1/10", 1),
        ("**Overall Score:** 10/10.", 10),
        ("Overall Score: 1.0", None),
        ("Overall Score: 0", None),
        ("Overall Score: 11", None),
        ("Overall Score: 100", None),
        ("Overall Score: 7/5", None),
        ("Overall Score: [1-10]", None),
        ("Overall Score: 7\nOverall Score: 8", None),
        ("Overall Score: 7\nBut see above.", None),
        ("Score: 7", None),
    ],
)
def test_an_overall_score_is_said_once_and_last(line: str, score: int | None) -> None:
    found = parse_score(f"Say why.\n{line}")
    assert found == (None if score is None else (score, "Say why."))


def test_the_critic_sees_one_answer() -> None:
    asked = render_score("Name a river.\nNote: Be honest.", "The Rhine")
    assert "Note: Be honest." in asked and "### Answer\nThe Rhine" in asked


def test_what_is_known_reaches_the_judge_of_truthfulness_alone() -> None:
    """As UltraFeedback does where its data set has answers that are known to be right."""
    for aspect in ASPECTS:
        asked = render_ratings(aspect, "Name a river.", ["The Rhine"], "Correct: the Rhine.\nWrong: the Alps.")
        bare = render_ratings(aspect, "Name a river.", ["The Rhine"])
        assert asked.removeprefix(bare).startswith("\n\n### World knowledge\n") == (aspect == "truthfulness")
        assert asked.endswith("Correct: the Rhine.\nWrong: the Alps.") == (aspect == "truthfulness")
        assert "World knowledge" not in bare
