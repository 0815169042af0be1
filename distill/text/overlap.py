"""Benchmark questions inside training rows: shared 13-grams, shares of 8-grams, and programs of the same shape."""

from __future__ import annotations

from collections import defaultdict

from distill.recipe.filters import Profile
from distill.text.likeness import Likeness
from distill.text.syntax import shape
from distill.text.units import grams, units

LONG, SHORT = 13, 8
_LEAST_NODES = 20  # smaller programs are all alike


class Benchmark:
    """The texts and programs of benchmarks, by which rows are recognised as contaminated.

    `share` of the 8-grams of one benchmark text (PaLM's rule is 0.7), any 13-gram of it (GPT-3's), or a program
    whose syntax tree is over `ast_threshold` like one of its own (ROUGE-L over the nodes in order).
    """

    def __init__(self, *, profile: Profile = "unicode", share: float = 0.7, ast_threshold: float = 0.9) -> None:
        self.profile = profile
        self.share = share
        self.too_short = 0
        self._long: dict[tuple[str, ...], str] = {}
        self._short: dict[tuple[str, ...], set[int]] = defaultdict(set)
        self._texts: list[tuple[str, int]] = []  # name, number of distinct 8-grams
        self._programs = Likeness(ast_threshold)

    def add_text(self, text: str, name: str) -> None:
        """A question or answer. One of fewer than eight units is counted and not looked for."""
        found = units(text, self.profile)
        if len(found) < SHORT:
            self.too_short += 1
            return
        if len(found) >= LONG:
            for gram in grams(found, LONG):
                self._long.setdefault(gram, name)
        short = set(grams(found, SHORT))
        for gram in short:
            self._short[gram].add(len(self._texts))
        self._texts.append((name, len(short)))

    def add_program(self, code: str, name: str) -> None:
        """A solution; skipped where it does not parse or is too small to be told from others."""
        nodes = shape(code)
        if nodes is not None and len(nodes) >= _LEAST_NODES:
            self._programs.add(nodes, name)

    def overlap(self, text: str) -> tuple[str, str] | None:
        """(rule, name) of the first benchmark text that a row contains; None where there is none."""
        found = units(text, self.profile)
        for gram in grams(found, LONG):
            name = self._long.get(gram)
            if name is not None:
                return f"{LONG}gram", name
        hits: dict[int, int] = defaultdict(int)
        for gram in set(grams(found, SHORT)):
            for index in self._short.get(gram, ()):
                hits[index] += 1
        for index, count in hits.items():
            name, total = self._texts[index]
            if count >= self.share * total:
                return f"{SHORT}gram", name
        return None

    def same_program(self, code: str) -> str | None:
        """The name of the benchmark program that `code` has the shape of."""
        nodes = shape(code)
        return None if nodes is None or len(nodes) < _LEAST_NODES else self._programs.too_like(nodes)
