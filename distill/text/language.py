"""Which language a text is in, by its script, and for Latin script by its small words. A guess that may be none."""

from __future__ import annotations

import re
from collections import Counter

from distill.text.code import without_code

_SCRIPTS = (
    ("ko", re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7ff]")),
    ("kana", re.compile(r"[\u3040-\u30ff]")),
    ("han", re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("latin", re.compile(r"[A-Za-z\u00c0-\u024f]")),
)
_DENSE = {"ko", "kana", "han"}  # a character says as much as a few Latin letters
_SMALL = {
    "en": "the of and to in is that it for with as are was on this be you not have from",
    "de": "der die das und ist nicht ein eine zu den mit von für auf dem sich auch es wie im",
    "fr": "le la les de des et est un une dans pour que qui pas sur avec au ce il du",
    "es": "el la los las de y es un una en que por para con no se del al como su",
    "it": "il la le di e è un una in che per con non si del della come sono gli da",
    "pt": "o a os as de e é um uma em que por para com não se do da como ao",
    "nl": "de het een en is van in dat niet op te voor met zijn die er aan ook je maar",
}
_WORDS = {name: frozenset(words.split()) for name, words in _SMALL.items()}
SMALL_WORDS = frozenset().union(*_WORDS.values())
_LEAST_WORDS = 2
_LEAST_SHARE = 0.3
_LEAST_LETTERS = 5


def language_of(text: str) -> str | None:
    """An ISO 639-1 code; None for texts too short, mixed or strange to tell. Code blocks do not count."""
    prose = without_code(text)
    counts = {name: len(pattern.findall(prose)) * (3 if name in _DENSE else 1) for name, pattern in _SCRIPTS}
    total = sum(counts.values())
    if total < _LEAST_LETTERS:
        return None
    if counts["kana"] and counts["kana"] + counts["han"] > total / 2:
        return "ja"
    script = max(counts, key=lambda name: counts[name])
    if counts[script] < total / 2:
        return None
    if script == "latin":
        return _latin(prose)
    return {"han": "zh", "kana": "ja"}.get(script, script)


def _latin(text: str) -> str | None:
    """The language with most small words, if they are common enough and no other has as many."""
    found = re.findall(r"[a-z\u00c0-\u024f]+", text.lower())
    hits = Counter({name: sum(word in known for word in found) for name, known in _WORDS.items()})
    (first, most), (_, second) = hits.most_common(2)
    if most < _LEAST_WORDS or most == second or most < _LEAST_SHARE * len(found) / 3:
        return None
    return first
