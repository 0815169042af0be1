"""Each filter on rows of its own: what goes, with which reason, and what stays."""

from __future__ import annotations

from typing import Any

import pytest

from distill.generate.row_filters import RowFilters
from distill.recipe.filters import Filters


def row(answer: str, *, question: str = "Why?", name: str = "a") -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "request_hash": name * 64, "entry_point": None}


@pytest.mark.parametrize(
    ("section", "removed", "reason", "stays"),
    [
        ({"length": {"min": 4}}, "a b c", "answer_too_short", "a b c d"),  # white space does not count
        ({"length": {"max": 3}}, "abcd", "answer_too_long", "a b c"),
        ({"profile": "english", "length": {"min": 2}}, "unbelievable", "answer_too_short", "two words"),
        ({"boilerplate": True}, "I think so. I hope this helps!", "boilerplate", "I think so."),
        ({"personal_data": True}, "Write to kim@mail-of-kim.net.", "personal_data", "Write to me@example.com."),
    ],
)
def test_a_filter_removes_one_and_keeps_the_other(
    section: dict[str, Any], removed: str, reason: str, stays: str
) -> None:
    filters = RowFilters(Filters.model_validate(section))
    found = filters.finding(row(removed))
    assert found is not None and found[0] == reason
    assert filters.finding(row(stays)) is None
    assert RowFilters(Filters()).finding(row(removed)) is None


def test_exact_duplicates_are_equal_after_normalisation_and_name_the_first() -> None:
    filters = RowFilters(Filters.model_validate({"duplicates": {"near": False}}))
    assert filters.finding(row("Ｆｕｌｌ  width", name="a")) is None
    assert filters.finding(row("full WIDTH", name="b")) == ("exact_duplicate", "of " + "a" * 16)
    assert filters.finding(row("full WIDTH", question="How?", name="c")) is None  # another question: another row
