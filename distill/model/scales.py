"""Uniform quantization: absmax, zero-point, and group-wise grids, as pure functions.

Shapes: O output features, I input features, G groups of a row, S weights in a group (G * S = I).
Codes are signed: a grid of b bits has the integers -2^(b-1) .. 2^(b-1) - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_GROUP_SIZE = 8
_CLIP_STEPS = 20
_CLIP_STEP = 0.025


def absmax(values: Tensor, bits: int = 8) -> tuple[Tensor, Tensor, None]:
    """Symmetric quantization of a whole tensor: s = max|x| / (2^(b-1) - 1), q = round(x / s), x ~ s q.

    Zero stays zero and the lowest code -2^(b-1) is unused. Returns int8 codes, the scale (a scalar), and no zero point.
    """
    top = 2 ** (bits - 1) - 1
    scale = _nonzero(values.float().abs().amax() / top)
    return torch.clamp(torch.round(values.float() / scale), -top, top).to(torch.int8), scale, None


def zero_point(values: Tensor, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Affine quantization of a whole tensor, which spends every code on a skewed range.

    s = (max x - min x) / (2^b - 1), z = round(-min x / s) - 2^(b-1), q = clamp(round(x / s) + z), x ~ s (q - z).
    The range is widened to hold 0, so that z is itself a code and zero stays exactly zero.
    """
    low, high = values.float().amin().clamp(max=0), values.float().amax().clamp(min=0)
    scale = _nonzero((high - low) / (2**bits - 1))
    bottom = -(2 ** (bits - 1))
    zero = torch.round(-low / scale) + bottom
    codes = torch.clamp(torch.round(values.float() / scale) + zero, bottom, -bottom - 1)
    return codes.to(torch.int8), scale, zero.to(torch.int8)


@dataclass(frozen=True)
class Grid:
    """How a weight matrix is rounded: `group_size` neighbours of a row share a scale (and a zero point)."""

    bits: int
    group_size: int
    symmetric: bool

    @property
    def lowest(self) -> int:
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def split(self, weight: Tensor) -> Tensor:
        """(O, I) -> (O, G, S)."""
        return weight.unflatten(-1, (-1, self.group_size))


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear's weight on its grid: int8 codes (O, I), scales (O, G) in its dtype, int8 zeros (O, G) if any."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    grid: Grid

    def weight(self) -> Tensor:
        """The weight that the codes stand for, as transformers and vLLM compute it."""
        return dequantize(self.codes, self.scales, self.zeros)


def group_size_for(in_features: int, wanted: int) -> int:
    """The largest of `wanted` and its halvings (not below 8) that divides `in_features`; else the whole row."""
    size = wanted
    while size >= MIN_GROUP_SIZE:
        if in_features % size == 0:
            return size
        size //= 2
    return in_features


