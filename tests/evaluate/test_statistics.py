"""Hand-computed intervals and differences."""

from __future__ import annotations

import math

import pytest

from distill.evaluate.statistics import is_flagged, paired_difference, proportion, ratio_of_sums, wilson


def test_wilson_by_hand() -> None:
    # p = 0.8, n = 10, z = 1.96: (0.8 + 0.19208 +- 1.96 sqrt(0.016 + 0.009604)) / 1.38416
    low, high = wilson(8, 10, z=1.96)
    assert low == pytest.approx((0.8 + 0.19208 - 1.96 * math.sqrt(0.025604)) / 1.38416, abs=1e-9)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


def test_wilson_at_the_ends_stays_inside_and_keeps_a_width() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(50, 50)
    assert high == pytest.approx(1.0) and low == pytest.approx(50 / (50 + 1.96**2), abs=1e-4)
    assert wilson(0, 50)[0] == pytest.approx(0.0, abs=1e-12) and wilson(0, 50)[1] == pytest.approx(1 - low)


def test_proportion() -> None:
    found = proportion(3, 4)
    assert (found.correct, found.count, found.value) == (3, 4, 0.75)
    assert found.low < 0.75 < found.high


def test_paired_difference_by_hand() -> None:
    # differences 1, 0, 0, -1, 1: mean 0.2; squares 0.64 + 0.04 + 0.04 + 1.44 + 0.64 = 2.8; variance 0.7
    found = paired_difference([1, 1, 0, 0, 1], [0, 1, 0, 1, 0])
    assert found.mean == pytest.approx(0.2)
    assert found.standard_error == pytest.approx(math.sqrt(0.7 / 5))
    assert (found.only_mine, found.only_other, found.count) == (2, 1, 5)
    assert found.high - found.mean == pytest.approx(1.96 * found.standard_error, rel=1e-4)


def test_paired_difference_is_antisymmetric_and_nought_with_itself() -> None:
    a, b = [1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]
    assert paired_difference(a, b).mean == -paired_difference(b, a).mean
    same = paired_difference(a, a)
    assert (same.mean, same.standard_error) == (0.0, 0.0)
    assert paired_difference([], []).count == 0


def test_pairing_takes_the_prompts_difficulty_out() -> None:
    hard = [0.0] * 50 + [1.0] * 50
    better = [1.0] * 2 + hard[2:]
    found = paired_difference(better, hard)
    unpaired = math.sqrt(2 * 0.25 / 99)
    assert found.standard_error < unpaired / 4


def test_ratio_of_sums_by_hand() -> None:
    # r = 6 / 4 = 1.5; residuals 1 - 1.5, 5 - 4.5: 0.25 + 0.25; sqrt(2 / 1 * 0.5) / 4
    found = ratio_of_sums([1.0, 5.0], [1.0, 3.0])
    assert found.value == 1.5
    assert found.standard_error == pytest.approx(math.sqrt(2 * 0.5) / 4)
    assert ratio_of_sums([2.0], [4.0]).standard_error == 0.0
    assert math.isnan(ratio_of_sums([], []).value)


def test_ratio_of_sums_with_equal_weights_is_the_mean_and_its_error() -> None:
    values = [1.0, 2.0, 4.0]
    found = ratio_of_sums(values, [1.0] * 3)
    plain = paired_difference(values, [0.0] * 3)
    assert found.value == pytest.approx(plain.mean)
    assert found.standard_error == pytest.approx(plain.standard_error)


def test_flag_is_raised_beyond_three_points() -> None:
    full = [1.0] * 100
    assert not is_flagged(paired_difference([0.0] * 3 + [1.0] * 97, full))
    assert is_flagged(paired_difference([0.0] * 4 + [1.0] * 96, full))
    assert not is_flagged(paired_difference(full, [0.0] * 100))
