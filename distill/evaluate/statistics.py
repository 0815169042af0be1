"""Intervals and paired comparisons, as pure functions of counts and per-prompt scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054
FLAG_POINTS = 3.0  # a quantized variant that loses more percentage points than this is flagged


@dataclass(frozen=True)
class Proportion:
    """`correct` of `count`, with a 95% Wilson interval."""

    correct: int
    count: int
    value: float
    low: float
    high: float


def proportion(correct: int, count: int) -> Proportion:
    """Proportion with its Wilson interval; (0, 1) where nothing was counted."""
    assert 0 <= correct <= count
    low, high = wilson(correct, count)
    return Proportion(correct, count, correct / count if count else 0.0, low, high)


def wilson(correct: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval (Wilson 1927): (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Unlike the normal interval it stays inside [0, 1] and has a width at 0% and 100%.
    """
    if count == 0:
        return 0.0, 1.0
    p, shrink = correct / count, z * z / count
    centre = p + shrink / 2
    half = z * math.sqrt(p * (1 - p) / count + shrink / (4 * count))
    return max(0.0, (centre - half) / (1 + shrink)), min(1.0, (centre + half) / (1 + shrink))


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `mine - other` over the same prompts, its standard error, and a 95% interval."""

    mean: float
    standard_error: float
    low: float
    high: float
    count: int
    only_mine: int  # prompts where mine scored higher
    only_other: int


def paired_difference(mine: Sequence[float], other: Sequence[float]) -> PairedDifference:
    """Compare two systems prompt by prompt: the prompts' difficulty cancels, so the error is far below that of two
    separate intervals. SE = sd(differences, n - 1) / sqrt(n); 0 for a single prompt or none."""
    assert len(mine) == len(other)
    differences = [a - b for a, b in zip(mine, other, strict=True)]
    count = len(differences)
    mean = math.fsum(differences) / count if count else 0.0
    error = 0.0
    if count > 1:
        variance = math.fsum((d - mean) ** 2 for d in differences) / (count - 1)
        error = math.sqrt(variance / count)
    return PairedDifference(
        mean=mean,
        standard_error=error,
        low=mean - Z_95 * error,
        high=mean + Z_95 * error,
        count=count,
        only_mine=sum(d > 0 for d in differences),
        only_other=sum(d < 0 for d in differences),
    )


@dataclass(frozen=True)
class Ratio:
    """A mean per token over rows of unequal length, with its standard error."""

    value: float
    standard_error: float


def ratio_of_sums(totals: Sequence[float], weights: Sequence[float]) -> Ratio:
    """sum(totals) / sum(weights), the rows being the independent samples (tokens of one row are not).

    SE by linearization (Cochran 1977, 6.3): sqrt(n / (n - 1) sum((t_i - r w_i)²)) / sum(w).
    """
    assert len(totals) == len(weights)
    weight, count = math.fsum(weights), len(totals)
    if weight == 0:
        return Ratio(math.nan, math.nan)
    ratio = math.fsum(totals) / weight
    if count < 2:
        return Ratio(ratio, 0.0)
    residuals = math.fsum((t - ratio * w) ** 2 for t, w in zip(totals, weights, strict=True))
    return Ratio(ratio, math.sqrt(count / (count - 1) * residuals) / weight)


def is_flagged(difference: PairedDifference) -> bool:
    """Whether a quantized variant loses too much accuracy to the model it was made from."""
    return difference.mean * 100 < -FLAG_POINTS
