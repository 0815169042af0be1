"""What is known of a row's teacher distributions, and how ids drawn from them are written (top k: `top_k_form`).

Legend: T scored tokens of a row, E entries of all of them, R rows of the vocabulary. Entries stand token after token.
Numbers are little-endian.

- sampled: counts u8[T], entropies u8[T] (in shares of log R / 255), sets of ids with how often each was drawn, less one
  (`id_sets`).

`distill.train.packed_signals` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.teacher.id_sets import pack_sets

MAX_KEPT = 255  # entries of a token
ENTROPY_STEPS = 255  # up to log R


@dataclass(frozen=True)
class Sparse:
    """Entries of T tokens. Top k: `logprobs_E`, and `log_tail_T`. Sampled: logarithms of weights, and `entropy_T`."""

    counts_T: NDArray[np.int64]
    ids_E: NDArray[np.int64]
    logprobs_E: NDArray[np.float32]
    log_tail_T: NDArray[np.float32] | None = None
    entropy_T: NDArray[np.float32] | None = None


def encode_sampled(found: Sparse, rows: int, draws: int) -> bytes:
    """A row's bytes; weights are whole multiples of 1 / draws. Entropies are for the value alone, and so are coarse."""
    assert found.entropy_T is not None and draws <= MAX_KEPT
    drawn = np.rint(np.exp(found.logprobs_E.astype(np.float64)) * draws).astype(np.int64)
    order = np.lexsort((found.ids_E, np.repeat(np.arange(len(found.counts_T)), found.counts_T)))
    shares = np.rint(found.entropy_T.astype(np.float64) * (ENTROPY_STEPS / np.log(rows))).clip(0, ENTROPY_STEPS)
    return b"".join(
        (
            found.counts_T.astype(np.uint8).tobytes(),
            shares.astype(np.uint8).tobytes(),
            pack_sets(found.ids_E[order], drawn[order] - 1, found.counts_T, rows),
        )
    )


def join(parts: list[Sparse]) -> Sparse:
    """The tokens of several rows of one form, one row after the other."""
    first = parts[0]
    return Sparse(
        np.concatenate([part.counts_T for part in parts]),
        np.concatenate([part.ids_E for part in parts]),
        np.concatenate([part.logprobs_E for part in parts]),
        None if first.log_tail_T is None else np.concatenate([_known(part.log_tail_T) for part in parts]),
        None if first.entropy_T is None else np.concatenate([_known(part.entropy_T) for part in parts]),
    )


def split(found: Sparse, tokens: list[int]) -> list[Sparse]:
    """The opposite of `join`: rows of so many tokens each."""
    token_ends = np.cumsum(tokens)[:-1]
    counts = np.split(found.counts_T, token_ends)
    entry_ends = np.cumsum([part.sum() for part in counts])[:-1]
    ids, values = np.split(found.ids_E, entry_ends), np.split(found.logprobs_E, entry_ends)
    tails = [None] * len(tokens) if found.log_tail_T is None else np.split(found.log_tail_T, token_ends)
    entropies = [None] * len(tokens) if found.entropy_T is None else np.split(found.entropy_T, token_ends)
    return [Sparse(*parts) for parts in zip(counts, ids, values, tails, entropies, strict=True)]


def _known(values: NDArray[np.float32] | None) -> NDArray[np.float32]:
    assert values is not None, "rows of one form"
    return values
