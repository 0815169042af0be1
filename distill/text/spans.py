"""One text in two tokenizations: the shortest spans at whose ends both have a token's end, in bytes.

Bytes and not characters, for byte-level tokens cut characters apart: GPT-2 writes an emoji as two to four tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple


class Span(NamedTuple):
    """Tokens `begin` to `end` (half open) of either side, which spell the same bytes."""

    begin: int
    end: int
    other_begin: int
    other_end: int

    @property
    def is_pair(self) -> bool:
        """Whether it is one token on either side."""
        return self.end - self.begin == self.other_end - self.other_begin == 1


def spans(ours: Sequence[bytes], theirs: Sequence[bytes]) -> list[Span]:
    """The shortest spans of two tokenizations of one text. They tile both; tokens are not empty."""
    text = b"".join(ours)
    assert text == b"".join(theirs), "tokenizations of different texts"
    return spans_around(ours, theirs, text)


def spans_around(ours: Sequence[bytes], theirs: Sequence[bytes], content: bytes) -> list[Span]:
    """The same for texts that have `content` in common, and what their neighbourhoods agree in.

    Chat templates put different text around an answer (a leading space, a newline). Tokens that reach beyond what both
    texts share are in no span, and so are their neighbours up to the next common end. Empty where `content` is not in
    both.
    """
    assert all(ours) and all(theirs), "a token without bytes"
    text, other = b"".join(ours), b"".join(theirs)
    place, other_place = text.find(content), other.find(content)
    if place < 0 or other_place < 0 or not content:
        return []
    before = _common(text[:place][::-1], other[:other_place][::-1])
    after = _common(text[place + len(content) :], other[other_place + len(content) :])
    found = _ends(ours, place - before)
    other_found = _ends(theirs, other_place - before)
    last = before + len(content) + after
    common = sorted(end for end in found.keys() & other_found.keys() if 0 <= end <= last)
    return [Span(found[a], found[b], other_found[a], other_found[b]) for a, b in pairwise(common)]


class Cut(NamedTuple):
    """A token's end inside of a span: the token of either side in which it lies, and how many of its bytes come before
    (all of them where that token ends here too)."""

    token: int
    length: int
    other_token: int
    other_length: int

    @property
    def mirrored(self) -> Cut:
        """The same seen from the other side."""
        return Cut(self.other_token, self.other_length, self.token, self.length)


def cuts(ours: Sequence[bytes], theirs: Sequence[bytes]) -> list[Cut]:
    """Every end of a token on either side, in the order of the text, of a span that both spell; the last is its end."""
    assert b"".join(ours) == b"".join(theirs)
    ends, other_ends = list(accumulate(map(len, ours))), list(accumulate(map(len, theirs)))
    found, token, other = [], 0, 0
    for end in sorted({*ends, *other_ends}):
        token += end > ends[token]
        other += end > other_ends[other]
        length, other_length = end - ends[token] + len(ours[token]), end - other_ends[other] + len(theirs[other])
        found.append(Cut(token, length, other, other_length))
    return found


def _ends(tokens: Sequence[bytes], zero: int) -> dict[int, int]:
    """Where tokens begin and end in the text, counted from byte `zero`: byte -> number of tokens before it."""
    return {end - zero: count for count, end in enumerate(accumulate(map(len, tokens), initial=0))}


def _common(a: bytes, b: bytes) -> int:
    """Length of the common beginning."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
