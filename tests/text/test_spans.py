"""Spans of two tokenizations, by hand and against the definition: they tile both, spell the same, and are shortest."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest

from distill.model.tokenizer import train_tokenizer
from distill.text.spans import Cut, Span, cuts, spans, spans_around
from distill.text.token_bytes import bytes_of_tokens

SMILE = "🙂".encode()  # f0 9f 99 82
LETTERS = ["a", "b", " ", "  ", "\n", "é", "ß", "漢", "🙂", "👩‍👩‍👧", "1", "."]


def of(*tokens: str | bytes) -> list[bytes]:
    return [token.encode() if isinstance(token, str) else token for token in tokens]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (of("un", "able"), of("unable"), [(0, 2, 0, 1)]),
        (of("a", " b", "c"), of("a", " b", "c"), [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]),
        # overlapping: no common end before the whole
        (of("ab", "c", "d"), of("a", "bc", "d"), [(0, 2, 0, 2), (2, 3, 2, 3)]),
        # GPT-2 writes spaces one by one, GPT-NeoX a run as one token; the last space belongs to the word
        (of("x", " ", " ", " ", " y"), of("x", "   ", " y"), [(0, 1, 0, 1), (1, 4, 1, 2), (4, 5, 2, 3)]),
        (of("the ", "cat"), of("the", " cat"), [(0, 2, 0, 2)]),
        # an emoji in three tokens and in two: the cut inside of the character after two bytes is common
        (of(SMILE[:2], SMILE[2:3], SMILE[3:]), of(SMILE[:2], SMILE[2:]), [(0, 1, 0, 1), (1, 3, 1, 2)]),
        (of(b" \xf0\x9f", SMILE[2:3], SMILE[3:], "!"), of(" ", SMILE, "!"), [(0, 3, 0, 2), (3, 4, 2, 3)]),
        (of(b"\xc3", b"\xa9", "s"), of("é", "s"), [(0, 2, 0, 1), (2, 3, 1, 2)]),
        ([], [], []),
    ],
)
def test_by_hand(ours: list[bytes], theirs: list[bytes], expected: list[tuple[int, int, int, int]]) -> None:
    assert spans(ours, theirs) == [Span(*span) for span in expected]
    mirrored = [Span(c, d, a, b) for a, b, c, d in expected]
    assert spans(theirs, ours) == mirrored


def test_different_surroundings() -> None:
    """A template's leading space, a newline that a token shares with the text, and more text than the answer."""
    assert spans_around(of(" yes", ",", " so"), of("yes", ",", " so"), b"yes, so") == [
        Span(1, 2, 1, 2),
        Span(2, 3, 2, 3),
    ]
    assert spans_around(of("yes", ".\n"), of("yes", "."), b"yes.") == [Span(0, 1, 0, 1)]
    assert spans_around(of("\n", "yes", "\n"), of("\n", "yes", "\n"), b"yes") == [
        Span(n, n + 1, n, n + 1) for n in (0, 1, 2)
    ]
    assert spans_around(of("<think>", "yes"), of("yes"), b"yes") == [Span(1, 2, 0, 1)]
    assert spans_around(of("yes"), of("no"), b"yes") == [] == spans_around(of("yes"), of("yes"), b"")


def require_shortest(ours: list[bytes], theirs: list[bytes]) -> None:
    """The properties that define spans; among them TRL's own greedy walk over the same offsets."""
    found = spans(ours, theirs)
    assert [n for span in found for n in range(span.begin, span.end)] == list(range(len(ours)))
    assert [n for span in found for n in range(span.other_begin, span.other_end)] == list(range(len(theirs)))
    for span in found:
        mine, other = ours[span.begin : span.end], theirs[span.other_begin : span.other_end]
        assert b"".join(mine) == b"".join(other)
        inner = set(accumulate(len(token) for token in mine[:-1])) & set(accumulate(len(token) for token in other[:-1]))
        assert not inner, "a common end inside of a span"


def cut(text: bytes, rng: random.Random) -> list[bytes]:
    places = sorted(rng.sample(range(1, len(text)), rng.randint(0, len(text) - 1)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def test_any_two_cuts_of_a_text() -> None:
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(LETTERS, k=rng.randint(1, 12))).encode()
        require_shortest(cut(text, rng), cut(text, rng))


def test_the_walk_of_trl_finds_the_same() -> None:
    """`ULDLoss._align_by_byte_offsets` of TRL 1.16 on the same offsets."""
    from trl.experimental.gold.gold_trainer import ULDLoss

    rng = random.Random(1)
    for _ in range(200):
        text = "".join(rng.choices(LETTERS, k=rng.randint(1, 12))).encode()
        ours, theirs = cut(text, rng), cut(text, rng)
        offsets = [
            [(end - len(token), end) for token, end in zip(side, accumulate(map(len, side)), strict=True)]
            for side in (ours, theirs)
        ]
        mine, other = ULDLoss._align_by_byte_offsets(*offsets)
        found = spans(ours, theirs)
        assert [list(range(span.begin, span.end)) for span in found] == mine
        assert [list(range(span.other_begin, span.other_end)) for span in found] == other


def test_two_trained_tokenizers() -> None:
    """Byte-level BPE of 280 and of 400 tokens: their tokens spell any text, and spans tile it."""
    rng = random.Random(2)
    texts = [" ".join(rng.choices(["red", "reddish", "a", "ready", "über", "naïve", "🙂🙂"], k=20)) for _ in range(50)]
    sides = [train_tokenizer(texts, vocab_size=size, max_positions=64) for size in (280, 400)]
    paired = 0
    for text in [*texts, "Grüße, 世界! 👩‍👩‍👧 12\n\n  x"]:
        tokens = []
        for tokenizer in sides:
            spelled = bytes_of_tokens(tokenizer.get_vocab(), tokenizer.get_added_vocab())
            tokens.append([spelled[index] for index in tokenizer(text, add_special_tokens=False)["input_ids"]])
            assert b"".join(tokens[-1]) == text.encode()
        require_shortest(*tokens)
        paired += sum(span.is_pair for span in spans(*tokens))
    assert paired


def test_bytes_of_added_tokens_are_their_own() -> None:
    """Ġ is a space in a byte-level token and itself in one that was added."""
    vocabulary = {"Ġa": 0, "Ã©": 1, "  ": 2, "Ġ": 3, "é": 4}
    found = bytes_of_tokens(vocabulary, ["  ", "é"])
    assert found == {0: b" a", 1: "é".encode(), 2: b"  ", 3: b" ", 4: "é".encode()}
    assert bytes_of_tokens({"▁a": 0, "<0xE2>": 1, "<s>": 2}) == {0: b" a", 1: b"\xe2", 2: b"<s>"}


def test_cuts_by_hand() -> None:
    """ "un|able" in "una|bl|e": ends after 2, 3, 5 and 6 bytes."""
    expected = [Cut(0, 2, 0, 2), Cut(1, 1, 0, 3), Cut(1, 3, 1, 2), Cut(1, 4, 2, 1)]
    assert cuts(of("un", "able"), of("una", "bl", "e")) == expected
    assert cuts(of("a"), of("a")) == [Cut(0, 1, 0, 1)]
    assert cuts(of("a", "b"), of("ab")) == [Cut(0, 1, 0, 1), Cut(1, 1, 0, 2)]
