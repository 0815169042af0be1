"""Tokens that another tokenizer would cut alike, by hand and against a search by the definition."""

from __future__ import annotations

import random

from distill.text.continuations import Continuations
from distill.text.spans import cuts
from distill.text.token_bytes import Spelling


def spelling(*texts: str | bytes) -> Spelling:
    return Spelling(
        {n: text.encode() if isinstance(text, str) else text for n, text in enumerate(texts)}, {99: b"<end>"}
    )


def test_by_hand() -> None:
    """ "unable" after the other's "un": not "unread", which the other begins with its "unr"; not "on"."""
    ours = spelling("un", "unable", "unread", "unless", "on", "unabashed", "a")
    found = Continuations(ours, spelling("un", "unr", "able", "ab", "u", "a"))
    assert found.ids(b"", b"unable", (2,)) == (0, 5, 1, 3)  # in the order of their bytes
    # then "ab" of the other's: not "unable", which it goes on with "able"
    assert found.ids(b"", b"unabashed", (2, 4)) == (5,)
    # the other's token began before ours: "s" + "un" where it has no longer one
    assert found.ids(b"s", b"unable", (2,)) == (0, 5, 1, 3, 2)
    assert Continuations(ours, spelling("sun", "suna")).ids(b"s", b"unable", (2,)) == (0, 3, 2)


def test_at_the_cuts_of_a_span() -> None:
    """ "ab|cd" in "a|bc|d": our "ab" is cut after "a"; "cd" after "c", which the other's "bc" ends and began before."""
    ours, theirs = spelling("ab", "cd", "ax", "ce", "c"), spelling("a", "bc", "d", "bce")
    texts, others = [b"ab", b"cd"], [b"a", b"bc", b"d"]
    found = cuts(texts, others)
    assert Continuations(ours, theirs).at(found, [0, 1], texts, others) == [(0, 2), (0,), (4, 1), (1,)]
    mirrored = [cut.mirrored for cut in found]
    # of the other's "bc" after our "ab" only "bc" and "bce" begin with b
    assert Continuations(theirs, ours).at(mirrored, [0, 1, 2], others, texts) == [(0,), (1, 3), (1,), (2,)]


def test_one_that_says_no_longest_tokens_is_always_among_its_own() -> None:
    """BPE may say "un" "able" where it has "una": the token that was said counts in any case."""
    ours, theirs = spelling("unable", "un"), spelling("un", "able", "una")
    found = cuts([b"unable"], [b"un", b"able"])
    assert Continuations(ours, theirs).at(found, [0], [b"unable"], [b"un", b"able"]) == [(1, 0), (0,)]


def longest(text: bytes, tokens: set[bytes]) -> bytes:
    return max((token for token in tokens if text.startswith(token)), key=len, default=b"")


def test_against_the_definition() -> None:
    rng = random.Random(0)
    for _ in range(200):
        words = [bytes(rng.choices([97, 98, 255], k=rng.randint(1, 5))) for _ in range(60)]
        ours, theirs = sorted({*words[:30], b"a", b"b", b"\xff"}), {*words[30:], b"a", b"b", b"\xff"}
        continuations = Continuations(spelling(*ours), spelling(*theirs))
        text, before = rng.choice([word for word in ours if len(word) > 1]), rng.choice([b"", b"a", b"b\xff"])
        ends = tuple(sorted(rng.sample(range(1, len(text)), rng.randint(1, len(text) - 1))))
        expected = []
        for n, word in enumerate(ours):
            starts = [0, *ends[:-1]]
            pieces = [(before if not start else b"", start, end) for start, end in zip(starts, ends, strict=True)]
            if word.startswith(text[: ends[-1]]) and all(
                len(longest(lead + word[a:], theirs)) <= len(lead) + b - a for lead, a, b in pieces
            ):
                expected.append(n)
        assert continuations.ids(before, text, ends) == tuple(expected)
