"""Whole numbers of so many bits each, packed without gaps, lowest bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_WIDTH = 25  # with up to 7 bits of shift, a number lies within 4 bytes


def width_of(count: int) -> int:
    """Bits that tell `count` things apart."""
    return max(1, (count - 1).bit_length())


def packed_bytes(count: int, width: int) -> int:
    """Bytes of `count` packed numbers."""
    return (count * width + 7) // 8


def pack_bits(values: NDArray[np.integer], width: int) -> bytes:
    """`values` from 0 to 2^width - 1."""
    assert 1 <= width <= MAX_WIDTH and (len(values) == 0 or int(values.max()) < 1 << width)
    bits = (values.astype(np.uint32)[:, None] >> np.arange(width, dtype=np.uint32)) & 1
    return np.packbits(bits.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack_bits(packed: bytes, count: int, width: int) -> NDArray[np.int64]:
    """What `pack_bits` was given."""
    return unpack_widths(packed, np.full(count, width))


def pack_widths(values: NDArray[np.integer], widths: NDArray[np.int64]) -> bytes:
    """Values from 0 to 2^width - 1, each with a width of its own, from 0 to `MAX_WIDTH`."""
    assert len(values) == 0 or (int(widths.max()) <= MAX_WIDTH and bool((values >> widths == 0).all()))
    owner = np.repeat(np.arange(len(values)), widths)
    place = np.arange(len(owner)) - (np.cumsum(widths) - widths)[owner]
    return np.packbits((values[owner] >> place & 1).astype(np.uint8), bitorder="little").tobytes()


def unpack_widths(packed: bytes, widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """What `pack_widths` was given."""
    padded = np.frombuffer(packed + b"\0\0\0\0", dtype=np.uint8)
    first_bit = np.cumsum(widths) - widths
    at = first_bit >> 3
    words = padded[at].astype(np.uint32)
    for byte in range(1, 4):
        words |= padded[at + byte].astype(np.uint32) << np.uint32(8 * byte)
    return ((words >> (first_bit & 7).astype(np.uint32)) & ((1 << widths) - 1).astype(np.uint32)).astype(np.int64)
