"""Which heads, neurons and channels a student keeps, and the report of what went with its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.model.importance import Importance
from distill.model.structure import Structure


@dataclass
class Report:
    """What was kept and what went, with the scores it was chosen by; layers are numbered as in the model before.

    `as_json` is the content of importance.json: a section for each kind of part that was cut.
    """

    sections: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, **content: Any) -> None:
        self.sections[what] = content

    def as_json(self) -> dict[str, Any]:
        return self.sections


def best(scores: Tensor, keep: int) -> list[int]:
    """The indices of the `keep` largest of (N,) scores, ascending; of equal ones the first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return sorted(order[:keep].tolist())


def best_heads(scores_H: Tensor, keep: int, structure: Structure) -> list[int]:
    """The query heads that stay. Multi-head: the best. Grouped: as many of each group, the best there, so that query
    head i still reads KV head i // (queries per KV head)."""
    if structure.kv_heads == structure.heads:
        return best(scores_H, keep)
    groups, size = structure.kv_heads, structure.queries_per_kv_head
    return [
        group * size + head
        for group, scores in enumerate(scores_H.unflatten(0, (groups, size)))
        for head in best(scores, keep // groups)
    ]


def report_within(
    scores_LN: Tensor, kept: Sequence[Sequence[int]], layers: Sequence[int], what: str, by: str, report: Report
) -> None:
    """Report heads or neurons: of each layer the scores of all, and who stays."""
    found = []
    for layer, scores, stays in zip(layers, scores_LN, kept, strict=True):
        removed = sorted(set(range(len(scores))) - set(stays))
        found.append({"layer": layer, "kept": list(stays), "removed": removed, "scores": rounded(scores)})
    report.add(what, by=by, layers=found)


def kv_weights(importance: Importance, structure: Structure) -> list[tuple[Tensor, Tensor]]:
    """Of each layer the weights (K,) of its key heads and of its value heads, for pooling.

    A weighted mean is the point with the least weighted squared distance to the heads of a group, so a head's weight
    should be what a squared error in it does, summed over the query heads h that read it:
        keys    sum_h E||q_h||^2 E||W_o[:, h] o_h||^2
    for a logit's error is q_h . error, and it moves what head h adds to the residual stream. Values are not weighted: a
    value's error reaches the stream by the gain of W_o[:, h], which differs little between the heads of a layer, and
    weights by it did no better than none. The formula is ours; with equal energies it is the plain mean.
    """
    layers = zip(importance.queries_LH, importance.effects_LH, strict=True)
    keys_LK = [kv_weights_of_layer(queries, effects, structure) for queries, effects in layers]
    return [(keys, torch.ones_like(keys)) for keys in keys_LK]


def kv_weights_of_layer(queries_H: Tensor, effects_H: Tensor, structure: Structure) -> Tensor:
    """(K,): the weights of a layer's key heads, see `kv_weights`."""
    return (queries_H * effects_H).unflatten(0, (structure.kv_heads, structure.queries_per_kv_head)).sum(-1)


def norm_gains(importance: Importance, keep: Sequence[int]) -> dict[str, float]:
    """Of each norm of the residual stream sqrt(e D / D'): see `prune_channels`."""
    index = torch.tensor(list(keep))
    return {
        name: float((energy[index].sum() / energy.sum() * len(energy) / len(keep)).sqrt())
        for name, energy in importance.energy.items()
    }


def rounded(scores: Tensor) -> list[float]:
    """Six significant digits, as a report needs them."""
    return [float(f"{value:.6g}") for value in scores.tolist()]
