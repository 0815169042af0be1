"""A set of texts by their 64-bit digests, in a flat table: some 16 bytes a text, where Python's set takes ninety."""

from __future__ import annotations

import hashlib
from array import array

_FIRST_SLOTS = 1 << 12
_FULLEST = 0.7


class DigestSet:
    """Open addressing with linear probing; 0 marks a free slot. Two of a million texts share a digest in one of
    37 million sets."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _FIRST_SLOTS))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> bool:
        """Add a text; whether it was new."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest, "little") or 1
        if not _put(self._slots, number):
            return False
        self._count += 1
        if self._count > _FULLEST * len(self._slots):
            self._grow()
        return True

    def _grow(self) -> None:
        larger = array("Q", bytes(16 * len(self._slots)))
        for number in self._slots:
            if number:
                _put(larger, number)
        self._slots = larger


def _put(slots: array[int], number: int) -> bool:
    """Put a number where its search ends; False where it is there already."""
    mask = len(slots) - 1
    at = number & mask
    while (there := slots[at]) != number:
        if not there:
            slots[at] = number
            return True
        at = (at + 1) & mask
    return False
