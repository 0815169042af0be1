"""From logits to tokens: penalties, temperature, filters, noise; vectorised over the rows of a step.

Legend: R rows (sequences that sample now), V vocabulary. Noise is counter-based: the uniform number of a token depends
on its request's seed and its position alone, so a request samples the same text in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from importlib.util import find_spec

import numpy as np
import torch

from distill.engine.constrained.grammar import Progress
from distill.engine.sequence import Sequence
from distill.engine.types import TokenLogprob

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NARROW = 128  # top-p looks at so many candidates before it sorts the whole vocabulary


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: uint64 -> uint64, one to one and well spread (Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def child_seed(seed: int, index: int) -> int:
    """Seed of the n-th choice of one request; the first keeps the request's own."""
    if index == 0:
        return seed
    with np.errstate(over="ignore"):
        return int(mix(np.array([seed % 2**64], dtype=np.uint64) + np.uint64(index) * _GOLDEN)[0])


def uniforms(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) from (seed, position), both uint64 [R] -> float64 [R] with 53 random bits."""
    with np.errstate(over="ignore"):
        bits = mix(mix(seeds) + (positions + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> tuple[list[int], list[TokenLogprob | None]]:
    """The next token of every sequence from its row of logits [R, V], and log probabilities where asked for."""
    params = [s.params for s in sequences]
    wanted = [i for i, p in enumerate(params) if p.logprobs is not None]
    raw = logits[wanted] if wanted else None  # a copy: what follows writes into the logits
    shape(logits, sequences)
    token_ids: list[int] = choose(logits, sequences).tolist()
    reports: list[TokenLogprob | None] = [None] * len(sequences)
    if raw is not None:
        counts = [params[i].logprobs or 0 for i in wanted]
        found = logprobs_of(raw, [token_ids[i] for i in wanted], counts)
        for i, report in zip(wanted, found, strict=True):
            reports[i] = report
    return token_ids, reports


def choose(logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """The next token of every sequence from its row of logits [R, V] as they stand, on their device."""
    tokens = logits.argmax(-1)
    drawn = [i for i, s in enumerate(sequences) if s.params.temperature > 0.0]
    if drawn:
        rows = _there(drawn, torch.int64, logits.device)
        chosen = [sequences[i] for i in drawn]
        tokens[rows] = draw(distribution(logits[rows].float(), chosen), [s.seed for s in chosen], chosen)
    return tokens


def shape(logits: torch.Tensor, sequences: Seq[Sequence]) -> None:
    """Bias, penalties and the ban on an early end, on rows of logits [R, V] in place."""
    for row, sequence in enumerate(sequences):
        if sequence.params.logit_bias:
            tokens_at, biases = zip(*sequence.params.logit_bias, strict=True)
            logits[row, list(tokens_at)] += torch.tensor(biases, dtype=logits.dtype, device=logits.device)
        if sequence.params.has_penalties:
            _penalise(logits[row], sequence)
        if sequence.num_output < sequence.params.min_tokens and sequence.stop_ids:
            logits[row, list(sequence.stop_ids)] = float("-inf")
        if sequence.progress is not None:
            _constrain(logits[row], sequence, sequence.progress)


def _penalise(logits: torch.Tensor, sequence: Sequence) -> None:
    """Change one row [V] in place. Repetition: tokens of prompt and output, positive logits divided and negative ones
    multiplied (Keskar et al., 2019). Presence and frequency: tokens of the output, as OpenAI defines them."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sequence.token_ids, device=logits.device).unique()
        at = logits[seen]
        logits[seen] = torch.where(at > 0, at / params.repetition_penalty, at * params.repetition_penalty)
    if (params.presence_penalty or params.frequency_penalty) and sequence.num_output:
        output, counts = torch.tensor(sequence.output_ids, device=logits.device).unique(return_counts=True)
        logits[output] -= params.presence_penalty + params.frequency_penalty * counts.to(logits.dtype)


def _constrain(logits: torch.Tensor, sequence: Sequence, progress: Progress) -> None:
    """Leave one row [V] the tokens that its grammar allows, in place. Where min_tokens forbids all of them, the grammar
    is the stronger."""
    progress.follow(sequence.output_ids)
    if progress.ending is None:
        allowed = torch.from_numpy(progress.allowed).to(logits.device)
        if sequence.num_output < sequence.params.min_tokens and not bool((logits[allowed] > float("-inf")).any()):
            logits[allowed] = 0.0
        logits.masked_fill_(~allowed, float("-inf"))


