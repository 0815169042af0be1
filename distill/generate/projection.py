"""What a whole job is likely to take, from a few of its prompts. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959964  # 97.5% of a normal distribution


@dataclass(frozen=True)
class Estimate:
    """A total with its 95% interval; the bounds are None where one value says nothing of the spread."""

    total: float
    low: float | None
    high: float | None

    def scaled(self, factor: float) -> Estimate:
        """In another unit."""
        return Estimate(
            self.total * factor,
            None if self.low is None else self.low * factor,
            None if self.high is None else self.high * factor,
        )

    def shown(self, form: str) -> str:
        """`total (low to high)`, each number in this format."""
        if self.low is None or self.high is None:
            return f"{self.total:{form}} (interval unknown)"
        return f"{self.total:{form}} ({self.low:{form}} to {self.high:{form}})"


def project(values: Sequence[float], count: int, *, fixed: float = 0.0, most: float = math.inf) -> Estimate:
    """The sum over `count` prompts of which these are some, plus `fixed`; 95% t-interval of prediction.

    total = N m, half width = t(n-1) s sqrt((N - n) N / n): what was seen is certain, the other N - n prompts spread
    about their mean, which is itself known to s / sqrt(n). Never below what was seen,
    and above it only by `most` for each of the others.
    """
    seen = len(values)
    mean = math.fsum(values) / seen
    total = fixed + mean * count
    if count <= seen:
        return Estimate(total, total, total)
    if seen < 2:
        return Estimate(total, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (seen - 1))
    half = t_quantile(seen - 1) * deviation * math.sqrt((count - seen) * count / seen)
    certain = fixed + math.fsum(values)
    return Estimate(total, max(certain, total - half), min(total + half, certain + (count - seen) * most))


def t_quantile(degrees: int) -> float:
    """97.5% of Student's t: exact for 1 and 2 degrees, else the Cornish-Fisher expansion (0.2% off at 3, then less)."""
    if degrees == 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, 1))
