"""Bytes against error of top-k forms: ours, and DistillKit's two published settings by their description.

DistillKit (README, "Recommended configuration" and "budget pick"): the k likeliest ids of log2 V bits each, the first
`exact` log probabilities in bfloat16, the others by a least-squares fit in the rank; 344 and 127 bytes a token at
V = 151,936. What is missing of the mass is spread evenly over the other rows, in both (their `symmetric_uniform`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distill.teacher.bits import packed_bytes, width_of
from distill.teacher.forms import MAX_KEPT, Sparse, encode_sampled
from distill.teacher.stored import About, Fingerprint, Record
from distill.teacher.top_k_form import encode_top_k
from distill.train.packed_signals import lay
from distill.train.reductions import drawn_of

ROW_TOKENS, INDEX_BYTES = 128, 32  # a row of the store costs an index record
THRESHOLDS = tuple(0.03 * 0.87**step for step in range(64))
STEPS_NATS = (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Peer:
    """One of DistillKit's settings."""

    name: str
    k: int
    exact: int
    powers: tuple[float, ...]

    def bytes_per_token(self, rows: int) -> int:
        return 2 * self.exact + 4 * len(self.powers) + packed_bytes(self.k, width_of(rows))


PEERS = (
    Peer("DistillKit k=128", 128, 16, (0, 1, 2, 3, 4, 0.5)),
    Peer("DistillKit k=50", 50, 1, (0, 1, 0.5)),
)


@dataclass(frozen=True)
class Tokens:
    """Of N tokens: the 255 likeliest log probabilities and ids, and the entropy, which is all that errors need."""

    rows: int
    top_NK: NDArray[np.float64]
    ids_NK: NDArray[np.int64]
    entropy_N: NDArray[np.float64]
    sampled_bytes: float

    @classmethod
    def of(cls, chunks: Sequence[torch.Tensor] | object, draws: int, seed: int = 0) -> Tokens:
        """From log probabilities [C, R], chunk by chunk."""
        generator = torch.Generator().manual_seed(seed)
        tops, ids, entropies, size, rows = [], [], [], 0, 0
        for log_p in chunks:  # type: ignore[attr-defined]
            rows = log_p.shape[-1]
            top, index = log_p.topk(MAX_KEPT, -1)
            tops.append(top.double().numpy())
            ids.append(index.numpy())
            entropies.append(-(log_p.exp() * log_p).sum(-1).double().numpy())
            size += len(encode_sampled(drawn_of(log_p, draws, generator).fetch(), rows, draws))
        found = np.concatenate(entropies)
        sampled = size / len(found) + INDEX_BYTES / ROW_TOKENS
        return cls(rows, np.concatenate(tops), np.concatenate(ids), found, sampled)


def error_of(
    tokens: Tokens, k_N: NDArray[np.int64], told_NK: NDArray[np.float64], tail_N: NDArray[np.float64]
) -> float:
    """Mean KL(P || what is told of it), nats: the first `k_N` of each token as told, `tail_N` evenly on all others."""
    kept = np.arange(MAX_KEPT) < k_N[:, None]
    p = np.exp(tokens.top_NK) * kept
    of_kept = (p * (tokens.top_NK - told_NK)).sum(-1)
    rest_entropy = -tokens.entropy_N - (p * tokens.top_NK).sum(-1)  # sum of p log p over the others
    rest = np.maximum(1.0 - p.sum(-1), 0.0)
    share = np.log(np.maximum(tail_N, 1e-30)) - np.log(tokens.rows - k_N)
    return float((of_kept + rest_entropy - rest * share).mean())


def peer_error(tokens: Tokens, peer: Peer) -> float:
    """What the peer's form loses."""
    told = np.zeros_like(tokens.top_NK)
    told[:, : peer.exact] = torch.from_numpy(tokens.top_NK[:, : peer.exact]).bfloat16().double().numpy()
    rank = np.arange(peer.k - peer.exact, dtype=np.float64)
    terms = np.stack([rank**power for power in peer.powers], -1)
    scale = np.abs(terms).max(0)
    fit, *_ = np.linalg.lstsq(terms / scale, tokens.top_NK[:, peer.exact : peer.k].T, rcond=None)
    told[:, peer.exact : peer.k] = ((terms / scale) @ fit.astype(np.float32)).T
    mass = np.exp(told[:, : peer.k]).sum(-1)
    tail = np.maximum(1.0 - mass, 1e-6)
    told -= np.log(mass + tail)[:, None]
    return error_of(tokens, np.full(len(told), peer.k), told, tail / (mass + tail))