def distribution(logits: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """Probabilities [R, V] at each row's temperature, 0 where its filters cut; what they leave is not scaled to 1."""
    params = [s.params for s in sequences]
    probs = torch.softmax(logits / _column([p.temperature for p in params], logits), dim=-1)
    if any(p.top_k or p.top_p < 1.0 or p.min_p > 0.0 for p in params):
        probs = probs.masked_fill(probs < _thresholds(probs, sequences), 0.0)
    return probs


def draw(weights: torch.Tensor, seeds: Seq[int], sequences: Seq[Sequence]) -> torch.Tensor:
    """A token a row of weights [R, V]: the inverse of the cumulative distribution, in the order of token ids, at the
    uniform number of the row's seed and its sequence's position."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    noise = _there(noise_of(seeds, sequences), torch.float64, weights.device).unsqueeze(1)
    target = noise * cumulative[:, -1:]
    # target < total except by rounding; the first index that reaches the total is the last token with any probability
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last).squeeze(1)


def noise_of(seeds: Seq[int], sequences: Seq[Sequence]) -> np.ndarray:
    """The uniform number of each seed at its sequence's next position, float64 [R]."""
    own = np.fromiter((seed % 2**64 for seed in seeds), dtype=np.uint64, count=len(sequences))
    positions = np.fromiter((s.num_output for s in sequences), dtype=np.uint64, count=len(sequences))
    return uniforms(own, positions)


def _thresholds(probs: torch.Tensor, sequences: Seq[Sequence]) -> torch.Tensor:
    """Smallest probability that each row's filters keep, [R, 1]: top-k, then top-p of what is left, then min-p."""
    params = [s.params for s in sequences]
    vocab = probs.shape[-1]
    threshold = probs.amax(-1, keepdim=True) * _column([p.min_p for p in params], probs)
    if all(p.top_p >= 1.0 and not p.top_k for p in params):
        return threshold
    top_k = _there([min(p.top_k or vocab, vocab) for p in params], torch.int64, probs.device).unsqueeze(1)
    top_p = _column([p.top_p for p in params], probs)
    if probs.is_cuda and not any(p.top_k for p in params) and find_spec("triton") is not None:
        from distill.kernels.nucleus import nucleus_threshold  # Triton is not installed everywhere

        smallest = nucleus_threshold(probs, top_p * probs.sum(-1, keepdim=True))
        return torch.maximum(threshold, smallest.masked_fill(top_p >= 1.0, 0.0))
    # most distributions are so peaked that few candidates hold all the mass top-p asks for
    width = min(vocab, max(_NARROW, *(p.top_k for p in params)))
    best = probs.topk(width, dim=-1).values
    open_ended = (top_k > width) & (top_p < 1.0) & (best.sum(-1, keepdim=True) < top_p)
    if width < vocab and any(p.top_p < 1.0 and not p.top_k for p in params) and bool(open_ended.any()):
        best = probs.sort(dim=-1, descending=True).values
    rank = torch.arange(best.shape[-1], device=probs.device)
    best = best.masked_fill(rank >= top_k, 0.0)
    # the mass to share out: what top-k keeps, or everything
    mass = torch.where(top_k < vocab, best.sum(-1, keepdim=True), probs.sum(-1, keepdim=True))
    before = best.cumsum(-1) - best
    kept = (before < top_p * mass) & (best > 0)
    smallest = torch.where(kept, best, torch.inf).amin(-1, keepdim=True)
    unfiltered = (top_p >= 1.0) & (top_k >= vocab)
    return torch.maximum(threshold, smallest.masked_fill(unfiltered, 0.0))


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return _there(values, like.dtype, like.device).unsqueeze(1)


def _there(values: Seq[float] | np.ndarray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers of the host on a device, which is not waited for."""
    here = torch.as_tensor(values, dtype=dtype)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here


def logprobs_of(logits: torch.Tensor, token_ids: list[int], counts: list[int]) -> list[TokenLogprob]:
    """Log probabilities of tokens under the unchanged logits [R, V], and the best `counts` of each row."""
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    targets = torch.tensor(token_ids, device=logits.device).unsqueeze(1)
    chosen = (logits.gather(1, targets) - total).squeeze(1).tolist()
    width = min(max(counts), logits.shape[-1])
    if width == 0:
        return [TokenLogprob(t, p) for t, p in zip(token_ids, chosen, strict=True)]
    best, ids = logits.max(-1, keepdim=True) if width == 1 else logits.topk(width, dim=-1)
    rows = zip(token_ids, chosen, ids.tolist(), (best - total).tolist(), counts, strict=True)
    return [
        TokenLogprob(token, own, tuple(zip(row_ids, values, strict=True))[:count])
        for token, own, row_ids, values, count in rows
    ]


def score(logits: torch.Tensor, token_ids: list[int], depth: int) -> list[TokenLogprob]:
    """How likely the tokens [R] are under their logits [R, V], with the likeliest `depth` tokens, one at least."""
    return logprobs_of(logits, token_ids, [max(1, depth)] * len(token_ids))
