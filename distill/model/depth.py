"""Which decoder layers a student keeps: evenly spaced, or by what the model loses without them (2407.14679, 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from distill.errors import DistillError
from distill.model.calibration import Batch
from distill.model.importance import Progress, hooked, silent
from distill.model.selection import Report, best, rounded
from distill.model.structure import layers_of, structure_of, without
from distill.recipe.prune import Prune

_TOKENS_OF_LOGITS = 1024


def evenly_spaced(total: int, keep: int) -> list[int]:
    """`keep` of the layers 0..total-1, evenly spaced, the first and the last among them (one alone: the first)."""
    if not 1 <= keep <= total:
        raise DistillError(f"student.layers is {keep}, the model has {total}", remedy=f"keep 1 to {total} layers")
    if keep == 1:
        return [0]
    return [(index * (total - 1) + (keep - 1) // 2) // (keep - 1) for index in range(keep)]


def choose_layers(
    model: PreTrainedModel, keep: int, prune: Prune, batches: Sequence[Batch], report: Report, progress: Progress
) -> list[int]:
    """Decoder layers to keep by `prune.layers_by`, ascending; the model is left as it was.

    The least important ones go at once, or with `prune.iterative` one by one, the others measured anew without it. The
    first and the last stay, unless it is to be one layer alone: where a measure would give one of them away, the
    student was worse after training (docs/student.md, "Which layers").
    """
    structure = structure_of(model)
    left = list(range(structure.layers))
    evenly_spaced(structure.layers, keep)  # refuses numbers that cannot be
    rounds: list[dict[str, Any]] = []
    ends = {left[0], left[-1]} if keep > 1 else set()
    while len(left) > keep:
        free = [layer for layer in left if layer not in ends]
        with without(model, set(range(structure.layers)) - set(left)):
            if prune.layers_by == "loss":
                whole, losses = losses_without(model, batches, free, progress)
                scores, extra = losses, {"loss": whole}
            else:
                scores, extra = block_importance(model, batches, progress)[free], {}
        stays = [free[place] for place in best(scores, (len(left) - 1 if prune.iterative else keep) - len(ends))]
        found = {str(layer): score for layer, score in zip(free, rounded(scores), strict=True)}
        rounds.append({**extra, "scores": found, "removed": [layer for layer in free if layer not in stays]})
        left = sorted([*stays, *ends])
    report.add("layers", by=prune.layers_by, iterative=prune.iterative, kept=left, rounds=rounds)
    return left


@torch.no_grad()
def block_importance(model: PreTrainedModel, batches: Sequence[Batch], progress: Progress = silent) -> Tensor:
    """(L,): BI_i = 1 - E cos(x_i, x_(i+1)) over tokens, x_i what layer i reads and x_(i+1) what it hands on.

    From one pass over the batches. Source: 2407.14679, section 2.2, after 2403.03853.
    """
    layers = layers_of(model)
    total = torch.zeros(len(layers), dtype=torch.float64, device=model.device)
    tokens = 0
    mask = torch.ones(0, 0, dtype=torch.bool)

    def note(index: int, before_BTD: Tensor, after_BTD: Tensor) -> None:
        before, after = before_BTD[mask].float(), after_BTD[mask].float()
        total[index] += (1 - F.cosine_similarity(before, after, dim=-1).double()).sum()

    with hooked(
        layer.register_forward_hook(lambda _, args, out, i=index: note(i, args[0], out))
        for index, layer in enumerate(layers)
    ):
        for index, batch in enumerate(batches):
            mask = batch.mask.to(model.device)
            model.base_model(input_ids=batch.input_ids.to(model.device), use_cache=False)
            tokens += int(batch.mask.sum())
            progress("block importance", index + 1, len(batches))
    return (total / tokens).cpu()


def losses_without(
    model: PreTrainedModel, batches: Sequence[Batch], of: Sequence[int], progress: Progress = silent
) -> tuple[float, Tensor]:
    """The model's loss, and the losses (len(of),) without each of the layers `of` in turn ("PPL" in 2407.14679), nats.

    One pass over the batches for each of them, and one.
    """
    whole = next_token_loss(model, batches)
    losses = []
    for index in of:
        with without(model, [index]):
            losses.append(next_token_loss(model, batches))
        progress("loss without each layer", len(losses), len(of))
    return whole, torch.tensor(losses, dtype=torch.float64)


@torch.no_grad()
def next_token_loss(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """Mean cross entropy (nats) of the real tokens after the first of each row; few logits exist at once."""
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    count = 0
    head = model.get_output_embeddings()
    for batch in batches:
        ids, mask = batch.input_ids.to(model.device), batch.mask[:, 1:].to(model.device)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][mask]
        labels = ids[:, 1:][mask]
        for begin in range(0, len(hidden), _TOKENS_OF_LOGITS):
            part = slice(begin, begin + _TOKENS_OF_LOGITS)
            total += F.cross_entropy(head(hidden[part]).float(), labels[part], reduction="sum")
        count += len(hidden)
    if count == 0:
        raise DistillError("no calibration row has two tokens", remedy="give calibration.data longer rows")
    return float(total / count)
