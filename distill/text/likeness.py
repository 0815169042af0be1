"""How alike two sequences are: ROUGE-L, and a growing collection that recognises what is too like one of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """ROUGE-L F1 of two unit lists: with L the longest common subsequence, 2L / (len(first) + len(second))."""
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
    """Sequences that are kept; tells which one a new sequence is too like: ROUGE-L F over the threshold."""

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold
        self._kept: list[tuple[str, Sequence[str], Counter[str]]] = []

    def add(self, sequence: Sequence[str], name: str = "") -> None:
        """Keep a sequence, whatever it is like."""
        self._kept.append((name, sequence, Counter(sequence)))

    def too_like(self, sequence: Sequence[str]) -> str | None:
        """The name of the first kept sequence over the threshold; None where there is none."""
        counts = Counter(sequence)
        for name, other, other_counts in self._kept:
            # The units in common bound the longest common subsequence: cheap, and settles nearly every pair.
            total = len(sequence) + len(other)
            if 2 * min(len(sequence), len(other)) <= self.threshold * total:
                continue
            likely = 2 * (counts & other_counts).total() > self.threshold * total
            if likely and rouge_l(sequence, other) > self.threshold:
                return name
        return None
