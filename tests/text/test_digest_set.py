"""The flat set against Python's own."""

from __future__ import annotations

import random
import tracemalloc

from distill.text.digest_set import DigestSet


def test_it_is_a_set_while_it_grows() -> None:
    rng = random.Random(0)
    found, expected = DigestSet(), set[str]()
    for _ in range(30_000):  # a third of them repeated
        text = f"text {rng.randrange(20_000)}"
        assert found.add(text) == (text not in expected)
        expected.add(text)
        assert len(found) == len(expected)


def test_memory_is_the_digests_and_has_no_peaks() -> None:
    """Without a doubling, which for a moment holds the old table beside the new one."""
    tracemalloc.start()
    found = DigestSet()
    empty = tracemalloc.get_traced_memory()[0]
    for number in range(50_000):
        found.add(f"question {number}")
    peak = tracemalloc.get_traced_memory()[1] - empty
    tracemalloc.stop()
    assert len(found) == 50_000
    assert 8 * 50_000 < peak < 11 * 50_000


def test_half_a_surrogate_pair_is_a_text() -> None:
    found = DigestSet()
    assert found.add("\ud83d") and not found.add("\ud83d") and found.add("")
