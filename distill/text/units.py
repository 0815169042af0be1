"""Texts as sequences of comparable units and as lengths, by one of two profiles.

`english` is what the published word-based rules count: runs of a-z and 0-9, lengths in words. `unicode` works for any
script: after NFKC and case folding a unit is a word, or one character in scripts that are compared by characters
(Hangul, Kana, Han, Thai, Lao, Burmese, Khmer); lengths are in characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from distill.recipe.filters import Profile

_BY_CHARACTER = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Marks that are no \w of Python's but part of a word: accents left apart, Hebrew, Arabic, the scripts of India.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
_UNIT = re.compile(rf"[{_BY_CHARACTER}]|(?:(?![{_BY_CHARACTER}])(?:[^\W_]|[{_MARKS}]))+")
_ENGLISH = re.compile(r"[a-z0-9]+")


def normalize(text: str) -> str:
    """NFKC, case folded, white space collapsed: what must be equal for two texts to be the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def units(text: str, profile: Profile = "unicode") -> list[str]:
    """The comparable units of a text, in order; punctuation is none."""
    if profile == "english":
        return _ENGLISH.findall(text.lower())
    return _UNIT.findall(normalize(text))


def length(text: str, profile: Profile = "unicode") -> int:
    """Words between white space (`english`), or characters that are not white space (`unicode`)."""
    if profile == "english":
        return len(text.split())
    return sum(not char.isspace() for char in unicodedata.normalize("NFKC", text))


def grams(sequence: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """All runs of `size` units; a shorter sequence is one run of its own, an empty one has none."""
    if sequence and len(sequence) < size:
        yield tuple(sequence)
    for start in range(len(sequence) - size + 1):
        yield tuple(sequence[start : start + size])
