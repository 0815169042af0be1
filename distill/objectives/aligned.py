"""Divergences between models of different tokenizers, span by span of a text that both have read.

Legend: C student tokens and D teacher tokens of a chunk, G spans, J cuts, V student rows, U teacher rows, K events, T
the temperature. A span is the shortest piece of text at whose ends both tokenizations have a token's end
(`text/spans.py`).

**The first token.** At a span's beginning both models have read the same text. Their distributions of the next token
are compared over K events, which both vocabularies can speak of (`events.py`).

**What was said.** Events are coarse, and a span may have several tokens. At each end of a token on either side (a cut)
the text of the span so far has the probability

    F(x) = Q(s_1) .. Q(s_j-1 | ..) R_j(x),   R_j(x) = sum of Q(v | ..) over the tokens v that could stand for s_j

up to x: those that begin like it and that the other tokenizer would cut alike (`text/continuations.py`), or s_j alone
where it ends at x. F(x) / F(x of the cut before) is the probability that the text goes on as it does, for either model,
at the first cut F(x) / probability of the event that it belongs to. Two outcomes, it does or it does not, are compared
at every cut. ALM (2503.20083) compares the two outcomes of whole spans; from cut to cut, small factors do not multiply
to a gradient that vanishes. GOLD (TRL's GOLDTrainer) multiplies the whole distribution of the first token by the
probabilities of the later ones, or that of the last token by the earlier ones', which sums to less than 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.objectives.divergences import Objective, divergence
from distill.objectives.events import Events, Side
from distill.objectives.head import Head

_LEAST = 1e-5  # of the probability that a text does not go on: rounding decides on less


@dataclass(frozen=True)
class Cuts:
    """The cuts of spans, in the order of the text; spans that are their event alone have none.

    `table_J4`: (span, the student's token in which it lies, the teacher's, 1 where the student's ends). `alike_E2`,
    `other_alike_E2`: pairs (cut, id) of the tokens that could stand for the student's or the teacher's up to there, in
    the order of the cuts.
    """

    table_J4: Tensor
    alike_E2: Tensor
    other_alike_E2: Tensor

    def of(self, first: int, last: int) -> Cuts:
        """Those of the spans from `first` to `last`, numbered from 0; tokens keep their numbers."""
        low, high = _rows_between(self.table_J4, first, last)
        alike, other = (
            pairs[slice(*_rows_between(pairs, low, high - 1))] - torch.tensor([low, 0])
            for pairs in (self.alike_E2, self.other_alike_E2)
        )
        return Cuts(self.table_J4[low:high] - torch.tensor([first, 0, 0, 0]), alike, other)

    def on(self, device: torch.device) -> Cuts:
        """The same on a device."""
        return Cuts(self.table_J4.to(device), self.alike_E2.to(device), self.other_alike_E2.to(device))


def _rows_between(table: Tensor, first: int, last: int) -> tuple[int, int]:
    """The half-open range of rows whose first column, which rises, is from `first` to `last`."""
    column, edges = table[:, 0].contiguous(), torch.tensor([first, last + 1])
    low, high = torch.searchsorted(column, edges).tolist()
    return low, high


@dataclass(frozen=True)
class AlignedTargets:
    """What a teacher of another tokenizer says of a batch.

    `spans_N`: for each scored token of the student, in their order, the number of its span, -1 where it is in none.
    `spans_M`, `ids_M`, `hidden_MK`: the teacher's tokens of these spans, and the states that predict them. Spans are
    numbered 0, 1, ... in the order of the text. Spans and cuts are on the CPU.
    """

    spans_N: Tensor
    spans_M: Tensor
    ids_M: Tensor
    hidden_MK: Tensor
    cuts: Cuts
    head: Head
    events: Events
    uld_weight: float = 1.0


@dataclass(frozen=True)
class Tokens:
    """One side of a chunk: logits [C, V], the tokens that followed [C], and their spans [C], from 0 on and in order."""

    logits_CV: Tensor
    ids_C: Tensor
    spans_C: Tensor


def span_distances(
    student: Tokens, teacher: Tokens, cuts: Cuts, events: Events, objective: Objective, uld_weight: float
) -> tuple[Tensor, Tensor]:
    """Distance of each span [G], without T^2, and whether both models have the same likeliest event [G].

    `prefix`: the divergence over the events + those at the cuts. `uld`, spans of one token on either side: the
    teacher's mass on shared tokens x the divergence of the distributions given a shared token + `uld_weight` x
    `sorted_distance` of the others; other spans: the divergences at the cuts, the first one's of F itself. `cuts`: of
    these spans, with the numbers of `student` and `teacher`.
    """
    span_J, ours_J, theirs_J, ended_J = cuts.table_J4.unbind(-1)
    temperature, plain = objective.temperature, replace(objective, temperature=1.0)
    ours, theirs = events.ours, events.theirs
    q_GK, alone_q, log_q_J = _side(student, ours_J, cuts.alike_E2, ours, events.count, temperature)
    with torch.no_grad():
        p_GK, alone_p, log_p_J = _side(teacher, theirs_J, cuts.other_alike_E2, theirs, events.count, temperature)
    shared_q, shared_p = q_GK[:, : events.count], p_GK[:, : events.count]
    distance_G = divergence(_log(shared_q), _log(shared_p), plain)
    first_J = torch.ones_like(span_J, dtype=torch.bool)
    first_J[1:] = span_J[1:] != span_J[:-1]
    if events.unmatched == "prefix":
        event_J = torch.where(
            ended_J == 1, ours.events_V[student.ids_C[ours_J]], theirs.events_V[teacher.ids_C[theirs_J]]
        )
        start_q, start_p = (_log(probabilities[span_J, event_J]) for probabilities in (q_GK, p_GK))
        counted_J = torch.ones_like(first_J)
    else:
        several_G = (torch.bincount(student.spans_C) > 1) | (torch.bincount(teacher.spans_C) > 1)
        distance_G = shared_p.sum(-1) * distance_G + uld_weight * sorted_distance(alone_q, alone_p)
        distance_G, counted_J = distance_G.masked_fill(several_G, 0.0), several_G[span_J]
        start_q, start_p = torch.zeros_like(log_q_J), torch.zeros_like(log_p_J)
    two_q, two_p = _goes_on(log_q_J, start_q, first_J), _goes_on(log_p_J, start_p, first_J)
    distance_G = distance_G.index_add(0, span_J, divergence(two_q, two_p, plain) * counted_J)
    same_G = ((shared_q == shared_q.amax(-1, keepdim=True)) & (shared_p == shared_p.amax(-1, keepdim=True))).any(-1)
    return distance_G, same_G


def sorted_distance(q_GA: Tensor, p_GB: Tensor) -> Tensor:
    """Universal logit distance [G]: sum_i |P_(i) - Q_(i)| of the values from large to small, the shorter list filled up
    with zeros (2402.12030, equation 6)."""
    width = max(q_GA.shape[-1], p_GB.shape[-1])
    q, p = (F.pad(values, (0, width - values.shape[-1])).sort(-1, descending=True).values for values in (q_GA, p_GB))
    return (q - p).abs().sum(-1)


def _side(
    tokens: Tokens, token_J: Tensor, alike_E2: Tensor, side: Side, count: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the spans' first tokens: probabilities of the events and of having none [G, K + 1], and of the unmatched rows;
    of cuts log F [J]."""
    logits = tokens.logits_CV.masked_fill(side.excluded_V, -torch.inf) / temperature
    log_q_CV = torch.log_softmax(logits, -1)
    first_G = _first(tokens.spans_C)
    q_GV = log_q_CV[first_G].exp()
    q_GE = q_GV.new_zeros(len(first_G), count + 1).scatter_add(-1, side.events_V.expand_as(q_GV), q_GV)
    return q_GE, q_GV[:, side.unmatched], _log_reached(tokens, log_q_CV, token_J, alike_E2)


def _log_reached(tokens: Tokens, log_q_CV: Tensor, token_J: Tensor, alike_E2: Tensor) -> Tensor:
    """log F [J]: the tokens of the span before, and the sum over those that could stand for the one cut."""
    own_C = log_q_CV.gather(-1, tokens.ids_C.unsqueeze(-1)).squeeze(-1)
    before_C = own_C.cumsum(0) - own_C
    before_J = before_C[token_J] - before_C[_first(tokens.spans_C)[tokens.spans_C[token_J]]]
    cut_E, id_E = alike_E2.unbind(-1)
    log_q_E = log_q_CV[token_J[cut_E], id_E]
    largest_J = before_J.new_full(before_J.shape, -torch.inf).scatter_reduce(0, cut_E, log_q_E.detach(), "amax")
    total_J = torch.zeros_like(before_J).index_add(0, cut_E, (log_q_E - largest_J[cut_E]).exp())
    return before_J + largest_J + total_J.log()


def _first(spans_C: Tensor) -> Tensor:
    """The first token of each span."""
    sizes_G = torch.bincount(spans_C)
    return sizes_G.cumsum(0) - sizes_G


def _goes_on(log_reached_J: Tensor, start_J: Tensor, first_J: Tensor) -> Tensor:
    """(log c, log (1 - c)) [J, 2], c the probability that the text goes on from the cut before, or from the start."""
    before_J = torch.where(first_J, start_J, log_reached_J.roll(1))
    log_c_J = (log_reached_J - before_J).clamp(max=-_LEAST)
    return torch.stack([log_c_J, torch.log(-torch.expm1(log_c_J))], -1)


def _log(p: Tensor) -> Tensor:
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()