@dataclass(frozen=True)
class Size:
    """Our form at one threshold and step."""

    min_probability: float
    step_nats: float
    entries: float
    bytes_per_token: float
    error: float


def our_size(tokens: Tokens, min_probability: float, step_nats: float, k: int = MAX_KEPT) -> Size:
    """Bytes as written and the error of what is read back."""
    kept = (np.exp(tokens.top_NK) >= min_probability) & (np.arange(MAX_KEPT) < k)
    kept[:, 0] = True
    k_N = kept.sum(-1)
    tail = np.maximum(1.0 - (np.exp(tokens.top_NK) * kept).sum(-1), 1e-17)
    found = Sparse(
        k_N,
        tokens.ids_NK[kept],
        tokens.top_NK[kept].astype(np.float32),
        log_tail_T=np.log(tail).astype(np.float32),
    )
    packed = encode_top_k(found, tokens.rows, step_nats)
    about = About("top_k", Fingerprint(tokens.rows, "", "", ""), step_nats=step_nats)
    back = lay([Record(0, len(k_N), 0, packed)], about).targets()
    assert back.log_tail_N is not None
    by_id = np.lexsort((found.ids_E, np.repeat(np.arange(len(k_N)), k_N)))
    logprobs_E = np.empty(len(by_id))
    logprobs_E[by_id] = back.logprobs_E
    told = np.zeros_like(tokens.top_NK)
    told[kept] = logprobs_E
    error = error_of(tokens, k_N, told, back.log_tail_N.double().exp().numpy())
    size = len(packed) / len(k_N) + INDEX_BYTES / ROW_TOKENS
    return Size(min_probability, step_nats, k_N.mean(), size, error)


def our_sizes(tokens: Tokens) -> list[Size]:
    """All thresholds and steps."""
    return [our_size(tokens, threshold, step) for threshold in THRESHOLDS for step in STEPS_NATS]


def smallest_at(sizes: Sequence[Size], error: float) -> Size | None:
    """The smallest form that loses no more than `error`."""
    fitting = [size for size in sizes if size.error <= error]
    return min(fitting, key=lambda size: size.bytes_per_token) if fitting else None


def least_bytes(tokens: Tokens, error: float) -> float | None:
    """What no code of single tokens can go below, at ids that tell nothing of their likelihood: the sets of the fewest
    ids whose exact values lose no more than `error`, log2 C(R, k) bits each, and nothing for values and tails."""
    found = []
    for threshold in THRESHOLDS:
        kept = np.exp(tokens.top_NK) >= threshold
        kept[:, 0] = True
        k_N = kept.sum(-1)
        tail = np.maximum(1.0 - (np.exp(tokens.top_NK) * kept).sum(-1), 1e-17)
        if error_of(tokens, k_N, tokens.top_NK, tail) <= error:
            found.append(float(np.mean([_set_bytes(tokens.rows, k) for k in k_N])))
    return min(found) if found else None


def _set_bytes(rows: int, k: int) -> float:
    return (math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1)) / math.log(2) / 8


def synthetic(count: int, rows: int, exponents: tuple[float, float], seed: int = 0) -> object:
    """Log probabilities [64, rows] of `count` tokens: power laws with noise over shuffled ids, evenly drawn."""
    generator = torch.Generator().manual_seed(seed)
    for begin in range(0, count, 64):
        size = min(64, count - begin)
        low, high = exponents
        power = low + (high - low) * torch.rand(size, 1, generator=generator)
        logits = -power * torch.arange(1, rows + 1).log() + 0.5 * torch.randn(size, rows, generator=generator)
        yield torch.log_softmax(logits[:, torch.randperm(rows, generator=generator)], -1)
