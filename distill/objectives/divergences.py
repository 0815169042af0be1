"""Divergences between a student's and a teacher's next-token distributions, as plain functions of logits.

Legend: N tokens, V vocabulary rows, P = softmax(teacher / T), Q = softmax(student / T), T the temperature.
These are the references that every faster form (`head.py`, `distill/kernels`) is tested against; they hold [N, V]
logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

DivergenceName = Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd"]
IGNORED = -100


@dataclass(frozen=True)
class Objective:
    """loss = (1 - ce_weight) * T^2 * divergence(P, Q) + ce_weight * cross entropy, both means over the scored tokens.

    T^2 keeps the size of the gradient when T changes (Hinton et al., 1503.02531): d/dlogits of the divergence at
    temperature T shrinks as 1/T^2. Cross entropy is always at temperature 1. `beta` is jsd's, `skew` the skew KLs'.
    """

    divergence: DivergenceName = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    ce_weight: float = 0.0
    skew: float = 0.1

    def __post_init__(self) -> None:
        assert 0.0 < self.beta < 1.0 and 0.0 < self.skew < 1.0
        assert self.temperature > 0.0 and 0.0 <= self.ce_weight <= 1.0

    @property
    def divergence_scale(self) -> float:
        """Factor in front of the divergence: (1 - ce_weight) * T^2."""
        return (1.0 - self.ce_weight) * self.temperature**2

    @property
    def mixture(self) -> float:
        """Share of P in the mixture M that the divergence compares with; 0 where it has none."""
        shares = {"jsd": self.beta, "skew_forward_kl": self.skew, "skew_reverse_kl": 1.0 - self.skew}
        return shares.get(self.divergence, 0.0)


CROSS_ENTROPY = Objective(ce_weight=1.0)


@dataclass(frozen=True)
class LossSums:
    """Sums over the scored tokens, each token times its weight; detached except `loss`. Scalars.

    `divergence` is at temperature T without the factor T^2. `agreement` counts tokens on which student and teacher
    have the same likeliest token, `accuracy` those on which it is the label; equal logits share the first place.
    Divide by `weight` for means.
    """

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor
    agreement: Tensor
    accuracy: Tensor
    weight: Tensor


def forward_kl(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(P || Q) = sum_v P (log P - log Q), in nats, [N]. Mode-covering; Hinton et al., 1503.02531."""
    log_q, log_p = _log_softmax(student_NV, temperature), _log_softmax(teacher_NV, temperature)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(Q || P) = sum_v Q (log Q - log P), in nats, [N]. Mode-seeking; MiniLLM, 2306.08543."""
    log_q, log_p = _log_softmax(student_NV, temperature), _log_softmax(teacher_NV, temperature)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def jsd(student_NV: Tensor, teacher_NV: Tensor, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """beta KL(P || M) + (1 - beta) KL(Q || M), M = beta P + (1 - beta) Q, in nats, [N]. GKD, 2306.13649, eq. 1."""
    log_q, log_p = _log_softmax(student_NV, temperature), _log_softmax(teacher_NV, temperature)
    log_m = _log_mixture(log_p, log_q, beta)
    to_teacher = (log_p.exp() * (log_p - log_m)).sum(-1)
    to_student = (log_q.exp() * (log_q - log_m)).sum(-1)
    return beta * to_teacher + (1.0 - beta) * to_student


def skew_forward_kl(student_NV: Tensor, teacher_NV: Tensor, skew: float = 0.1, temperature: float = 1.0) -> Tensor:
    """KL(P || skew P + (1 - skew) Q), in nats, [N]: at most -log skew. DistiLLM, 2402.03898."""
    log_q, log_p = _log_softmax(student_NV, temperature), _log_softmax(teacher_NV, temperature)
    return (log_p.exp() * (log_p - _log_mixture(log_p, log_q, skew))).sum(-1)


def skew_reverse_kl(student_NV: Tensor, teacher_NV: Tensor, skew: float = 0.1, temperature: float = 1.0) -> Tensor:
    """KL(Q || (1 - skew) P + skew Q), in nats, [N]: at most -log skew. DistiLLM, 2402.03898."""
    log_q, log_p = _log_softmax(student_NV, temperature), _log_softmax(teacher_NV, temperature)
    return (log_q.exp() * (log_q - _log_mixture(log_p, log_q, 1.0 - skew))).sum(-1)


def tvd(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """Total variation distance, sum_v |P - Q| / 2, from 0 to 1, [N]. f-distill, 2307.15190."""
    log_q, log_p = _log_softmax(student_NV, temperature), _log_softmax(teacher_NV, temperature)
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def divergence(student_NV: Tensor, teacher_NV: Tensor, objective: Objective) -> Tensor:
    """The objective's divergence per token, [N], without T^2."""
    temperature = objective.temperature
    match objective.divergence:
        case "forward_kl":
            return forward_kl(student_NV, teacher_NV, temperature)
        case "reverse_kl":
            return reverse_kl(student_NV, teacher_NV, temperature)
        case "jsd":
            return jsd(student_NV, teacher_NV, objective.beta, temperature)
        case "skew_forward_kl":
            return skew_forward_kl(student_NV, teacher_NV, objective.skew, temperature)
        case "skew_reverse_kl":
            return skew_reverse_kl(student_NV, teacher_NV, objective.skew, temperature)
        case "tvd":
            return tvd(student_NV, teacher_NV, temperature)


