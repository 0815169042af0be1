"""Sets of token ids with a small number beside each id, as bits: the layout that both stored forms share.

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

from distill.teacher.bits import pack_widths, unpack_widths

_MAX_LOW_BITS = 8


def pack_sets(ids_E: NDArray[np.int64], numbers_E: NDArray[np.int64], counts_T: NDArray[np.int64], rows: int) -> bytes:
    """Ids, ascending within each token, and a number >= 0 for each."""
    low_E, start_E, length = _id_layout(counts_T, rows)
    r = _low_bits(numbers_E)
    high = numbers_E >> r
    return b"".join(
        (
            bytes([r]),
            pack_widths(ids_E & ((1 << low_E) - 1), low_E),
            _bit_map(start_E + (ids_E >> low_E) + _places(counts_T), length),
            pack_widths(numbers_E & ((1 << r) - 1), np.full(len(numbers_E), r)),
            _bit_map(np.cumsum(high) + np.arange(len(high)), len(high) + int(high.sum())),
        )
    )


def unpack_sets(packed: bytes, counts_T: NDArray[np.int64], rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(ids, numbers) that `pack_sets` was given."""
    low_E, start_E, length = _id_layout(counts_T, rows)
    count, r, at = len(low_E), packed[0], 1
    end = at + (int(low_E.sum()) + 7) // 8
    low = unpack_widths(packed[at:end], low_E)
    at, end = end, end + (length + 7) // 8
    high = _set_bits(packed[at:end], count) - start_E - _places(counts_T)
    at, end = end, end + (r * count + 7) // 8
    numbers = unpack_widths(packed[at:end], np.full(count, r))
    numbers += (np.diff(_set_bits(packed[end:], count), prepend=-1) - 1) << r
    return (high << low_E) + low, numbers


def _id_layout(counts_T: NDArray[np.int64], rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Of each entry: low bits of its id, and where its token's part of the bit map begins; bits of the whole map."""
    low_T = np.maximum(np.floor(np.log2(rows / np.maximum(counts_T, 1))), 0).astype(np.int64)
    length_T = np.where(counts_T > 0, counts_T + ((rows - 1) >> low_T), 0)
    token_E = np.repeat(np.arange(len(counts_T)), counts_T)
    return low_T[token_E], (np.cumsum(length_T) - length_T)[token_E], int(length_T.sum())


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


def _set_bits(packed: bytes, count: int) -> NDArray[np.int64]:
    """Places of the first `count` set bits."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little"))[:count]
