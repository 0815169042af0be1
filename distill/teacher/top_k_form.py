"""How a row's likeliest tokens and the mass of all others are written: ids as sets, log probabilities as small numbers.

Legend: T scored tokens of a row, E entries of all of them, R rows of the vocabulary. Entries stand token after token,
within a token by id. Numbers are little-endian.

    counts u8[T], tails u16[T], sets of ids with a level each (`id_sets`)

A level is how many steps an entry is above the token's least likely one; the likeliest token stays the likeliest alone.
A tail t is the mass exp(-40 t / 65535) of all other rows. When read, the entries are scaled so that they and the tail
sum to 1: that is why levels need no origin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.teacher.forms import MAX_KEPT, Sparse
from distill.teacher.id_sets import pack_sets, unpack_sets

_LEAST_NATS, _TAIL_NATS = -24.0, 40.0


def encode_top_k(found: Sparse, rows: int, step_nats: float) -> bytes:
    """A row's bytes; log probabilities become multiples of `step_nats` above the smallest one of their token."""
    assert found.log_tail_T is not None and (len(found.counts_T) == 0 or found.counts_T.max() <= MAX_KEPT)
    token_E = np.repeat(np.arange(len(found.counts_T)), found.counts_T)
    order = np.argsort(token_E * rows + found.ids_E)
    levels = _levels(found, token_E, step_nats)
    tails = np.rint(65535.0 / _TAIL_NATS * np.clip(-found.log_tail_T.astype(np.float64), 0.0, _TAIL_NATS))
    return b"".join(
        (
            found.counts_T.astype(np.uint8).tobytes(),
            tails.astype("<u2").tobytes(),
            pack_sets(found.ids_E[order], levels[order], found.counts_T, rows),
        )
    )


def decode_top_k(packed: bytes, tokens: int, rows: int, step_nats: float) -> Sparse:
    """What `encode_top_k` was given, within its steps; each token's entries by id."""
    counts = np.frombuffer(packed, np.uint8, tokens).astype(np.int64)
    log_tail = -_TAIL_NATS / 65535.0 * np.frombuffer(packed, "<u2", tokens, offset=tokens)
    token_E = np.repeat(np.arange(tokens), counts)
    ids, level_E = unpack_sets(packed[3 * tokens :], counts, rows)
    nats = step_nats * (level_E - _of_tokens(np.maximum, level_E, counts)[token_E])
    mass = np.bincount(token_E, weights=np.exp(nats), minlength=tokens)
    left = -np.expm1(np.minimum(log_tail, -1e-9))
    shift = np.log(left / np.maximum(mass, 1e-30))
    return Sparse(counts, ids, (shift[token_E] + nats).astype(np.float32), log_tail_T=log_tail.astype(np.float32))


def _levels(found: Sparse, token_E: NDArray[np.int64], step_nats: float) -> NDArray[np.int64]:
    """Steps above the token's smallest; one more for the likeliest where rounding put another beside it."""
    nats = np.maximum(found.logprobs_E.astype(np.float64), _LEAST_NATS)
    least_T, largest_T = (_of_tokens(act, nats, found.counts_T) for act in (np.minimum, np.maximum))
    levels = np.rint((nats - least_T[token_E]) / step_nats).astype(np.int64)
    highest = levels == _of_tokens(np.maximum, levels, found.counts_T)[token_E]
    shared_T = np.bincount(token_E[highest], minlength=len(found.counts_T)) > 1
    best = np.flatnonzero(nats == largest_T[token_E])
    best = best[np.diff(token_E[best], prepend=-1) > 0]  # of equally likely ones the first
    levels[best] += shared_T[token_E[best]]
    return levels


def _of_tokens(act: np.ufunc, values_E: NDArray[Any], counts_T: NDArray[np.int64]) -> NDArray[Any]:
    """`act` over each token's entries; 0 where it has none."""
    found = np.zeros(len(counts_T), values_E.dtype)
    some = counts_T > 0
    if some.any():
        found[some] = act.reduceat(values_E, (np.cumsum(counts_T) - counts_T)[some])
    return found
