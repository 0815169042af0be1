"""Who answers which row: by its key alone, in turn or by weight."""

from __future__ import annotations

from collections import Counter

from distill.teacher.panel import by_weight, in_turn

NAMES = ["a", "b", "c"]
KEYS = [f"row {number}" for number in range(6000)]


def test_samples_of_a_row_go_round_all_teachers() -> None:
    for key in KEYS[:50]:
        turns = [in_turn(key, sample, NAMES) for sample in range(6)]
        assert sorted(turns[:3]) == NAMES and turns[3:] == turns[:3]


def test_first_samples_are_spread_evenly() -> None:
    """2,000 each of 6,000; 5 standard deviations of a binomial are 183."""
    counts = Counter(in_turn(key, 0, NAMES) for key in KEYS)
    assert all(abs(counts[name] - 2000) < 183 for name in NAMES)


def test_weights_are_shares() -> None:
    counts = Counter(by_weight(key, 0, NAMES, [1.0, 2.0, 3.0]) for key in KEYS)
    assert all(abs(counts[name] - 1000 * weight) < 200 for name, weight in zip(NAMES, (1, 2, 3), strict=True))


def test_a_teacher_that_leaves_gives_away_its_own_rows_only() -> None:
    for key in KEYS[:500]:
        before = by_weight(key, 0, NAMES, [1.0, 2.0, 3.0])
        if before != "c":
            assert by_weight(key, 0, ["a", "b"], [1.0, 2.0]) == before
    assert [by_weight("k", 0, NAMES, [1, 1, 1]) for _ in range(3)] == [by_weight("k", 0, NAMES, [1, 1, 1])] * 3
