"""Divergences against a teacher of whom only some probabilities are known: its top k and the rest's mass, or samples.

Legend: C tokens of a chunk, N tokens, V student rows, R rows of the teacher's distribution, E stored entries of all
tokens together, m of the student's own tokens, P = teacher, Q = softmax(student / T).

**Top k.** P is known on the kept ids; of the others only the sum (the tail) and that none exceeds the smallest kept
probability c. The loss takes the P that is nearest to the student among all that agree with this: on the tail
P_i = min(c, lambda Q_i), lambda such that the tail sums to its mass. That P minimises every f-divergence at once, so
each is the greatest lower bound of the true one, 0 only for students that agree with what is stored, and its gradient
is the partial one at that P. Without the cap c it is the divergence of coarser distributions (kept ids, one bucket);
without the bucket (a cut top k) reverse KL rewards a student for leaving the kept ids: it collapses.

**Samples.** Of n draws of P, n_i fell on i. The weights n_i / n are P in expectation, so the gradient of forward KL is
unbiased (Sparse Logit Sampling, 2503.16870, with the proposal P itself); other divergences are not linear in P.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.objectives.divergences import Objective

_TINY = 1e-30


@dataclass(frozen=True)
class SparseTargets:
    """What is known of P for N tokens: `ids_E` of token n are those from `offsets[n]` to `offsets[n + 1]`.

    `logprobs_E` at the objective's temperature over `rows` rows. Top k: `log_tail_N` is the logarithm of the mass of
    all other rows; a token without entries has all of it there and asks nothing of the student. Samples: `log_tail_N`
    is None, `logprobs_E` are logarithms of the weights, `entropy_N` is the teacher's, which only the value needs.
    """

    rows: int
    offsets: Tensor
    ids_E: Tensor
    logprobs_E: Tensor
    log_tail_N: Tensor | None = None
    entropy_N: Tensor | None = None

    def __post_init__(self) -> None:
        assert (self.log_tail_N is None) != (self.entropy_N is None), "either a tail or samples"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, begin: int, end: int) -> SparseTargets:
        """The tokens from `begin` to `end`."""
        end = min(end, len(self))
        first, last = int(self.offsets[begin]), int(self.offsets[end])
        return replace(
            self,
            offsets=self.offsets[begin : end + 1] - first,
            ids_E=self.ids_E[first:last],
            logprobs_E=self.logprobs_E[first:last],
            log_tail_N=None if self.log_tail_N is None else self.log_tail_N[begin:end],
            entropy_N=None if self.entropy_N is None else self.entropy_N[begin:end],
        )

    def on(self, device: torch.device) -> SparseTargets:
        """The same, with everything but the offsets on a device."""

        def moved(values: Tensor) -> Tensor:
            return values.to(device, non_blocking=True)

        return replace(
            self,
            ids_E=moved(self.ids_E),
            logprobs_E=moved(self.logprobs_E),
            log_tail_N=None if self.log_tail_N is None else moved(self.log_tail_N),
            entropy_N=None if self.entropy_N is None else moved(self.entropy_N),
        )


def require_sound(objective: Objective, *, sampled: bool) -> None:
    """Refuse a divergence that samples estimate with a bias. Raises DistillError."""
    if sampled and objective.ce_weight < 1.0 and objective.divergence != "forward_kl":
        raise DistillError(
            f"sampled ids estimate forward_kl without bias, and {objective.divergence} not at all",
            remedy="set divergence: forward_kl, or signal.kind: top_k or hidden",
        )


def divergence_terms(log_p: Tensor, log_q: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """(value, slope) of each entry, or of a bucket whose entries share one ratio P/Q.

    The divergence is the sum of the values; its derivative by logit z_v, times T, is slope_v - Q_v * (sum of slopes).
    For an f-divergence sum Q f(P/Q): value = Q f(r), slope = Q (f(r) - r f'(r)), r = P/Q.
    """
    p, q = log_p.exp(), log_q.exp()
    if objective.divergence == "forward_kl":
        return p * (log_p - log_q), -p
    if objective.divergence == "reverse_kl":
        value = q * (log_q - log_p)
        return value, value + q
    if objective.divergence == "tvd":
        return 0.5 * (p - q).abs(), -0.5 * q * torch.sign(p - q)
    share = objective.mixture
    log_m = torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))
    if objective.divergence == "skew_forward_kl":
        return p * (log_p - log_m), -(1.0 - share) * q * (log_p - log_m).exp()
    if objective.divergence == "skew_reverse_kl":
        value = q * (log_q - log_m)
        return value, value + q - (1.0 - share) * q * (log_q - log_m).exp()
    beta = share
    to_student = (1.0 - beta) * q * (log_q - log_m)
    return beta * p * (log_p - log_m) + to_student, to_student


def sparse_chunk_loss(
    student_CV: Tensor,
    targets: SparseTargets,
    labels_C: Tensor,
    weights_C: Tensor | None,
    objective: Objective,
    own_tokens: int,
) -> tuple[Tensor, Tensor]:
    """(loss, divergence, ce, agreement, accuracy, weight) sums and d loss / d student logits [C, V] of one chunk.

    The same sums as `head.chunk_loss`. `own_tokens`: so many of the student's likeliest tokens in the tail are held to
    the cap; 0 leaves one bucket.
    """
    labels = labels_C.unsqueeze(-1)
    norm_C = torch.logsumexp(student_CV, dim=-1)
    ce = norm_C - student_CV.gather(-1, labels).squeeze(-1)
    weight = torch.ones_like(ce) if weights_C is None else weights_C
    rows = min(targets.rows, student_CV.shape[-1])
    assert rows == targets.rows, "targets beyond the student's vocabulary"
    distance, gradient = _divergence_and_slope(student_CV[:, :rows], targets, objective, own_tokens)
    gradient.mul_(objective.divergence_scale / objective.temperature)
    if rows != student_CV.shape[-1]:
        gradient = torch.nn.functional.pad(gradient, (0, student_CV.shape[-1] - rows))
    if objective.ce_weight > 0.0:
        soft = torch.exp(student_CV - norm_C.unsqueeze(-1)).mul_(objective.ce_weight)
        gradient.add_(soft)
        gradient.scatter_add_(-1, labels, torch.full_like(labels, -objective.ce_weight, dtype=gradient.dtype))
    if weights_C is not None:
        gradient.mul_(weight.unsqueeze(-1))
    loss = objective.divergence_scale * distance + objective.ce_weight * ce
    agreement = (student_CV[:, :rows].argmax(-1) == _first_ids(targets)).to(ce.dtype)
    accuracy = (student_CV.argmax(-1) == labels_C).to(ce.dtype)
    columns = torch.stack([loss, distance, ce, agreement, accuracy, torch.ones_like(ce)])
    return columns @ weight, gradient


def _divergence_and_slope(
    student_CR: Tensor, targets: SparseTargets, objective: Objective, own_tokens: int
) -> tuple[Tensor, Tensor]:
    """Divergence [C] and T times its derivative by the student's logits [C, R]."""
    log_q_CR = torch.log_softmax(student_CR / objective.temperature, dim=-1)
    count = log_q_CR.shape[0]
    token_E = _tokens_of(targets)
    log_p_E, at = targets.logprobs_E.to(log_q_CR.dtype), (token_E, targets.ids_E)
    log_q_E = log_q_CR[at]
    slope_CR = log_q_CR.exp_()
    if targets.log_tail_N is None:
        assert targets.entropy_N is not None
        value_E, slope_E = -log_p_E.exp() * log_q_E, -log_p_E.exp()
        distance = _sums(value_E, token_E, count) - targets.entropy_N.to(value_E.dtype)
        total = _sums(slope_E, token_E, count)
        slope_CR.mul_(-total.unsqueeze(-1))
        slope_CR.index_put_(at, slope_E, accumulate=True)
        return distance, slope_CR
    value_E, slope_E = divergence_terms(log_p_E, log_q_E, objective)
    distance, total = _sums(value_E, token_E, count), _sums(slope_E, token_E, count)
    slope_CR[at] = 0.0  # what is left is the tail
    tail = _tail(slope_CR, targets.log_tail_N.to(log_p_E.dtype), _smallest(log_p_E, token_E, count), own_tokens)
    value_C, slope_C = divergence_terms(tail.log_p_C, tail.log_q_C, objective)
    value_Cm, slope_Cm = divergence_terms(tail.log_cap_C.unsqueeze(-1), tail.own_q_Cm.log(), objective)
    distance = distance + value_C + (value_Cm * tail.capped_Cm).sum(-1)
    total = total + slope_C + (slope_Cm * tail.capped_Cm).sum(-1)
    slope_CR.mul_((slope_C / tail.log_q_C.exp() - total).unsqueeze(-1))
    held = slope_Cm - tail.own_q_Cm * total.unsqueeze(-1)
    slope_CR.scatter_(-1, tail.own_ids_Cm, torch.where(tail.capped_Cm, held, slope_CR.gather(-1, tail.own_ids_Cm)))
    slope_CR[at] = slope_E - log_q_E.exp() * total[token_E]
    return distance, slope_CR


@dataclass(frozen=True)
class _Tail:
    """The nearest P on the tail: `log_cap_C` where capped, else a bucket of masses `log_p_C` (P) and `log_q_C` (Q)."""

    log_p_C: Tensor
    log_q_C: Tensor
    log_cap_C: Tensor
    capped_Cm: Tensor
    own_q_Cm: Tensor
    own_ids_Cm: Tensor


def _tail(q_CR: Tensor, log_tail_C: Tensor, log_cap_C: Tensor, own_tokens: int) -> _Tail:
    """Water filling: the student's likeliest tail tokens are capped one by one until lambda times the next fits.

    `q_CR` is zero on the kept ids. What is left of Q is summed from what is left, never as a difference: float32 would
    lose small masses and lambda be anything.
    """
    mass_C, cap_C = log_tail_C.exp(), log_cap_C.exp()
    own_q_Cm, own_ids_Cm = q_CR.topk(min(own_tokens, q_CR.shape[-1]), dim=-1)
    rest_C = q_CR.scatter_(-1, own_ids_Cm, 0.0).sum(-1, keepdim=True)
    q_CR.scatter_(-1, own_ids_Cm, own_q_Cm)
    places = torch.arange(own_q_Cm.shape[-1] + 1, device=q_CR.device, dtype=q_CR.dtype)
    p_left = mass_C.unsqueeze(-1) - places * cap_C.unsqueeze(-1)  # after so many are capped
    q_left = torch.cat([rest_C, own_q_Cm.flip(-1)], dim=-1).cumsum(-1).flip(-1).clamp_min(_TINY)
    too_high = p_left[:, :-1] * own_q_Cm > cap_C.unsqueeze(-1) * q_left[:, :-1]
    capped_Cm = too_high.long().cumprod(-1).bool()
    number = capped_Cm.sum(-1, keepdim=True)
    return _Tail(
        log_p_C=p_left.gather(-1, number).squeeze(-1).clamp_min(_TINY).log(),
        log_q_C=q_left.gather(-1, number).squeeze(-1).log(),
        log_cap_C=log_cap_C,
        capped_Cm=capped_Cm,
        own_q_Cm=own_q_Cm.clamp_min(_TINY),
        own_ids_Cm=own_ids_Cm,
    )


def _sums(values_E: Tensor, token_E: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=values_E.dtype, device=values_E.device).index_add_(0, token_E, values_E)


def _smallest(log_p_E: Tensor, token_E: Tensor, count: int) -> Tensor:
    """The smallest kept log probability of each token; 0 (no bound) where none is kept."""
    start = torch.zeros(count, dtype=log_p_E.dtype, device=log_p_E.device)
    return start.scatter_reduce(0, token_E, log_p_E, "amin", include_self=True)


def _first_ids(targets: SparseTargets) -> Tensor:
    """The likeliest kept id of each token (of equally likely ones the largest), -1 where none is kept."""
    token_E = _tokens_of(targets)
    largest = targets.logprobs_E.new_full((len(targets),), -math.inf)
    largest.scatter_reduce_(0, token_E, targets.logprobs_E, "amax")
    likeliest = torch.where(targets.logprobs_E == largest[token_E], targets.ids_E, -1)
    found = torch.full((len(targets),), -1, dtype=torch.long, device=token_E.device)
    return found.scatter_reduce_(0, token_E, likeliest, "amax")


def _tokens_of(targets: SparseTargets) -> Tensor:
    """The token of each entry, on the entries' device, which is not waited for."""
    sizes = targets.offsets.diff().to(targets.ids_E.device, non_blocking=True)
    tokens = torch.arange(len(targets), device=sizes.device)
    return torch.repeat_interleave(tokens, sizes, output_size=len(targets.ids_E))
