"""Several teachers as one: the mixture of their distributions, as logits of a head over all of their hidden states.

Legend: N tokens, K_i width and U_i rows of teacher i, U the least of the U_i, T the temperature.

    P = sum_i w_i softmax(t_i / T),   logits = T log P

over the first U rows, so that softmax(logits / T) is P and every divergence can take it for one teacher's. The
gradient of KL(P, Q) by the student is that of sum_i w_i KL(P_i, Q), for the two differ by entropies of the teachers
alone; for the other divergences the mixture's is meant, not the sum. Rows beyond U, which pad some vocabularies, are
ruled out first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.objectives.chunk import LogitMap
from distill.objectives.head import Head


@dataclass(frozen=True)
class MixedHead:
    """Heads of several teachers with weights that sum to 1; hidden states are these teachers', one behind the other."""

    heads: tuple[Head, ...]
    weights: tuple[float, ...]
    temperature: float

    @property
    def rows(self) -> int:
        """Of the mixture: those that all teachers have."""
        return min(head.rows for head in self.heads)

    @property
    def map(self) -> LogitMap:
        """Nothing is left to do: each head has had its own."""
        return LogitMap()

    @property
    def widths(self) -> list[int]:
        """Of the teachers' hidden states."""
        return [head.weight.shape[1] for head in self.heads]

    def logits(self, hidden_NK: Tensor) -> Tensor:
        """T log P [N, U]."""
        parts = hidden_NK.split(self.widths, dim=-1)
        return self._mixed([head.logits(part) for head, part in zip(self.heads, parts, strict=True)])

    def projection(
        self, compute: torch.dtype, rows: int, dtype: torch.dtype, tokens: int
    ) -> Callable[[Tensor], Tensor]:
        """T log P of at most `rows` tokens at a time, in `dtype`; softmax and sums in float32 or better."""
        exact = torch.promote_types(dtype, torch.float32)
        projections = [head.projection(compute, rows, exact, tokens) for head in self.heads]

        def project(hidden_nK: Tensor) -> Tensor:
            parts = hidden_nK.split(self.widths, dim=-1)
            raw = (of(part.contiguous()) for of, part in zip(projections, parts, strict=True))
            return self._mixed([head.map.apply_(logits) for head, logits in zip(self.heads, raw, strict=True)]).to(
                dtype
            )

        return project

    def _mixed(self, logits: list[Tensor]) -> Tensor:
        total: Tensor | None = None
        for values, weight in zip(logits, self.weights, strict=True):
            log_p = torch.log_softmax(values[:, : self.rows] / self.temperature, -1) + math.log(weight)
            total = log_p if total is None else torch.logaddexp(total, log_p)
        assert total is not None
        return total * self.temperature
