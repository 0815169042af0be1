"""Whole numbers of so many bits each, packed without gaps, lowest bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_WIDTH = 25  # with up to 7 bits of shift, a number lies within 4 bytes, as which it is read


def width_of(count: int) -> int:
    """Bits that tell `count` things apart."""
    return max(1, (count - 1).bit_length())


def packed_bytes(count: int, width: int) -> int:
    """Bytes of `count` packed numbers."""
    return (count * width + 7) // 8


def pack_widths(values: NDArray[np.integer], widths: NDArray[np.int64]) -> bytes:
    """Values from 0 to 2^width - 1, each with a width of its own, from 0 to `MAX_WIDTH`."""
    assert len(values) == 0 or (int(widths.max()) <= MAX_WIDTH and bool((values >> widths == 0).all()))
    owner = np.repeat(np.arange(len(values)), widths)
    place = np.arange(len(owner)) - (np.cumsum(widths) - widths)[owner]
    return np.packbits((values[owner] >> place & 1).astype(np.uint8), bitorder="little").tobytes()
