"""GPTQ (Frantar et al., 2210.17323): round column by column, and let the columns not yet rounded absorb the error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.model.scales import Grid, decode, encode, fit_clipped

_BLOCK_COLUMNS = 128
_DAMPING_TRIES = 4


def gptq(
    weight: Tensor,
    gram: Tensor,
    grid: Grid,
    *,
    dtype: torch.dtype,
    damping: float = 0.01,
    act_order: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales and zero points that keep W X, not W: argmin_Q trace((W - Q) H (W - Q)^T) with H = X X^T, greedily.

    For each input column i, with R the upper Cholesky factor of (H + damping * mean(diag H) * I)^-1:
        q_i = round(w_i),   e = (w_i - q_i) / R_ii,   w_j -= e R_ij for all j > i.
    R_ii R_i. is the first row of the inverse Hessian of the columns i.., which the exact rule (OBQ, 2208.11580)
    recomputes after every column. Columns are updated at once inside a block, the rest when the block is done.

    Ranges are clipped for the least squared error of the weights: weighing it by H gains nothing, since later columns
    make up for what H would weigh.

    weight (O, I) and gram (I, I) in float32 or float64. A group's range is fitted when its first column comes up, on
    weights that have taken up all earlier errors. `act_order` visits the columns of largest H_ii first; groups keep
    their place then and are fitted beforehand, so that the saved model needs no permutation.
    Returns int8 codes (O, I), scales (O, G) already rounded to `dtype`, int8 zeros (O, G) or None.
    """
    columns = weight.shape[1]
    order = torch.arange(columns, device=weight.device)
    scales = weight.new_empty(weight.shape[0], columns // grid.group_size)
    zeros = None if grid.symmetric else torch.empty_like(scales)
    if act_order:
        order = torch.argsort(gram.diagonal(), descending=True, stable=True)
        scales, zeros = fit_clipped(grid.split(weight), grid, dtype=dtype)
    ranges = _Ranges(grid, dtype, scales, zeros, (order // grid.group_size).tolist(), fitted=act_order)
    weight = weight[:, order]
    factor = inverse_factor(gram[order][:, order], damping)
    codes = torch.empty_like(weight)
    for start, end in _blocks(columns, grid.group_size):
        block = weight[:, start:end].clone()
        errors = torch.empty_like(block)
        for offset in range(end - start):
            column = start + offset
            # what follows in the block is up to date; so is the rest of the matrix when a group outgrows the block
            scale, zero = ranges.of(column, block[:, offset:] if end - start >= grid.group_size else weight[:, column:])
            code = encode(block[:, offset : offset + 1], scale, zero, grid)
            error = (block[:, offset : offset + 1] - decode(code, scale, zero)) / factor[column, column]
            block[:, offset:] -= error * factor[column, column:end]
            codes[:, column], errors[:, offset] = code[:, 0], error[:, 0]
        weight[:, end:] -= errors @ factor[start:end, end:]
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    return restored.to(torch.int8), ranges.scales, None if zeros is None else zeros.to(torch.int8)


@dataclass(frozen=True)
class _Ranges:
    """Scales (O, G) and zero points of the groups, each fitted beforehand or when its first column comes up."""

    grid: Grid
    dtype: torch.dtype
    scales: Tensor
    zeros: Tensor | None
    group_of: Sequence[int]
    fitted: bool

    def of(self, column: int, remaining: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point (O,) of a column, of which `remaining` holds the weights from it on."""
        group = self.group_of[column]
        if not self.fitted and column % self.grid.group_size == 0:
            members = remaining[:, None, : self.grid.group_size]
            scale, zero = fit_clipped(members, self.grid, dtype=self.dtype)
            self.scales[:, group] = scale[:, 0]
            if self.zeros is not None and zero is not None:
                self.zeros[:, group] = zero[:, 0]
        return self.scales[:, group], None if self.zeros is None else self.zeros[:, group]


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Upper triangular R with R^T R = (H + damping * mean(diag H) * I)^-1; inputs that never fire get H_ii = 1.

    H reversed is L L^T; reversed back it is M M^T with M upper triangular; then R = M^-1: one Cholesky factorisation
    and one triangular inverse, where factoring the inverse would take two and lose digits.
    """
    damped = gram.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    mean = diagonal.mean().clone()
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for attempt in range(_DAMPING_TRIES):
        lower, failed = torch.linalg.cholesky_ex((damped + damping * 10**attempt * mean * identity).flip(0, 1))
        if not failed:
            return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    raise DistillError(
        "the Gram matrix of a layer's inputs cannot be inverted", remedy="raise damping or calibrate on more rows"
    )


def _blocks(columns: int, group_size: int) -> list[tuple[int, int]]:
    """Column ranges of about 128: whole groups, or whole parts of one, so that a group starts where a block may."""
    if group_size <= _BLOCK_COLUMNS:
        width = group_size * (_BLOCK_COLUMNS // group_size)
    else:
        width = _BLOCK_COLUMNS if group_size % _BLOCK_COLUMNS == 0 else group_size
    return [(start, min(start + width, columns)) for start in range(0, columns, width)]
