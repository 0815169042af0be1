"""The loss head: distillation loss from hidden states and LM heads, chunk by chunk, without a batch's logits.

Legend: N tokens, H student width, K teacher width, V student rows, U teacher rows, C tokens of a chunk, R = min(V, U).
The gradients of the student's hidden states and head are made in the forward pass, while a chunk's logits exist, and
the backward pass only scales them; memory beyond inputs and gradients is a few [C, V] buffers. Reference, in plain
torch: `divergences.distillation_loss`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from distill.objectives.divergences import IGNORED, LossSums, Objective, distillation_loss

CHUNK_TOKENS = 1024


@dataclass(frozen=True)
class Head:
    """An LM head: logits = softcap * tanh(scale * (hidden @ weight^T + bias) / softcap).

    weight: [V, H]; bias: [V] or None; `scale` (Cohere, Granite) and `softcap` (Gemma) as the model's config says.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V], differentiable."""
        return self.transform(torch.nn.functional.linear(hidden_NH, self.weight, self.bias))

    def transform(self, raw_NV: Tensor) -> Tensor:
        """Scale and softcap of raw projections."""
        scaled = raw_NV if self.scale == 1.0 else raw_NV * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)

    def transform_gradient(self, gradient_NV: Tensor, logits_NV: Tensor) -> Tensor:
        """Gradient by raw projections from that by logits, in place over `gradient_NV`."""
        if self.softcap is not None:
            gradient_NV.mul_(1.0 - (logits_NV / self.softcap) ** 2)
        return gradient_NV if self.scale == 1.0 else gradient_NV.mul_(self.scale)


def head_loss_reference(
    student_NH: Tensor,
    student: Head,
    teacher_NK: Tensor | None,
    teacher: Head | None,
    labels_N: Tensor,
    objective: Objective,
    weights_N: Tensor | None = None,
) -> LossSums:
    """The same sums as `head_loss` from full logits, by autograd."""
    teacher_logits = None
    if objective.ce_weight < 1.0:
        assert teacher_NK is not None and teacher is not None
        teacher_logits = teacher.logits(teacher_NK)
    return distillation_loss(student.logits(student_NH), teacher_logits, labels_N, objective, weights_N)


