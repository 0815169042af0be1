"""Pure rules for what is kept: usable answers, prompts not seen before, and Self-Instruct's rules for new tasks."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from distill.generate.prompts import Prompt
from distill.teacher.requests import Answer

# Self-Instruct (2212.10560), appendix: what a language model alone cannot do.
_NOT_FOR_TEXT = ("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps")
_NOT_FOR_TEXT_TOO = ("draw", "plot", "go to", "video", "audio", "music", "flowchart", "diagram")
_FORBIDDEN = re.compile(rf"\b(?:{'|'.join((*_NOT_FOR_TEXT, *_NOT_FOR_TEXT_TOO))})\b", re.IGNORECASE)


def unusable(answer: Answer) -> str | None:
    """Why an answer is no answer: `truncated`, `refused` (by the provider), `empty`; None where it is one."""
    if answer.refusal is not None or answer.finish_reason == "content_filter":
        return "refused"
    if answer.finish_reason == "length":
        return "truncated"
    return "empty" if not answer.text.strip() else None


class Seen:
    """Recognises prompts that came before: equal after NFKC, case folding and collapsing white space."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def before(self, prompt: Prompt) -> bool:
        """True where an equal prompt was given to this function earlier."""
        turns = "\0".join(message["content"] for message in prompt.messages)
        text = " ".join(unicodedata.normalize("NFKC", turns).casefold().split())
        digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
        if digest in self._digests:
            return True
        self._digests.add(digest)
        return False


def bad_instruction(text: str) -> str | None:
    """Why a machine-made instruction is dropped by Self-Instruct's rules, likeness to others apart; None: keep."""
    num_words = len(text.split())
    if num_words <= 3:
        return "too_short"
    if num_words > 150:
        return "too_long"
    if _FORBIDDEN.search(text):
        return "not_for_text"
    first = text[0]
    if not first.isascii() or not first.isalnum():
        return "odd_start"
    return None


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits, as ROUGE counts them."""
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """ROUGE-L F1 of two word lists: with L the longest common subsequence, 2L / (len(first) + len(second))."""
    if not first or not second:
        return 0.0
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, 1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return 2 * row[-1] / (len(first) + len(second))


class Likeness:
    """Drops instructions too like one that is kept: ROUGE-L F over 0.7 (Self-Instruct)."""

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._kept: list[tuple[list[str], Counter[str]]] = []

    def add(self, text: str) -> None:
        """Keep a text, whatever it is like."""
        tokens = words(text)
        self._kept.append((tokens, Counter(tokens)))

    def too_like(self, text: str) -> bool:
        """Whether some kept text is over the threshold."""
        tokens = words(text)
        counts = Counter(tokens)
        for other, other_counts in self._kept:
            # The words in common bound the longest common subsequence: cheap, and settles nearly every pair.
            most = 2 * (counts & other_counts).total()
            if most > self.threshold * (len(tokens) + len(other)) and rouge_l(tokens, other) > self.threshold:
                return True
        return False
