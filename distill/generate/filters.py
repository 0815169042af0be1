"""Pure rules for what is kept: usable answers, prompts not seen before, and rules for tasks that a machine wrote."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from distill.generate.prompts import Prompt
from distill.recipe.filters import Profile
from distill.teacher.requests import Answer
from distill.text.digest_set import DigestSet
from distill.text.likeness import Likeness
from distill.text.units import length, normalize, units

# Self-Instruct (2212.10560) and what Stanford Alpaca added: things that a language model alone cannot do.
SELF_INSTRUCT_WORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps"),
    *("draw", "plot", "go to"),
)
ALPACA_WORDS = (*SELF_INSTRUCT_WORDS, "video", "audio", "music", "flowchart", "diagram")
_SHORTEST = {"english": 4, "unicode": 9}  # words; characters
_LONGEST = {"english": 150, "unicode": 1000}
_OPENING = {"Ps", "Pi"}  # brackets and quotation marks that open something


def unusable(answer: Answer) -> Literal["truncated", "refused", "empty"] | None:
    """Why an answer is no answer: `truncated`, `refused` (by the provider), `empty`; None where it is one."""
    if answer.refusal is not None or answer.finish_reason == "content_filter":
        return "refused"
    if answer.finish_reason == "length":
        return "truncated"
    return "empty" if not answer.text.strip() else None


class Seen:
    """Recognises prompts that came before: equal after NFKC, case folding and collapsing white space."""

    def __init__(self) -> None:
        self._texts = DigestSet()
        self._all = hashlib.sha256()

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over all prompts so far as they stand, in order."""
        return self._all.hexdigest()[:16]

    def before(self, prompt: Prompt) -> bool:
        """True where an equal prompt was given to this function earlier."""
        whole = "\0".join(message["content"] for message in prompt.messages)
        self._all.update(whole.encode() + b"\1")
        return not self._texts.add(normalize(whole))


def bad_instruction(
    text: str, *, profile: Profile = "unicode", words: Sequence[str] = SELF_INSTRUCT_WORDS
) -> str | None:
    """Why a machine-made instruction is dropped by Self-Instruct's rules, likeness to others apart; None: keep.

    `english` is the published rule: 4 to 150 words, none of `words`, no "Write a program" (the models wrote little
    else), an ASCII letter or digit first. `unicode`: 9 to 1,000 characters, none of `words`, no punctuation first
    unless it opens a quotation, a bracket or a Spanish sentence.
    """
    size = length(text, profile)
    if size < _SHORTEST[profile]:
        return "too_short"
    if size > _LONGEST[profile]:
        return "too_long"
    if re.search(rf"\b(?:{'|'.join(words)})\b", text, re.IGNORECASE):
        return "not_for_text"
    if profile == "english" and text.lower().startswith("write a program"):
        return "write_a_program"
    return "odd_start" if _odd_start(text[0], profile) else None


def _odd_start(first: str, profile: Profile) -> bool:
    if profile == "english":
        return not first.isascii() or not first.isalnum()
    category = unicodedata.category(first)
    return category[0] in "PSC" and category not in _OPENING and first not in "¿¡\"'"


class Unlike:
    """Keeps texts and turns away those too like a kept one: ROUGE-L F over the threshold (0.7 in Self-Instruct)."""

    def __init__(self, *, threshold: float = 0.7, profile: Profile = "unicode") -> None:
        self.profile = profile
        self._likeness = Likeness(threshold)

    def add(self, text: str) -> None:
        """Keep a text, whatever it is like."""
        self._likeness.add(units(text, self.profile))

    def too_like(self, text: str) -> bool:
        """Whether some kept text is over the threshold."""
        return self._likeness.too_like(units(text, self.profile)) is not None
