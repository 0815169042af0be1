"""Sets of token ids with a small number beside each id, as bits: the layout that both stored forms share.

Here it is written; `distill.train.set_bytes` reads it.

Legend: T tokens, E entries of all of them, R rows of the vocabulary, k entries of a token. A set of k ids takes about
log2(R e / k) bits an id, where a list in some order takes log2 R. All bits go lowest first.

    r u8, low bits of ids, high bits of ids, low bits of numbers, high bits of numbers

- ids are in Elias-Fano form (Elias 1974, Fano 1971): the lowest l = floor(log2(R / k)) bits as they are; what is above
  them in unary, as set bits at place high + index in the token's part of a bit map.
- numbers: the lowest r bits as they are, the rest in unary (Rice, 1979), r such that they take the least room.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distill.teacher.bits import pack_widths

_MAX_LOW_BITS = 8


def pack_sets(ids_E: NDArray[np.int64], numbers_E: NDArray[np.int64], counts_T: NDArray[np.int64], rows: int) -> bytes:
    """Ids, ascending within each token, and a number >= 0 for each."""
    low_T, length_T = id_widths(counts_T, rows)
    low_E, start_E = (np.repeat(of_T, counts_T) for of_T in (low_T, np.cumsum(length_T) - length_T))
    r = _low_bits(numbers_E)
    high = numbers_E >> r
    return b"".join(
        (
            bytes([r]),
            pack_widths(ids_E & ((1 << low_E) - 1), low_E),
            _bit_map(start_E + (ids_E >> low_E) + _places(counts_T), int(length_T.sum())),
            pack_widths(numbers_E & ((1 << r) - 1), np.full(len(numbers_E), r)),
            _bit_map(np.cumsum(high) + np.arange(len(high)), len(high) + int(high.sum())),
        )
    )


def id_widths(counts_T: NDArray[np.int64], rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each token: low bits of an id, and the bits of its part of the bit map."""
    low_T = np.maximum(np.floor(np.log2(rows / np.maximum(counts_T, 1))), 0).astype(np.int64)
    return low_T, np.where(counts_T > 0, counts_T + ((rows - 1) >> low_T), 0)


def _low_bits(numbers: NDArray[np.int64]) -> int:
    """The r with which all of them take the least room."""
    sizes = [len(numbers) * r + int((numbers >> r).sum()) for r in range(_MAX_LOW_BITS + 1)]
    return int(np.argmin(sizes))


def _places(counts_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each entry, which of its token's it is."""
    ends = np.cumsum(counts_T)
    return np.arange(int(counts_T.sum())) - np.repeat(ends - counts_T, counts_T)


def _bit_map(places: NDArray[np.int64], length: int) -> bytes:
    bits = np.zeros(length, np.uint8)
    bits[places] = 1
    return np.packbits(bits, bitorder="little").tobytes()
