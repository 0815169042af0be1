"""Which guesses of a draft model stand: speculative sampling (Leviathan et al., 2211.17192; Chen et al., 2302.01318).

A guess x, drawn from the draft's q, is kept with probability min(1, p(x) / q(x)), p being the target's distribution in
the same place. The first one that is not is replaced by a draw from max(0, p - q), scaled to 1, and ends the run; a run
that is kept whole ends with a draw from p. Either way each token is distributed as p says. p and q are taken after
bias, penalties, temperature and filters. At temperature 0 both are single tokens: a guess is kept iff it is the
target's likeliest.

Legend: R rows of logits (1 + number of guesses a sequence), V vocabulary. The noise of each decision is counter-based,
like the sampler's, from streams of its own.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from distill.engine import sampler
from distill.engine.sequence import Sequence
from distill.engine.types import TokenLogprob

# seeds of choices are children 0, 1, 2 ... of a request's; these are far from them
DRAFT_STREAM, _ACCEPT_STREAM, _REPLACE_STREAM = 2**32, 2**32 + 1, 2**32 + 2


@dataclass
class Proposal:
    """A draft's guesses, and the distribution [V] that each was drawn from (none where the request is greedy)."""

    tokens: list[int] = field(default_factory=list)
    probs: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """The kept guesses and the target's own token after them, with log probabilities where asked for."""

    tokens: list[int]
    reports: list[TokenLogprob | None]

    @property
    def num_accepted(self) -> int:
        return len(self.tokens) - 1


def verify(logits: torch.Tensor, sequences: Seq[Sequence], proposals: Seq[Proposal]) -> list[Verdict]:
    """Verdicts from logits [R, V], which it overwrites; the sequences' last tokens are the guesses."""
    views = [
        sequence.until(len(sequence.token_ids) - len(proposal.tokens) + i)
        for sequence, proposal in zip(sequences, proposals, strict=True)
        for i in range(len(proposal.tokens) + 1)
    ]
    starts = list(accumulate((len(p.tokens) + 1 for p in proposals), initial=0))[:-1]
    reported = [row for row, view in enumerate(views) if view.params.logprobs is not None]
    raw = logits[reported] if reported else None  # a copy
    sampler.shape(logits, views)
    best: list[int] = logits.argmax(-1).tolist()
    chosen = [_greedy(p.tokens, best[start:]) for p, start in zip(proposals, starts, strict=True)]
    drawn = [i for i, s in enumerate(sequences) if s.params.temperature > 0.0]
    if drawn:
        rows = [row for i in drawn for row in range(starts[i], starts[i] + len(proposals[i].tokens) + 1)]
        own = [views[row] for row in rows]
        probs = normalised(sampler.distribution(logits[rows], own))
        for i, tokens in zip(drawn, _sampled(probs, own, [proposals[i] for i in drawn]), strict=True):
            chosen[i] = tokens
    verdicts = [Verdict(tokens, [None] * len(tokens)) for tokens in chosen]
    if raw is not None:
        _report(raw, reported, verdicts, starts, sequences)
    return verdicts


def normalised(weights: torch.Tensor) -> torch.Tensor:
    """Rows that add up to 1."""
    return weights / weights.sum(-1, keepdim=True)


def _greedy(guesses: list[int], best: Seq[int]) -> list[int]:
    """The guesses up to the first that is not the likeliest token in its place, and the likeliest in that place."""
    kept = next((i for i, token in enumerate(guesses) if token != best[i]), len(guesses))
    return [*guesses[:kept], best[kept]]


def _sampled(probs: torch.Tensor, views: Seq[Sequence], proposals: Seq[Proposal]) -> list[list[int]]:
    """Rejection sampling; probs [R, V] and views are those of all proposals, one after the other."""
    starts = list(accumulate((len(p.tokens) + 1 for p in proposals), initial=0))[:-1]
    kept = _num_kept(probs, views, proposals, starts)
    last = [start + count for start, count in zip(starts, kept, strict=True)]
    weights = probs[last]
    replaced = [i for i, p in enumerate(proposals) if kept[i] < len(p.tokens)]
    if replaced:
        drafted = torch.stack([proposals[i].probs[kept[i]] for i in replaced])
        residual = (weights[replaced] - drafted).clamp_(min=0.0)
        # rounding alone can leave nothing, where p and q are the same
        weights[replaced] = torch.where(residual.sum(-1, keepdim=True) > 0.0, residual, weights[replaced])
    seeds = [views[row].seed for row in last]
    for i in replaced:
        seeds[i] = sampler.child_seed(seeds[i], _REPLACE_STREAM)
    final: list[int] = sampler.draw(weights, seeds, [views[row] for row in last]).tolist()
    return [[*p.tokens[:count], token] for p, count, token in zip(proposals, kept, final, strict=True)]


def _num_kept(probs: torch.Tensor, views: Seq[Sequence], proposals: Seq[Proposal], starts: Seq[int]) -> list[int]:
    """How many guesses of each proposal stand before the first that does not."""
    at = [start + i for p, start in zip(proposals, starts, strict=True) for i in range(len(p.tokens))]
    if not at:
        return [0] * len(proposals)
    tokens = torch.tensor([token for p in proposals for token in p.tokens], device=probs.device).unsqueeze(1)
    drafted = torch.stack([row for p in proposals for row in p.probs])
    ratios = (probs[at].gather(1, tokens).double() / drafted.gather(1, tokens).double()).squeeze(1)
    guessed = [views[row] for row in at]
    noise = sampler.noise_of([sampler.child_seed(v.seed, _ACCEPT_STREAM) for v in guessed], guessed)
    stands = iter((torch.from_numpy(noise).to(probs.device) < ratios).tolist())
    each = [[next(stands) for _ in p.tokens] for p in proposals]
    return [row.index(False) if False in row else len(row) for row in each]


def _report(
    raw: torch.Tensor, reported: Seq[int], verdicts: Seq[Verdict], starts: Seq[int], sequences: Seq[Sequence]
) -> None:
    """Fill in log probabilities from the unchanged rows `reported` of the logits."""
    place = {row: index for index, row in enumerate(reported)}
    wanted = [
        (i, j, starts[i] + j, s.params.logprobs)
        for i, s in enumerate(sequences)
        for j in range(len(verdicts[i].tokens))
        if s.params.logprobs is not None
    ]
    tokens = [verdicts[i].tokens[j] for i, j, _, _ in wanted]
    found = sampler.logprobs_of(raw[[place[row] for _, _, row, _ in wanted]], tokens, [n for *_, n in wanted])
    for (i, j, _, _), report in zip(wanted, found, strict=True):
        verdicts[i].reports[j] = report
