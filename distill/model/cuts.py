"""Cuts through a state dict: tensors in, smaller tensors out, nothing measured and nothing but the weights read.

Shapes: structure.py. Which parts to keep is the caller's choice; lists are ascending. Names are those of
transformers' Llama, Mistral, Qwen2 and Qwen3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]
Kept = Sequence[Sequence[int]]
"""Of each layer the indices that stay."""

_LAYER = re.compile(r"^(?P<before>.*\.(?:layers|h|blocks)\.)(?P<index>\d+)(?P<after>\..*)$")
_PART = re.compile(r"\.(?P<name>[qkvo]_proj|gate_proj|up_proj|down_proj)\.(?P<kind>weight|bias)$")
_READERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_WRITERS = ("o_proj", "down_proj")


def prune_layers(state: Mapping[str, Tensor], keep: Sequence[int]) -> State:
    """The state dict with only the decoder layers `keep`, renumbered from 0; everything else as it is."""
    place = {old: new for new, old in enumerate(keep)}
    pruned = {}
    for name, tensor in state.items():
        match = _LAYER.match(name)
        if match is None:
            pruned[name] = tensor
        elif int(match["index"]) in place:
            pruned[f"{match['before']}{place[int(match['index'])]}{match['after']}"] = tensor
    return pruned


def prune_heads(state: Mapping[str, Tensor], keep: Kept, *, heads: int, with_key_value: bool) -> State:
    """Each layer with the query heads `keep[layer]`: rows of q_proj and columns of o_proj.

    `with_key_value` also keeps the same heads of k_proj and v_proj, as multi-head attention needs it. What is left
    computes what it computed before; a head whose output is 0 goes without a change of the model.
    """
    names = ("q_proj", "k_proj", "v_proj") if with_key_value else ("q_proj",)
    pruned = dict(state)
    for name, tensor, layer, part, kind in _parts(state):
        if part in names:
            pruned[name] = _of_groups(tensor, 0, heads, keep[layer])
        elif part == "o_proj" and kind == "weight":
            pruned[name] = _of_groups(tensor, 1, heads, keep[layer])
    return pruned


def prune_neurons(state: Mapping[str, Tensor], keep: Kept) -> State:
    """Each layer with the FFN neurons `keep[layer]`: rows of gate_proj and up_proj, columns of down_proj."""
    pruned = dict(state)
    for name, tensor, layer, part, kind in _parts(state):
        if part in ("gate_proj", "up_proj"):
            pruned[name] = _select(tensor, 0, keep[layer])
        elif part == "down_proj" and kind == "weight":
            pruned[name] = _select(tensor, 1, keep[layer])
    return pruned


def prune_channels(state: Mapping[str, Tensor], keep: Sequence[int], gains: Mapping[str, float]) -> State:
    """The whole model with the channels `keep` of its residual stream; the norm of each name is scaled by its gain.

    An RMS norm divides by the root mean square of what it reads, which changes with the channels that go. A gain of
    sqrt(e D / D'), e the share of the energy that stays and D' of D the channels, undoes that on average; where only
    channels of zeros go (e = 1) the model stays as it was.
    """
    pruned = dict(state)
    made: dict[int, Tensor] = {}  # a tied LM head and embedding stay one tensor
    for name, tensor in state.items():
        part = _PART.search(name)
        if name in gains:
            pruned[name] = (_select(tensor, 0, keep).float() * gains[name]).to(tensor.dtype)
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            pruned[name] = made.setdefault(tensor.data_ptr(), _select(tensor, 1, keep))
        elif part is not None and part["kind"] == "weight" and part["name"] in _READERS:
            pruned[name] = _select(tensor, 1, keep)
        elif part is not None and part["name"] in _WRITERS:
            pruned[name] = _select(tensor, 0, keep)
    return pruned


def _parts(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor, int, str, str]]:
    """(name, tensor, layer, projection, weight or bias) of every projection in a layer."""
    found = []
    for name, tensor in state.items():
        layer, part = _LAYER.match(name), _PART.search(name)
        if layer is not None and part is not None:
            found.append((name, tensor, int(layer["index"]), part["name"], part["kind"]))
    return found


def _select(tensor: Tensor, dim: int, keep: Sequence[int]) -> Tensor:
    return tensor.index_select(dim, torch.tensor(list(keep), device=tensor.device)).contiguous()


def _of_groups(tensor: Tensor, dim: int, groups: int, keep: Sequence[int]) -> Tensor:
    """Some of `groups` equal runs along a dimension."""
    return _select(tensor.unflatten(dim, (groups, -1)), dim, keep).flatten(dim, dim + 1)