def fit(groups: Tensor, grid: Grid, *, dtype: torch.dtype, ratio: Tensor | float = 1.0) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points of groups (..., S) whose range is shrunk by `ratio` (clipping).

    Symmetric: s = max|x| / ((2^b - 1) / 2), so that the range is 2^b - 1 steps wide and the largest value of either
    sign is at most half a step off. Asymmetric: as in `zero_point`. Scales are rounded to `dtype`, in which they are
    stored, before anything is encoded with them; they come back in the dtype of `groups`.
    """
    steps = 2**grid.bits - 1
    if grid.symmetric:
        return _stored(groups.abs().amax(-1) * ratio * 2 / steps, dtype, groups.dtype), None
    low = groups.amin(-1).clamp(max=0) * ratio
    high = groups.amax(-1).clamp(min=0) * ratio
    scales = _stored((high - low) / steps, dtype, groups.dtype)
    zeros = torch.clamp(torch.round(-low / scales) + grid.lowest, grid.lowest, grid.highest)
    return scales, zeros


def encode(groups: Tensor, scales: Tensor, zeros: Tensor | None, grid: Grid) -> Tensor:
    """Codes of groups (..., S): clamp(round(x / s) + z), in the dtype of `groups`."""
    codes = torch.round(groups / scales.unsqueeze(-1))
    if zeros is not None:
        codes = codes + zeros.unsqueeze(-1)
    return torch.clamp(codes, grid.lowest, grid.highest)


def decode(codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """Values of codes (..., S): s (q - z)."""
    if zeros is not None:
        codes = codes - zeros.unsqueeze(-1)
    return codes * scales.unsqueeze(-1)


def fit_clipped(
    groups: Tensor, grid: Grid, *, dtype: torch.dtype, gram_blocks: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Like `fit`, with the clipping ratio of every group that makes its rounding error smallest.

    groups (O, G, S); gram_blocks (G, S, S), the diagonal blocks of the inputs' Gram matrix, makes the error that of the
    layer's output, e^T H e (the clip search of AWQ, 2306.00978); without it, the plain squared error |e|^2.
    """
    best_error: Tensor | None = None
    best: tuple[Tensor, Tensor | None] = fit(groups, grid, dtype=dtype)
    for step in range(_CLIP_STEPS):
        scales, zeros = fit(groups, grid, dtype=dtype, ratio=1 - step * _CLIP_STEP)
        error = decode(encode(groups, scales, zeros, grid), scales, zeros) - groups
        if gram_blocks is None:
            cost = error.square().sum(-1)
        else:
            # (G, O, S) @ (G, S, S) is one batched product, where an einsum would build the outer products
            by_group = error.transpose(0, 1)
            cost = ((by_group @ gram_blocks) * by_group).sum(-1).transpose(0, 1)
        if best_error is None:
            best_error = cost
            continue
        better = cost < best_error
        best_error = torch.where(better, cost, best_error)
        kept_zeros = None if zeros is None or best[1] is None else torch.where(better, zeros, best[1])
        best = (torch.where(better, scales, best[0]), kept_zeros)
    return best


def round_to_nearest(
    weight: Tensor, grid: Grid, *, dtype: torch.dtype, gram: Tensor | None = None, clip: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Group-wise rounding of a weight (O, I): int8 codes (O, I), scales (O, G), int8 zero points (O, G) or None.

    With `clip`, each group's range is the one of least error, weighed by the Gram matrix (I, I) of the inputs if given.
    """
    groups = grid.split(weight)
    if clip:
        blocks = None if gram is None else diagonal_blocks(gram, grid.group_size)
        scales, zeros = fit_clipped(groups, grid, dtype=dtype, gram_blocks=blocks)
    else:
        scales, zeros = fit(groups, grid, dtype=dtype)
    codes = encode(groups, scales, zeros, grid).flatten(-2)
    return codes.to(torch.int8), scales, None if zeros is None else zeros.to(torch.int8)


def dequantize(codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """The weight (O, I) that codes (O, I), scales (O, G) and zero points (O, G) stand for, in the scales' dtype."""
    groups = codes.to(scales.dtype).unflatten(-1, (scales.shape[-1], -1))
    return decode(groups, scales, None if zeros is None else zeros.to(scales.dtype)).flatten(-2)


def diagonal_blocks(gram: Tensor, size: int) -> Tensor:
    """(I, I) -> (I / size, size, size)."""
    count = gram.shape[0] // size
    return gram.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def output_error(original: Tensor, quantized: Tensor, gram: Tensor) -> float:
    """||(W - Q) X|| / ||W X|| from the Gram matrix H = X X^T alone: ||A X||^2 = trace(A H A^T)."""
    difference = original - quantized
    error = ((difference @ gram) * difference).sum().clamp(min=0)
    size = ((original @ gram) * original).sum().clamp(min=0)
    return float((error / size).sqrt()) if size > 0 else 0.0


def _stored(scales: Tensor, stored: torch.dtype, computed: torch.dtype) -> Tensor:
    return _nonzero(scales.to(stored).to(computed))


def _nonzero(scales: Tensor) -> Tensor:
    """A group of zeros gets the scale 1: any will do, and 0 would divide by zero."""
    return torch.where(scales > 0, scales, torch.ones_like(scales))
