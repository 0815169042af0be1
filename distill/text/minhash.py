"""MinHash signatures and locality-sensitive hashing: near-duplicates among many texts without comparing all pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Signature = npt.NDArray[np.uint32]
_STEPS = 1000  # of the numeric integrals
_ROOM = 1024


class MinHash:
    """Signatures of sets: the share of equal entries of two estimates the Jaccard similarity of the sets.

    Entry i is the least value over the set of the i-th hash, h -> (a_i * h + b_i mod 2^64) >> 32 (multiply-shift).
    """

    def __init__(self, permutations: int = 256, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self._a = rng.integers(0, 2**64, permutations, dtype=np.uint64) | np.uint64(1)
        self._b = rng.integers(0, 2**64, permutations, dtype=np.uint64)

    def signature(self, items: Iterable[tuple[str, ...]]) -> Signature:
        """Of a set of n-grams; all ones for the empty set."""
        hashes = np.fromiter({_hash64(item) for item in items}, dtype=np.uint64)
        least = np.full(len(self._a), np.iinfo(np.uint32).max, dtype=np.uint32)
        for start in range(0, len(hashes), _ROOM):  # a block at a time: a long text needs no large matrix
            block = hashes[start : start + _ROOM, None] * self._a + self._b
            least = np.minimum(least, (block >> np.uint64(32)).astype(np.uint32).min(axis=0))
        return least


class NearDuplicates:
    """Signatures that are kept; finds one whose estimated Jaccard similarity to a new one reaches the threshold.

    Signatures that agree in all entries of some band are candidates, and are then compared whole. Memory: 4 bytes an
    entry and a dict entry a band for every signature kept (about 3 KiB at 256 permutations).
    """

    def __init__(self, threshold: float = 0.7, permutations: int = 256) -> None:
        self.threshold = threshold
        self.bands, self.rows = best_bands(threshold, permutations)
        self._buckets: list[dict[bytes, list[int]]] = [{} for _ in range(self.bands)]
        self._names: list[str] = []
        self._kept = np.empty((_ROOM, permutations), dtype=np.uint32)

    def find(self, signature: Signature) -> str | None:
        """The name of the nearest kept signature at or over the threshold."""
        found = {index for bucket, key in self._keys(signature) for index in bucket.get(key, ())}
        if not found:
            return None
        indices = np.array(sorted(found))
        alike = (self._kept[indices] == signature).mean(axis=1)
        best = int(alike.argmax())
        return self._names[indices[best]] if alike[best] >= self.threshold else None

    def add(self, signature: Signature, name: str) -> None:
        """Keep a signature."""
        index = len(self._names)
        if index == len(self._kept):
            self._kept = np.concatenate([self._kept, np.empty_like(self._kept)])
        self._kept[index] = signature
        self._names.append(name)
        for bucket, key in self._keys(signature):
            bucket.setdefault(key, []).append(index)

    def _keys(self, signature: Signature) -> list[tuple[dict[bytes, list[int]], bytes]]:
        rows = self.rows
        return [
            (bucket, signature[band * rows : (band + 1) * rows].tobytes()) for band, bucket in enumerate(self._buckets)
        ]


@lru_cache
def best_bands(threshold: float, permutations: int) -> tuple[int, int]:
    """Bands and rows a band that make the sum of false positives and false negatives least.

    With similarity s two signatures share a band with probability 1 - (1 - s^rows)^bands: false positives are its
    integral below the threshold, false negatives that of its complement above (as datasketch chooses them).
    """
    below = (np.arange(_STEPS) + 0.5) * threshold / _STEPS
    above = threshold + (np.arange(_STEPS) + 0.5) * (1 - threshold) / _STEPS
    best = (np.inf, 1, 1)
    for bands in range(1, permutations + 1):
        for rows in range(1, permutations // bands + 1):
            false_positives = (1 - (1 - below**rows) ** bands).mean() * threshold
            false_negatives = ((1 - above**rows) ** bands).mean() * (1 - threshold)
            best = min(best, (false_positives + false_negatives, bands, rows))
    return best[1], best[2]


def _hash64(item: tuple[str, ...]) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(item).encode(), digest_size=8).digest(), "little")
