"""Heads, neurons, channels and KV heads out of a state dict, as many as a recipe says and those that matter least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from distill.errors import CheckpointError, DistillError
from distill.model.alignment import HeadMoments, pool_aligned
from distill.model.cuts import State, prune_channels, prune_heads, prune_neurons
from distill.model.importance import Importance
from distill.model.pooling import group_shares, pool_kv_heads, require_even_groups
from distill.model.selection import Report, best, best_heads, kv_weights, norm_gains, report_within, rounded
from distill.model.structure import Structure, head_size_of
from distill.recipe.teacher import Student


@dataclass(frozen=True)
class Sizes:
    """What a model has of everything that can be cut; `intermediate_size` is 0 where its config has no such key."""

    parameters: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    hidden_size: int
    kv_bytes_per_token: int


def sizes_of(model: PreTrainedModel, parameters: int | None = None) -> Sizes:
    """Read from the config, and the parameters from the model unless they are given.

    Raises CheckpointError for a config of another kind than a decoder's.
    """
    keys = model.config.to_dict()
    try:
        layers, heads, hidden = (int(keys[key]) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    except KeyError as error:
        raise CheckpointError(
            f"the model's config has no {error}", remedy="cut down a decoder-only model of the Llama kind"
        ) from None
    kv_heads = int(keys.get("num_key_value_heads") or heads)
    return Sizes(
        parameters=sum(parameter.numel() for parameter in model.parameters()) if parameters is None else parameters,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        intermediate_size=int(keys.get("intermediate_size") or 0),
        hidden_size=hidden,
        kv_bytes_per_token=2 * layers * kv_heads * head_size_of(model.config) * model.dtype.itemsize,
    )


def require_fitting(student: Student, sizes: Sizes, kind: str) -> None:
    """Raise DistillError where the section asks for more than there is, for heads that make no even groups, or for
    what transformers refuses to load of a `model_type` (a Llama's width must be a multiple of its heads)."""
    for key, wanted, there in (
        ("layers", student.layers, sizes.layers),
        ("heads", student.heads, sizes.heads),
        ("intermediate_size", student.intermediate_size, sizes.intermediate_size),
        ("hidden_size", student.hidden_size, sizes.hidden_size),
    ):
        if wanted is not None and wanted > there:
            raise DistillError(f"student.{key} is {wanted}, the model has {there}", remedy=f"keep 1 to {there}")
    heads, hidden = student.heads or sizes.heads, student.hidden_size or sizes.hidden_size
    if kind == "llama" and hidden % heads and (student.heads, student.hidden_size) != (None, None):
        raise DistillError(
            f"a Llama of {hidden} channels and {heads} heads does not load: transformers wants a multiple of the heads",
            remedy=f"set student.hidden_size to {hidden - hidden % heads}, or another student.heads",
        )
    multi_head = sizes.kv_heads == sizes.heads
    pooled_first = not multi_head or (student.prune is not None and student.prune.kv_pooling == "aligned")
    if student.kv_heads is not None:
        require_even_groups(sizes.kv_heads if pooled_first else heads, student.kv_heads)
    if student.heads is None:
        return
    kv_heads = student.kv_heads or (student.heads if multi_head else sizes.kv_heads)
    if student.heads % kv_heads:
        fitting = [str(n) for n in range(kv_heads, sizes.heads + 1, kv_heads)]
        raise DistillError(
            f"student.heads is {student.heads}, and {kv_heads} KV heads cannot share them evenly",
            remedy=f"one of {', '.join(fitting)}, or another student.kv_heads",
        )


def cut_width(
    state: State,
    config: PreTrainedConfig,
    student: Student,
    importance: Importance,
    structure: Structure,
    layers: Sequence[int],
    report: Report,
    moments: Sequence[HeadMoments] | None = None,
) -> State:
    """The state dict with what the section asks, and the config changed to match.

    `importance` is of the model of the layers that `state` has; `layers` are their numbers in the model before.
    Multi-head attention loses whole heads, keys and values included, and is pooled then. Grouped attention, and any
    that is pooled by alignment (`moments`), is pooled first and then loses as many query heads of each group.
    """
    assert student.prune is not None
    weights = kv_weights(importance, structure) if student.prune.kv_pooling == "weighted" else None
    whole_heads = structure.kv_heads == structure.heads and moments is None
    if student.heads is not None and whole_heads:
        kept = [best(scores, student.heads) for scores in importance.heads_LH]
        state = prune_heads(state, kept, heads=structure.heads, with_key_value=True)
        report_within(importance.heads_LH, kept, layers, "heads", student.prune.width_by, report)
        structure = replace(structure, heads=student.heads, kv_heads=student.heads)
        if weights is not None:
            weights = [(keys[stay], values[stay]) for (keys, values), stay in zip(weights, kept, strict=True)]
    if moments is not None and student.kv_heads is not None:
        state = pool_aligned(state, moments, importance.queries_LH, importance.effects_LH, structure, student.kv_heads)
        structure = replace(structure, kv_heads=student.kv_heads)
    elif student.kv_heads not in (None, structure.kv_heads):
        state, structure = _pooled(state, structure, student.kv_heads, weights, layers, report)
    if student.heads is not None and not whole_heads:
        kept = [best_heads(scores, student.heads, structure) for scores in importance.heads_LH]
        state = prune_heads(state, kept, heads=structure.heads, with_key_value=False)
        report_within(importance.heads_LH, kept, layers, "heads", student.prune.width_by, report)
        structure = replace(structure, heads=student.heads)
    if student.intermediate_size is not None:
        kept = [best(scores, student.intermediate_size) for scores in importance.neurons_LF]
        state = prune_neurons(state, kept)
        report_within(importance.neurons_LF, kept, layers, "neurons", student.prune.width_by, report)
        structure = replace(structure, ffn=student.intermediate_size)
    if student.hidden_size is not None:
        state, structure = _narrowed(state, structure, student.hidden_size, importance, report)
    _set_width(config, structure)
    return state


def _pooled(
    state: State,
    structure: Structure,
    kv_heads: int,
    weights: list[tuple[Tensor, Tensor]] | None,
    layers: Sequence[int],
    report: Report,
) -> tuple[State, Structure]:
    state = pool_kv_heads(state, kv_heads_before=structure.kv_heads, kv_heads=kv_heads, weights=weights)
    if weights is not None:
        shares = [
            {
                "layer": layer,
                "keys": [rounded(share) for share in group_shares(keys, kv_heads)],
                "values": [rounded(share) for share in group_shares(values, kv_heads)],
            }
            for layer, (keys, values) in zip(layers, weights, strict=True)
        ]
        report.add("kv_pooling", by="weighted", layers=shares)
    return state, replace(structure, kv_heads=kv_heads)


def _narrowed(
    state: State, structure: Structure, hidden_size: int, importance: Importance, report: Report
) -> tuple[State, Structure]:
    kept = best(importance.channels_D, hidden_size)
    gains = norm_gains(importance, kept)
    state = prune_channels(state, kept, gains)
    removed = sorted(set(range(structure.hidden)) - set(kept))
    scores = rounded(importance.channels_D)
    report.add("channels", by="activation", kept=kept, removed=removed, scores=scores, norm_gains=gains)
    return state, replace(structure, hidden=hidden_size)


def _set_width(config: PreTrainedConfig, structure: Structure) -> None:
    """head_dim too, which some configs leave to follow from the width."""
    config.num_attention_heads = structure.heads
    config.num_key_value_heads = structure.kv_heads
    config.intermediate_size = structure.ffn
    config.hidden_size = structure.hidden
    config.head_dim = structure.head_size
