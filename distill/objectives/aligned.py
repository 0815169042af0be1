"""Divergences between models of different tokenizers, span by span of a text that both have read.

Legend: C student tokens and D teacher tokens of a chunk, G spans, V student rows, U teacher rows, K events, T the
temperature. A span is the shortest piece of text at whose ends both tokenizations have a token's end (`text/spans.py`).

At a span's beginning both models have read the same text and predict what follows. Each one's distribution of its first
token is pushed to the K events (`events.py`), after the observed text has been taken out of it as an event of its own:
its probability is that of all tokens of the span one after the other (the chain rule),

    S = Q(s_1) Q(s_2 | s_1) ... Q(s_m | s_1 .. s_m-1),   and Q(s_1) - S is left of the first token,

so that what is compared are distributions, which sum to 1. If one side writes the span as one token and the other has
that token too, S counts to its event. Spans of one token on either side need nothing of it: their text is an event.

GOLD (TRL's GOLDTrainer) multiplies the whole distribution of the first token ("observed") or the last one ("bayesian")
by the others' probabilities, which sums to less than 1 and for the last one compares texts with different beginnings;
ALM (2503.20083) compares S alone, as two outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.objectives.divergences import Objective, divergence
from distill.objectives.events import Events, Side
from distill.objectives.head import Head


@dataclass(frozen=True)
class AlignedTargets:
    """What a teacher of another tokenizer says of a batch.

    `spans_N`: for each scored token of the student, in their order, the number of its span, -1 where it is in none.
    `spans_M`, `ids_M`, `hidden_MK`: the teacher's tokens of these spans, and the states that predict them. Spans are
    numbered 0, 1, ... in the order of the text; `spans_N` and `spans_M` are on the CPU.
    """

    spans_N: Tensor
    spans_M: Tensor
    ids_M: Tensor
    hidden_MK: Tensor
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
    student: Tokens, teacher: Tokens, events: Events, objective: Objective, uld_weight: float
) -> tuple[Tensor, Tensor]:
    """Distance of each span [G], without T^2, and whether both models have the same likeliest event [G].

    `prefix`: the divergence over the events. `uld`: the teacher's mass on shared tokens x the divergence of the
    distributions given a shared token + `uld_weight` x sum |sorted P - sorted Q| over the unshared ones.
    """
    sizes, other_sizes = (torch.bincount(side.spans_C) for side in (student, teacher))
    split_G = (sizes != 1) | (other_sizes != 1)
    first, other_first = sizes.cumsum(0) - sizes, other_sizes.cumsum(0) - other_sizes
    slot_G = _slots(student.ids_C[first], sizes, events.ours, events.count)
    other_slot_G = _slots(teacher.ids_C[other_first], other_sizes, events.theirs, events.count)
    slot_G = torch.where(slot_G < events.count, slot_G, other_slot_G)
    q_GE, alone_q = _events(student, first, split_G, slot_G, events.ours, events.count, objective.temperature)
    with torch.no_grad():
        p_GE, alone_p = _events(
            teacher, other_first, split_G, slot_G, events.theirs, events.count, objective.temperature
        )
    distance_G = divergence(_log(q_GE), _log(p_GE), replace(objective, temperature=1.0))
    if events.unmatched == "uld":
        distance_G = p_GE.sum(-1) * distance_G + uld_weight * sorted_distance(alone_q, alone_p)
    likeliest_G = ((q_GE == q_GE.amax(-1, keepdim=True)) & (p_GE == p_GE.amax(-1, keepdim=True))).any(-1)
    return distance_G, likeliest_G


def sorted_distance(q_GA: Tensor, p_GB: Tensor) -> Tensor:
    """Universal logit distance [G]: sum_i |P_(i) - Q_(i)| of the values from large to small, the shorter list filled up
    with zeros (2402.12030, equation 6)."""
    width = max(q_GA.shape[-1], p_GB.shape[-1])
    q, p = (F.pad(values, (0, width - values.shape[-1])).sort(-1, descending=True).values for values in (q_GA, p_GB))
    return (q - p).abs().sum(-1)


def _slots(first_ids_G: Tensor, sizes_G: Tensor, side: Side, count: int) -> Tensor:
    """The event of spans that are one token here which both vocabularies have; `count`, one of their own, elsewhere."""
    one = (sizes_G == 1) & side.exact_V[first_ids_G]
    return torch.where(one, side.events_V[first_ids_G], count)


def _events(
    tokens: Tokens, first: Tensor, split_G: Tensor, slot_G: Tensor, side: Side, count: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Probabilities of the events and, last, of the spans [G, K + 1]; and those of the unmatched tokens."""
    logits = tokens.logits_CV.masked_fill(side.excluded_V, -torch.inf) / temperature
    log_q_CV = torch.log_softmax(logits, -1)
    own_C = log_q_CV.gather(-1, tokens.ids_C.unsqueeze(-1)).squeeze(-1)
    later_C = own_C.scatter(0, first, 0.0)
    later_G = own_C.new_zeros(len(first)).index_add(0, tokens.spans_C, later_C)
    q_GV, at = log_q_CV[first].exp(), tokens.ids_C[first].unsqueeze(-1)
    first_G = q_GV.gather(-1, at).squeeze(-1)
    left_G = torch.where(split_G, first_G * -torch.expm1(later_G), first_G)
    span_G = torch.where(split_G, first_G * later_G.exp(), 0.0)
    q_GV = q_GV.scatter(-1, at, left_G.unsqueeze(-1))
    q_GE = q_GV.new_zeros(len(first), count + 2).scatter_add(-1, side.events_V.expand_as(q_GV), q_GV)
    q_GE = q_GE.scatter_add(-1, slot_G.unsqueeze(-1), span_G.unsqueeze(-1))
    return q_GE[:, : count + 1], q_GV[:, side.unmatched]


def _log(p: Tensor) -> Tensor:
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()
