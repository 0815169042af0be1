"""A set of texts by their 64-bit digests, in sorted arrays: some 9 bytes a text, where Python's set takes ninety."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left

_BUCKETS = 1 << 10


class DigestSet:
    """A digest's last bits name its bucket, where it stands in order. Buckets grow a little at a time, each on its own,
    so memory has no peaks. Two of a million texts share a digest in one of 37 million sets."""

    def __init__(self) -> None:
        self._buckets = [array("Q") for _ in range(_BUCKETS)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> bool:
        """Add a text; whether it was new."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest, "little")
        bucket = self._buckets[number % _BUCKETS]
        at = bisect_left(bucket, number)
        if at < len(bucket) and bucket[at] == number:
            return False
        bucket.insert(at, number)
        self._count += 1
        return True
