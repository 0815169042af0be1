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
from distill.teacher.id_sets import pack_sets

_LEAST_NATS = -24.0
TAIL_NATS, TAIL_STEPS = 40.0, 65535


def encode_top_k(found: Sparse, rows: int, step_nats: float) -> bytes:
    """A row's bytes; log probabilities become multiples of `step_nats` above the smallest one of their token."""
    assert found.log_tail_T is not None and (len(found.counts_T) == 0 or found.counts_T.max() <= MAX_KEPT)
    token_E = np.repeat(np.arange(len(found.counts_T)), found.counts_T)
    order = np.argsort(token_E * rows + found.ids_E)
    levels = _levels(found, token_E, step_nats)
    tails = np.rint(TAIL_STEPS / TAIL_NATS * np.clip(-found.log_tail_T.astype(np.float64), 0.0, TAIL_NATS))
    return b"".join(
        (
            found.counts_T.astype(np.uint8).tobytes(),
            tails.astype("<u2").tobytes(),
            pack_sets(found.ids_E[order], levels[order], found.counts_T, rows),
        )
    )


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
