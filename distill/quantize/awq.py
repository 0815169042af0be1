"""AWQ (Lin et al., 2306.00978): scale up the input channels that matter, so that rounding hurts them less.

The search for channel scales stands here; `fold` makes them vanish in the operation before, and the search for each
group's clipping range that follows is `scales.round_to_nearest` with `clip`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.model.scales import Grid, dequantize, round_to_nearest

_SMALLEST = 1e-4


def search_scales(
    weight: Tensor, gram: Tensor, importance: Tensor, grid: Grid, *, dtype: torch.dtype, points: int = 20
) -> tuple[Tensor, float, float]:
    """Channel scales s = importance^alpha that make the output error of rounding W diag(s) smallest.

    With Q the group-wise round to nearest and H = X X^T, over alpha = 0, 1/points, ..., 1 minimise
        ||(Q(W diag(s)) diag(s)^-1 - W) X||^2 = trace(E H E^T).
    alpha = 0 is plain rounding, so the search never loses to it. weight (O, I), of all linears that read the input;
    importance (I,), the mean |x| of each channel. Returns s (I,) with max s * min s = 1, alpha, and the error.
    """
    best: tuple[Tensor, float, float] | None = None
    for step in range(points + 1):
        alpha = step / points
        scales = normalised(importance, alpha)
        rounded = dequantize(*round_to_nearest(weight * scales, grid, dtype=dtype)) / scales
        difference = rounded - weight
        error = float(((difference @ gram) * difference).sum())
        if best is None or error < best[2]:
            best = (scales, alpha, error)
    assert best is not None
    return best


def normalised(importance: Tensor, alpha: float) -> Tensor:
    """importance^alpha, scaled so that its extremes are reciprocal."""
    scales = importance.clamp(min=_SMALLEST).pow(alpha)
    return scales / (scales.max() * scales.min()).sqrt()


def rescale(gram: Tensor, channel_scales: Tensor) -> Tensor:
    """Gram matrix of the inputs divided by `channel_scales`."""
    return gram / (channel_scales[:, None] * channel_scales)