def head_loss(
    student_NH: Tensor,
    student: Head,
    teacher_NK: Tensor | None,
    teacher: Head | None,
    labels_N: Tensor,
    objective: Objective,
    weights_N: Tensor | None = None,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> LossSums:
    """Sums over the tokens whose label is not -100 (`labels_N` is shifted already); `loss` carries the gradient.

    The teacher gets no gradient. Matmuls run in the autocast dtype where autocast is on, else in that of the hidden
    states; softmax and sums in float32 or better. Rows that are not scored cost nothing but their zero gradient.
    """
    assert (teacher_NK is not None and teacher is not None) or objective.ce_weight == 1.0
    scored = (labels_N != IGNORED).nonzero().squeeze(-1)
    weights = weights_N.index_select(0, scored) if weights_N is not None else None
    bias = student.bias
    teacher_hidden = None
    if objective.ce_weight < 1.0:
        assert teacher_NK is not None
        teacher_hidden = teacher_NK.detach().index_select(0, scored)
    loss, metrics = _HeadLoss.apply(
        student_NH.index_select(0, scored),
        student.weight,
        bias,
        student,
        teacher_hidden,
        teacher,
        labels_N.index_select(0, scored),
        weights,
        objective,
        chunk_tokens,
    )
    divergence, cross_entropy, agreement, accuracy, weight = metrics.unbind()
    return LossSums(loss, divergence, cross_entropy, agreement, accuracy, weight)


class _HeadLoss(torch.autograd.Function):
    """Forward makes the gradients; backward scales them."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        student: Head,
        teacher_NK: Tensor | None,
        teacher: Head | None,
        labels_N: Tensor,
        weights_N: Tensor | None,
        objective: Objective,
        chunk_tokens: int,
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
            teacher_projection = teacher.weight.to(compute) if teacher is not None and teacher_NK is not None else None
            for begin in range(0, hidden_NH.shape[0], chunk_tokens):
                rows = slice(begin, begin + chunk_tokens)
                hidden = hidden_NH[rows].to(compute)
                logits = student.transform(_project(hidden, projection, bias_V).to(exact))
                teacher_logits = None
                if teacher_NK is not None and teacher is not None and teacher_projection is not None:
                    raw = _project(teacher_NK[rows].to(compute), teacher_projection, teacher.bias)
                    teacher_logits = teacher.transform(raw.to(exact))
                weights = weights_N[rows].to(exact) if weights_N is not None else None
                chunk_sums, gradient = chunk_loss(logits, teacher_logits, labels_N[rows], weights, objective)
                sums += chunk_sums
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


def chunk_loss(
    student_CV: Tensor, teacher_CU: Tensor | None, labels_C: Tensor, weights_C: Tensor | None, objective: Objective
) -> tuple[Tensor, Tensor]:
    """(loss, divergence, ce, agreement, accuracy, weight) sums and d loss / d student logits [C, V] of one chunk.

    Derivatives by the student's logits z at temperature T: forward KL (Q - P) / T; reverse KL Q (log Q/P - KL) / T;
    JSD (1 - beta) Q (log Q/M - KL(Q||M)) / T; cross entropy softmax(z) - onehot.
    """
    labels = labels_C.unsqueeze(-1)
    log_q = torch.log_softmax(student_CV, dim=-1)
    ce = -log_q.gather(-1, labels).squeeze(-1)
    top_student = student_CV.argmax(-1)
    weight = torch.ones_like(ce) if weights_C is None else weights_C
    loss = objective.ce_weight * ce
    gradient: Tensor | None = None
    if objective.ce_weight > 0.0:
        gradient = log_q.exp()
        gradient.scatter_add_(-1, labels, -torch.ones_like(labels, dtype=gradient.dtype))
        gradient.mul_(objective.ce_weight)
    distance, agreement = torch.zeros_like(ce), torch.zeros_like(ce)
    if teacher_CU is not None:
        rows = min(student_CV.shape[-1], teacher_CU.shape[-1])
        teacher_CR, student_CR = teacher_CU[:, :rows], student_CV[:, :rows]
        plain = objective.temperature == 1.0
        log_p = torch.log_softmax(teacher_CR if plain else teacher_CR / objective.temperature, dim=-1)
        if not plain or rows != student_CV.shape[-1]:
            log_q = torch.log_softmax(student_CR if plain else student_CR / objective.temperature, dim=-1)
        distance, slope = _divergence_and_slope(log_p, log_q, objective)
        slope.mul_(objective.divergence_scale / objective.temperature)
        loss = loss + objective.divergence_scale * distance
        agreement = (student_CR.argmax(-1) == teacher_CR.argmax(-1)).to(ce.dtype)
        if gradient is None:
            gradient = slope if rows == student_CV.shape[-1] else _widen(slope, student_CV.shape[-1])
        else:
            gradient[:, :rows] += slope
    assert gradient is not None
    if weights_C is not None:
        gradient.mul_(weight.unsqueeze(-1))
    accuracy = (top_student == labels_C).to(ce.dtype)
    columns = torch.stack([loss, distance, ce, agreement, accuracy, torch.ones_like(ce)])
    return columns @ weight, gradient


def _divergence_and_slope(log_p: Tensor, log_q: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Divergence [C] and T times its derivative by the student's logits [C, R]; overwrites its arguments."""
    if objective.divergence == "forward_kl":
        p = log_p.exp()
        q = log_q.exp()
        distance = log_p.sub_(log_q).mul_(p).sum(-1)
        return distance, q.sub_(p)
    if objective.divergence == "reverse_kl":
        q = log_q.exp()
        ratio = log_q.sub_(log_p)
        distance = (q * ratio).sum(-1)
        return distance, ratio.sub_(distance.unsqueeze(-1)).mul_(q)
    beta = objective.beta
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    to_teacher = (log_p.exp() * (log_p - log_m)).sum(-1)
    q = log_q.exp()
    ratio = log_q.sub_(log_m)
    to_student = (q * ratio).sum(-1)
    slope = ratio.sub_(to_student.unsqueeze(-1)).mul_(q).mul_(1.0 - beta)
    return beta * to_teacher + (1.0 - beta) * to_student, slope


def _widen(slope_CR: Tensor, rows: int) -> Tensor:
    """Zero gradient for the student's rows that the teacher lacks."""
    return torch.nn.functional.pad(slope_CR, (0, rows - slope_CR.shape[-1]))


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden, weight, None if bias is None else bias.to(hidden.dtype))
