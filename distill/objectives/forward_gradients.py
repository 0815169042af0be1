"""A loss of logits whose gradients are made in the forward pass, a few tokens at a time; backward scales them.

Legend: N tokens, C of a chunk, V rows, H width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

# (projections [C, V] in float32 or better, tokens, what the chunk was given) -> sums [6] with the loss first, and
# d loss / d projections [C, V]
ChunkLoss = Callable[[Tensor, slice, Any], tuple[Tensor, Tensor]]


def chunked_loss(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    parts: Iterable[tuple[slice, Any]],
    chunk_loss: ChunkLoss,
) -> tuple[Tensor, Tensor]:
    """(loss, metrics [5]) over all chunks; the loss is differentiable by hidden states, weight and bias."""
    found: tuple[Tensor, Tensor] = _ChunkedLoss.apply(hidden_NH, weight_VH, bias_V, parts, chunk_loss)
    return found


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        parts: Iterable[tuple[slice, Any]],
        chunk_loss: ChunkLoss,
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        device = hidden_NH.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
        exact = torch.promote_types(compute, torch.float32)
        hidden_gradient = torch.zeros_like(hidden_NH) if wants_hidden else None
        weight_gradient = torch.zeros_like(weight_VH, dtype=exact) if wants_weight else None
        bias_gradient = torch.zeros(weight_VH.shape[0], dtype=exact, device=hidden_NH.device) if wants_bias else None
        sums = torch.zeros(6, dtype=exact, device=hidden_NH.device)
        with torch.autocast(device, enabled=False):
            projection = weight_VH.to(compute)
            bias = None if bias_V is None else bias_V.to(compute)
            for rows, given in parts:
                hidden = hidden_NH[rows].to(compute)
                found, gradient = chunk_loss(F.linear(hidden, projection, bias).to(exact), rows, given)
                sums += found
                gradient = gradient.to(compute)
                if hidden_gradient is not None:
                    hidden_gradient[rows] = gradient @ projection
                if weight_gradient is not None:
                    weight_gradient += gradient.T @ hidden
                if bias_gradient is not None:
                    bias_gradient += gradient.sum(0)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)  # type: ignore[arg-type]
        ctx.weight_dtype = weight_VH.dtype  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(metrics := sums[1:].clone())
        return sums[0].clone(), metrics

    @staticmethod
    def backward(ctx: FunctionCtx, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias = ctx.saved_tensors  # type: ignore[attr-defined]
        dtype = ctx.weight_dtype  # type: ignore[attr-defined]
        return (
            None if hidden is None else hidden * loss_gradient.to(hidden.dtype),
            None if weight is None else (weight * loss_gradient.to(weight.dtype)).to(dtype),
            None if bias is None else (bias * loss_gradient.to(bias.dtype)).to(dtype),
            None,
            None,
        )
