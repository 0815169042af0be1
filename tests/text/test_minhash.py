"""MinHash against the exact Jaccard similarity, and against datasketch."""

from __future__ import annotations

import random

import numpy as np
import pytest

from distill.text.minhash import MinHash, NearDuplicates, best_bands


def pair(rng: random.Random, shared: int, each: int) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]], float]:
    """Two sets with `shared` common items and `each` of their own, and their Jaccard similarity."""
    items = [(str(rng.getrandbits(60)),) for _ in range(shared + 2 * each)]
    return items[: shared + each], items[:shared] + items[shared + each :], shared / (shared + 2 * each)


def test_the_estimate_is_jaccard() -> None:
    """256 permutations: the standard error of an estimate is at most 1/32."""
    rng, hasher = random.Random(0), MinHash(256)
    errors = []
    for _ in range(60):
        first, second, jaccard = pair(rng, rng.randint(1, 60), rng.randint(0, 40))
        errors.append(float((hasher.signature(first) == hasher.signature(second)).mean()) - jaccard)
    assert max(map(abs, errors)) < 4 / 32
    assert abs(float(np.mean(errors))) < 3 / 32 / 60**0.5
    assert (hasher.signature([("a",), ("b",)]) == hasher.signature([("b",), ("a",), ("a",)])).all()


def test_long_sets_are_hashed_in_blocks() -> None:
    hasher = MinHash(16)
    items = [(str(n),) for n in range(3000)]
    parts = [hasher.signature(items[:1500]), hasher.signature(items[1500:])]
    assert (hasher.signature(items) == np.minimum(*parts)).all()


def test_near_duplicates_over_the_threshold_only() -> None:
    rng, hasher, kept = random.Random(1), MinHash(256), NearDuplicates(0.7, 256)
    for number in range(1100):  # more than the first allocation
        kept.add(hasher.signature([(f"{number}-{n}",) for n in range(20)]), str(number))
    for shared, each, expected in ((90, 3, True), (84, 8, True), (40, 30, False), (0, 50, False)):
        first, second, _ = pair(rng, shared, each)
        kept.add(hasher.signature(first), f"{shared}")
        assert (kept.find(hasher.signature(second)) == f"{shared}") == expected
    assert kept.find(hasher.signature([(f"1050-{n}",) for n in range(20)])) == "1050"


@pytest.mark.parametrize(("threshold", "permutations"), [(0.7, 256), (0.5, 128), (0.9, 256)])
def test_as_datasketch_does(threshold: float, permutations: int) -> None:
    """The same bands, and the same decisions away from the threshold."""
    datasketch = pytest.importorskip("datasketch")
    theirs = datasketch.MinHashLSH(threshold=threshold, num_perm=permutations)
    ours, hasher = NearDuplicates(threshold, permutations), MinHash(permutations)
    assert best_bands(threshold, permutations) == (theirs.b, theirs.r)
    rng = random.Random(2)
    for number in range(40):
        jaccard = rng.choice([threshold + 0.85 * (1 - threshold), threshold * 0.45])
        shared = round(100 * jaccard)
        first, second, _ = pair(rng, shared, (100 - shared) // 2)
        minhashes = []
        for items in (first, second):
            minhash = datasketch.MinHash(num_perm=permutations)
            minhash.update_batch([item[0].encode() for item in items])
            minhashes.append(minhash)
        theirs.insert(str(number), minhashes[0])
        ours.add(hasher.signature(first), str(number))
        found = [key for key in theirs.query(minhashes[1]) if minhashes[0].jaccard(minhashes[1]) >= threshold]
        assert (ours.find(hasher.signature(second)) is not None) == bool(found) == (jaccard > threshold)
