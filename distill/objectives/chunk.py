"""Loss and gradient of one chunk's logits in plain torch: few passes over them, in place, in blocks that a cache holds.

Legend: C tokens of a chunk, B of a block, V student rows, U teacher rows, R = min(V, U), T the temperature,
P = softmax(teacher / T), Q = softmax(student / T), M the mixture of both. The form for GPUs: `kernels/loss.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.objectives.divergences import Objective

_BLOCK_VALUES = 1 << 19  # logits of a block on a CPU: four such float32 buffers stay in its cache


@dataclass(frozen=True)
class LogitMap:
    """What a head does to its raw projections: logits = softcap * tanh(scale * raw / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    def apply_(self, raw: Tensor) -> Tensor:
        """Logits, in place."""
        if self.softcap is not None:
            return raw.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)
        return raw if self.scale == 1.0 else raw.mul_(self.scale)

    def derivative(self, logits: Tensor) -> Tensor | float:
        """d logits / d raw at these logits."""
        return self.scale if self.softcap is None else (logits / self.softcap).square_().neg_().add_(1).mul_(self.scale)


def chunk_loss(
    student_CV: Tensor,
    student_map: LogitMap,
    teacher_CU: Tensor | None,
    teacher_map: LogitMap,
    labels_C: Tensor,
    objective: Objective,
) -> Tensor:
    """Per token: divergence (without T^2), cross entropy, agreement, accuracy, [4, C]; from raw projections.

    `student_CV` becomes the derivative of each token's loss (see `Objective`) by it; `teacher_CU` is overwritten.
    """
    tokens, width = student_CV.shape
    rows = max(1, _BLOCK_VALUES // width) if student_CV.device.type == "cpu" else tokens
    scratch = student_CV.new_empty(3, min(rows, tokens) * width)
    columns = student_CV.new_zeros(4, tokens)
    for begin in range(0, tokens, rows):
        block = slice(begin, min(begin + rows, tokens))
        teacher = None if teacher_CU is None else teacher_map.apply_(teacher_CU[block])
        _block(student_CV[block], student_map, teacher, labels_C[block], objective, scratch, columns[:, block])
    return columns


def _block(
    z: Tensor,
    student_map: LogitMap,
    teacher: Tensor | None,
    labels_B: Tensor,
    objective: Objective,
    scratch: Tensor,
    columns: Tensor,
) -> None:
    """Fills `columns` [4, B] and turns the raw projections `z` [B, V] into the gradient."""
    student_map.apply_(z)
    derivative = student_map.derivative(z)
    labels, weight = labels_B.unsqueeze(-1), objective.ce_weight
    _lower_(z)
    at_label = z.gather(-1, labels).squeeze(-1)
    full = _softmax(z, scratch[0])
    columns[1] = _log_total(full) - at_label
    columns[3] = at_label == 0.0
    if teacher is None:
        assert weight == 1.0
        z.copy_(full)
    else:
        rows = min(z.shape[-1], teacher.shape[-1])
        common, t, q = z[:, :rows], _lower_(teacher[:, :rows]), full
        if rows < z.shape[-1]:
            _lower_(common)
        torch.add(common, t, out=_place(t, scratch[1]))
        columns[2] = _place(t, scratch[1]).amax(-1) == 0.0
        if objective.temperature != 1.0:
            common.div_(objective.temperature)
            t.div_(objective.temperature)
        if objective.temperature != 1.0 or rows < z.shape[-1]:
            q = _softmax(common, scratch[1])
        columns[0], factor = _divergence_(common, t, q, scratch[2], objective)
        z[:, rows:] = 0.0
        factor *= objective.divergence_scale / objective.temperature
        if factor != 1.0:
            common.mul_(factor)
        if weight > 0.0:
            z.add_(full, alpha=weight)
    if weight > 0.0:
        z.scatter_add_(-1, labels, torch.full_like(labels, -weight, dtype=z.dtype))
    if isinstance(derivative, Tensor) or derivative != 1.0:
        z.mul_(derivative)


def _divergence_(z: Tensor, t: Tensor, q: Tensor, scratch: Tensor, objective: Objective) -> tuple[Tensor, float]:
    """Divergence [B] of tempered logits z, t [B, R] whose largest is 0, given q = softmax(z); z becomes the derivative
    by z up to the factor that is returned, t is overwritten.

    With g = d divergence / dQ, the derivative by z is Q (g - sum Q g): g = log Q/P for reverse KL, (1 - beta) log Q/M
    for JSD, -(1 - skew) P/M for skew forward KL, log Q/M - skew Q/M for skew reverse KL, sign(Q - P) / 2 for TVD. For
    forward KL it is Q - P.
    """
    p = _softmax(t, scratch)
    total_p, total_q = _log_total(p), _log_total(q)
    tiny, share = torch.finfo(z.dtype).tiny, objective.mixture
    match objective.divergence:
        case "forward_kl":
            distance = _dot(p, t.sub_(z)) - total_p + total_q
            torch.sub(q, p, out=z)
            return distance, 1.0
        case "reverse_kl":
            mean = _dot(q, z.sub_(t))
            _centre_(z, mean, q)
            return mean - total_q + total_p, 1.0
        case "jsd":
            to_teacher = _dot(p, t) - total_p
            torch.lerp(q, p, share, out=t).clamp_min_(tiny).log_()
            to_teacher -= _dot(p, t)
            mean = _dot(q, z.sub_(t))
            _centre_(z, mean, q)
            return share * to_teacher + (1.0 - share) * (mean - total_q), 1.0 - share
        case "skew_forward_kl":
            distance = _dot(p, t) - total_p
            torch.lerp(q, p, share, out=t).clamp_min_(tiny)
            torch.div(p, t, out=z)
            distance -= _dot(p, t.log_())
            _centre_(z, _dot(q, z), q)
            return distance, share - 1.0
        case "skew_reverse_kl":
            torch.lerp(q, p, share, out=p).clamp_min_(tiny)
            torch.div(q, p, out=t)
            distance = _dot(q, z.sub_(p.log_())) - total_q
            z.sub_(t, alpha=1.0 - share)
            _centre_(z, _dot(q, z), q)
            return distance, 1.0
        case "tvd":
            torch.sub(q, p, out=z)
            distance = 0.5 * torch.linalg.vector_norm(z, ord=1, dim=-1)
            _centre_(z.sign_(), _dot(q, z), q)
            return distance, 0.5


def _centre_(g: Tensor, mean: Tensor, q: Tensor) -> None:
    """q (g - mean), in place over g."""
    g.sub_(mean.unsqueeze(-1)).mul_(q)


def _lower_(logits: Tensor) -> Tensor:
    """The same distribution by logits whose largest is 0, in place."""
    return logits.sub_(logits.amax(-1, keepdim=True))


def _place(like: Tensor, scratch: Tensor) -> Tensor:
    return scratch[: like.numel()].view(like.shape)


def _softmax(logits: Tensor, scratch: Tensor) -> Tensor:
    return torch.softmax(logits, -1, out=_place(logits, scratch))


def _log_total(probabilities: Tensor) -> Tensor:
    """log sum exp of logits whose largest is 0: the likeliest token's probability is one over the sum."""
    return -probabilities.amax(-1).log()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)
