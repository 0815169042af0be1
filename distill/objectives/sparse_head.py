"""The loss head for sparse targets: from hidden states and the student's LM head, chunk by chunk.

Legend as in `head.py` and `sparse.py`. There is no teacher projection, so it costs less than the live form; gradients
are made in the forward pass, and memory is a few [chunk, V] buffers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from distill.objectives.divergences import IGNORED, LossSums, Objective
from distill.objectives.head import CHUNK_TOKENS, Head
from distill.objectives.sparse import SparseTargets, require_sound, sparse_chunk_loss

OWN_TOKENS = 16  # of the student's likeliest tokens in the teacher's tail, held to the smallest kept probability


def sparse_head_loss(
    student_NH: Tensor,
    student: Head,
    targets: SparseTargets,
    labels_N: Tensor,
    objective: Objective,
    weights_N: Tensor | None = None,
    *,
    chunk_tokens: int | None = None,
    own_tokens: int = OWN_TOKENS,
) -> LossSums:
    """Sums over the tokens whose label is not -100, as `head.head_loss`; `targets` has those tokens, in their order."""
    require_sound(objective, sampled=targets.log_tail_N is None)
    scored = (labels_N != IGNORED).nonzero().squeeze(-1)
    assert len(targets) == len(scored), "targets of other tokens"
    loss, metrics = _SparseHeadLoss.apply(
        student_NH.index_select(0, scored),
        student.weight,
        student.bias,
        student,
        targets.on(student_NH.device),
        labels_N.index_select(0, scored),
        weights_N.index_select(0, scored) if weights_N is not None else None,
        objective,
        chunk_tokens or CHUNK_TOKENS,
        own_tokens,
    )
    return LossSums(loss, *metrics.unbind())


class _SparseHeadLoss(torch.autograd.Function):
    """Forward makes the gradients; backward scales them."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        student: Head,
        targets: SparseTargets,
        labels_N: Tensor,
        weights_N: Tensor | None,
        objective: Objective,
        chunk_tokens: int,
        own_tokens: int,
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
            for begin in range(0, hidden_NH.shape[0], chunk_tokens):
                rows = slice(begin, begin + chunk_tokens)
                hidden = hidden_NH[rows].to(compute)
                logits = student.transform(torch.nn.functional.linear(hidden, projection, bias).to(exact))
                weights = weights_N[rows].to(exact) if weights_N is not None else None
                chunk = targets.part(begin, begin + chunk_tokens)
                found, gradient = sparse_chunk_loss(logits, chunk, labels_N[rows], weights, objective, own_tokens)
                sums += found
                gradient = student.transform_gradient(gradient, logits).to(compute)
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
            *(None,) * 7,
        )
