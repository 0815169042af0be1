"""Vectors that repeat a kept one: by hand, against brute force, and whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.text import nearest
from distill.text.nearest import Distinct


def at(*degrees: float) -> NDArray[np.float32]:
    """Vectors in the plane at these angles, of lengths 1, 2, 3, which must not matter."""
    angles = np.radians(degrees)
    lengths = np.arange(1, len(degrees) + 1)
    return (np.stack([np.cos(angles), np.sin(angles)], axis=1) * lengths[:, None]).astype(np.float32)


def test_the_first_stays_and_only_kept_ones_count() -> None:
    """Threshold cos 20: 15 repeats 0; 30 is near 15 alone, which went; 48 repeats 30; 25 is nearer to 30 than to 0."""
    distinct = Distinct(float(np.cos(np.radians(20))))
    found = distinct.add(at(0, 15, 30, 48, 25, 180))
    assert [repeat if repeat is None else repeat[0] for repeat in found] == [None, 0, None, 1, 1, None]
    cosines = [repeat[1] for repeat in found if repeat is not None]
    assert cosines == pytest.approx(np.cos(np.radians([15, 18, 5])), abs=1e-6)
    assert distinct.num_kept == 3
    assert [repeat and repeat[0] for repeat in distinct.add(at(179, 1, 90))] == [2, 0, None]


def test_equal_vectors_are_alike_at_1_and_the_first_of_equals_is_named() -> None:
    vector = np.full((1, 768), 0.1, dtype=np.float32)
    distinct = Distinct(1.0)
    assert distinct.add(np.concatenate([vector, vector * 7])) == [None, (0, pytest.approx(1.0))]
    assert distinct.add(vector) == [(0, pytest.approx(1.0))]
    zero = np.zeros((1, 768), dtype=np.float32)
    assert distinct.add(zero) == [None]  # no direction: like nothing, not even itself
    assert distinct.add(zero) == [None]


def greedy(vectors: NDArray[np.float32], threshold: float) -> list[int | None]:
    """One by one, in float64."""
    unit = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    kept: list[int] = []
    found: list[int | None] = []
    for row in unit:
        cosines = unit[kept] @ row
        if len(kept) and cosines.max() >= threshold:
            found.append(int(cosines.argmax()))
        else:
            found.append(None)
            kept.append(len(found) - 1)
    return found


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_batches_and_blocks_make_no_difference(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_BLOCK", 32)
    vectors = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    distinct = Distinct(0.8)
    found = [repeat for start in range(0, 500, batch) for repeat in distinct.add(vectors[start : start + batch])]
    expected = greedy(vectors, 0.8)
    assert [repeat and repeat[0] for repeat in found] == expected
    assert 100 < sum(each is None for each in expected) == distinct.num_kept < 400
