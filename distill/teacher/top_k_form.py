"""How a row's likeliest tokens and the mass of all others are written: ids as sets, log probabilities as small numbers.

Legend: T scored tokens of a row, E entries of all of them, R rows of the vocabulary, k entries of a token. Entries
stand token after token, within a token by id: a set of k ids takes about log2(R e / k) bits each, where a list in the
order of likelihood takes log2 R. All numbers are little-endian, bits go lowest first.

    counts u8[T], tails u16[T], r u8, low bits of ids, high bits of ids, low bits of levels, high bits of levels

- ids are in Elias-Fano form (Elias 1974, Fano 1971): the lowest l = floor(log2(R / k)) bits as they are; what is above
  them in unary, as set bits at place high + index in the token's part of a bit map.
- a level is how many steps an entry is above the token's least likely one; its lowest r bits are as they are, the rest
  is in unary (Rice, 1979). The likeliest token stays the likeliest alone.
- a tail t is the mass exp(-40 t / 65535) of all other rows. When read, the entries are scaled so that they and the tail
  sum to 1: that is why levels need no origin.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distill.teacher.bits import pack_widths, unpack_widths
from distill.teacher.forms import MAX_KEPT, Sparse

_LEAST_NATS, _TAIL_NATS = -24.0, 40.0
_MAX_LOW_BITS = 8


def encode_top_k(found: Sparse, rows: int, step_nats: float) -> bytes:
    """A row's bytes; log probabilities become multiples of `step_nats` above the smallest one of their token."""
    assert found.log_tail_T is not None and (len(found.counts_T) == 0 or found.counts_T.max() <= MAX_KEPT)
    token_E = np.repeat(np.arange(len(found.counts_T)), found.counts_T)
    order = np.lexsort((found.ids_E, token_E))
    ids, levels = found.ids_E[order], _levels(found, token_E, step_nats)[order]
    place_E = _places(found.counts_T)
    low_T, length_T = _id_widths(found.counts_T, rows)
    low_E, start_E = low_T[token_E], (np.cumsum(length_T) - length_T)[token_E]
    r = _low_bits(levels)
    tails = np.rint(65535.0 / _TAIL_NATS * np.clip(-found.log_tail_T.astype(np.float64), 0.0, _TAIL_NATS))
    return b"".join(
        (
            found.counts_T.astype(np.uint8).tobytes(),
            tails.astype("<u2").tobytes(),
            bytes([r]),
            pack_widths(ids & ((1 << low_E) - 1), low_E),
            _bit_map(start_E + (ids >> low_E) + place_E, int(length_T.sum())),
            pack_widths(levels & ((1 << r) - 1), np.full(len(levels), r)),
            _bit_map(np.cumsum(levels >> r) + np.arange(len(levels)), len(levels) + int((levels >> r).sum())),
        )
    )


def decode_top_k(packed: bytes, tokens: int, rows: int, step_nats: float) -> Sparse:
    """What `encode_top_k` was given, within its steps; each token's entries by id."""
    counts = np.frombuffer(packed, np.uint8, tokens).astype(np.int64)
    log_tail = -_TAIL_NATS / 65535.0 * np.frombuffer(packed, "<u2", tokens, offset=tokens)
    r, at = packed[3 * tokens], 3 * tokens + 1
    token_E = np.repeat(np.arange(tokens), counts)
    low_T, length_T = _id_widths(counts, rows)
    low_E, start_E = low_T[token_E], (np.cumsum(length_T) - length_T)[token_E]
    end = at + (int(low_E.sum()) + 7) // 8
    low = unpack_widths(packed[at:end], low_E)
    at, end = end, end + (int(length_T.sum()) + 7) // 8
    high = _set_bits(packed[at:end], len(token_E)) - start_E - _places(counts)
    at, end = end, end + (r * len(token_E) + 7) // 8
    level_E = unpack_widths(packed[at:end], np.full(len(token_E), r))
    level_E += np.diff(_set_bits(packed[end:], len(token_E)), prepend=-1) - 1 << r
    largest_T = np.zeros(tokens, np.int64)
    np.maximum.at(largest_T, token_E, level_E)
    nats = step_nats * (level_E - largest_T[token_E])
    mass = np.bincount(token_E, weights=np.exp(nats), minlength=tokens)
    left = -np.expm1(np.minimum(log_tail, -1e-9))
    shift = np.log(left / np.maximum(mass, 1e-30))
    ids = (high << low_E) + low
    return Sparse(counts, ids, (shift[token_E] + nats).astype(np.float32), log_tail_T=log_tail.astype(np.float32))


def _levels(found: Sparse, token_E: NDArray[np.int64], step_nats: float) -> NDArray[np.int64]:
    """Steps above the token's smallest; one more for the likeliest where rounding put another beside it."""
    nats = np.maximum(found.logprobs_E.astype(np.float64), _LEAST_NATS)
    least_T = np.zeros(len(found.counts_T))
    np.minimum.at(least_T, token_E, nats)
    levels = np.rint((nats - least_T[token_E]) / step_nats).astype(np.int64)
    best_first = np.lexsort((-nats, token_E))
    starts = (np.cumsum(found.counts_T) - found.counts_T)[found.counts_T > 1]
    first, second = best_first[starts], best_first[starts + 1]
    levels[first] += levels[first] == levels[second]
    return levels


def _id_widths(counts_T: NDArray[np.int64], rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each token: low bits of an id, and the length of its part of the bit map of high ones."""
    some = np.maximum(counts_T, 1)
    low = np.maximum(np.floor(np.log2(rows / some)), 0).astype(np.int64)
    return low, np.where(counts_T > 0, counts_T + ((rows - 1) >> low), 0)


def _low_bits(levels: NDArray[np.int64]) -> int:
    """The number of low bits with which all levels take the least room."""
    sizes = [len(levels) * r + int((levels >> r).sum()) for r in range(_MAX_LOW_BITS + 1)]
    return int(np.argmin(sizes))


def _places(counts_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each entry, which of its token's it is."""
    ends = np.cumsum(counts_T)
    return np.arange(int(counts_T.sum())) - np.repeat(ends - counts_T, counts_T)


def _bit_map(places: NDArray[np.int64], length: int) -> bytes:
    bits = np.zeros(length, np.uint8)
    bits[places] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _set_bits(packed: bytes, count: int) -> NDArray[np.int64]:
    """Places of the first `count` set bits."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little"))[:count]
