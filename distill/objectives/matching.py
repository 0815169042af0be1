"""Hidden-state matching: a student's inner states pulled to a teacher's, through projections that are learned along.

Legend: N scored tokens, H student width, K teacher width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Measure = Literal["mse", "cosine"]


def matching_loss(student_NK: Tensor, teacher_NK: Tensor, measure: Measure) -> Tensor:
    """Sum over the tokens of the distance of projected states; in float32 or better.

    mse: mean over the K components of the squared difference (FitNets, 1412.6550; TinyBERT, 1909.10351, equation 8);
    cosine: 1 - cosine similarity (DistilBERT, 1910.01108), which does not see how large states are.
    """
    exact = torch.promote_types(student_NK.dtype, torch.float32)
    ours, theirs = student_NK.to(exact), teacher_NK.to(exact)
    if measure == "mse":
        return (ours - theirs).square().mean(-1).sum()
    return (1.0 - F.cosine_similarity(ours, theirs, dim=-1)).sum()


class Matching(nn.Module):
    """Pairs of layers (student's, teacher's) with a projection [K, H] each; 0 is the embeddings, n the n-th layer.

    Its weights are in no state dict, for they are no part of the student: `weights` and `load` are for checkpoints.
    """

    def __init__(
        self,
        pairs: tuple[tuple[int, int], ...],
        *,
        student: int,
        teacher: int,
        measure: Measure,
        weight: float,
        seed: int,
    ) -> None:
        """`student`, `teacher`: widths. Projections start as the identity where these are equal, else random with the
        scale of states kept."""
        super().__init__()
        self.pairs, self.measure, self.weight = pairs, measure, weight
        generator = torch.Generator().manual_seed(seed)
        self.projections = nn.ModuleList()
        for _ in pairs:
            projection = nn.Linear(student, teacher, bias=False)
            with torch.no_grad():
                drawn = torch.randn(teacher, student, generator=generator) * student**-0.5
                projection.weight.copy_(torch.eye(student) if student == teacher else drawn)
            self.projections.append(projection)
        self.register_state_dict_post_hook(_leave_out)

    def forward(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], scored: Tensor) -> Tensor:
        """Mean over the pairs of their sums over tokens. `student`: all hidden states [B, S, H]; `teacher`: those of
        the pairs [B, S, K], in their order; `scored` [B, S]: the tokens to match, whose next one is trained."""
        total = student[0].new_zeros((), dtype=torch.float32)
        for (layer, _), projection, theirs in zip(self.pairs, self.projections, teacher, strict=True):
            total = total + matching_loss(projection(student[layer][scored]), theirs[scored].detach(), self.measure)
        return total / len(self.pairs)

    def weights(self) -> dict[str, Tensor]:
        """The projections, by the number of their pair: `0.weight`, ..."""
        return {name: weight.detach() for name, weight in self.projections.named_parameters()}

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over what `weights` gave."""
        for name, weight in self.weights().items():
            weight.copy_(weights[name])


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]