def common_vocabulary(student_NV: Tensor, teacher_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Both logits over the vocabulary rows that both have: the common prefix.

    Vocabularies of one tokenizer differ only by padding rows at the end (Qwen2.5: 152,064 against 151,936). The
    softmax over the prefix is the distribution conditioned on the prefix: the teacher's mass beyond it is renormalised,
    the student's rows beyond it are masked and get no gradient from the divergence. So both sides are distributions
    over the same set and every divergence is finite and zero only at equality.
    """
    rows = min(student_NV.shape[-1], teacher_NV.shape[-1])
    return student_NV[..., :rows], teacher_NV[..., :rows]


def distillation_loss(
    student_NV: Tensor,
    teacher_NV: Tensor | None,
    labels_N: Tensor,
    objective: Objective,
    weights_N: Tensor | None = None,
) -> LossSums:
    """Sums of loss and metrics over the tokens whose label is not -100; `labels_N` is already shifted.

    Cross entropy runs over all of the student's rows, the divergence over the common ones. Without a teacher the
    objective must be cross entropy alone.
    """
    assert teacher_NV is not None or objective.ce_weight == 1.0
    scored = labels_N != IGNORED
    dtype = torch.promote_types(student_NV.dtype, torch.float32)
    weight = scored.to(dtype) if weights_N is None else scored * weights_N.to(dtype)
    targets = labels_N.clamp(min=0)
    ce = F.cross_entropy(student_NV.to(dtype), targets, reduction="none")
    accuracy = _likeliest(student_NV).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    loss = objective.ce_weight * ce
    distance, agreement = torch.zeros_like(ce), torch.zeros_like(accuracy)
    if teacher_NV is not None:
        student_common, teacher_common = common_vocabulary(student_NV.to(dtype), teacher_NV.to(dtype))
        distance = divergence(student_common, teacher_common, objective)
        loss = loss + objective.divergence_scale * distance
        agreement = (_likeliest(student_common) & _likeliest(teacher_common)).any(-1)
    return LossSums(
        loss=(weight * loss).sum(),
        divergence=(weight * distance).sum().detach(),
        cross_entropy=(weight * ce).sum().detach(),
        agreement=(weight * agreement).sum(),
        accuracy=(weight * accuracy).sum(),
        weight=weight.sum(),
    )


def _likeliest(logits_NV: Tensor) -> Tensor:
    return logits_NV == logits_NV.amax(-1, keepdim=True)


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share P + (1 - share) Q)."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.log_softmax(logits.to(dtype) / temperature, dim=-1)
