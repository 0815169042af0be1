"""The flat set against Python's own."""

from __future__ import annotations

import random

from distill.text.digest_set import DigestSet


def test_it_is_a_set_while_it_grows() -> None:
    rng = random.Random(0)
    found, expected = DigestSet(), set[str]()
    for _ in range(30_000):  # through three doublings, a third of them repeated
        text = f"text {rng.randrange(20_000)}"
        assert found.add(text) == (text not in expected)
        expected.add(text)
        assert len(found) == len(expected)
    assert len(found._slots) == 1 << 15


def test_half_a_surrogate_pair_is_a_text() -> None:
    found = DigestSet()
    assert found.add("\ud83d") and not found.add("\ud83d") and found.add("")
