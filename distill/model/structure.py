"""The parts of a decoder of the Llama kind, where they are and how many; models built otherwise are refused by name.

Legend of shapes, here and wherever parts are measured or cut: L layers, H query heads of d channels, K key/value heads,
F neurons of the FFN, D channels of the residual stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from distill.errors import CheckpointError

KINDS = ("llama", "mistral", "qwen2", "qwen3")
"""The `model_type`s that can be measured and cut in width."""

_LAYER_PARTS = re.compile(
    r"model\.layers\.\d+\."
    r"(self_attn\.[qkvo]_proj\.(weight|bias)|self_attn\.[qk]_norm\.weight|mlp\.(gate|up|down)_proj\.(weight|bias)"
    r"|(input|post_attention)_layernorm\.weight)"
)
_OTHER_PARTS = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


@dataclass(frozen=True)
class Structure:
    """How many of each part there are; `head_size` is d."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    hidden: int

    @property
    def queries_per_kv_head(self) -> int:
        """Query heads i * this .. (i + 1) * this - 1 read KV head i."""
        return self.heads // self.kv_heads


def structure_of(model: PreTrainedModel) -> Structure:
    """The structure of a Llama, Mistral, Qwen2 or Qwen3. Raises CheckpointError for any other model, by name."""
    kind, name = str(model.config.model_type), type(model).__name__
    if kind not in KINDS:
        raise CheckpointError(
            f"{name} ({kind}) cannot be measured or cut in width",
            remedy=f"use one of {', '.join(KINDS)}, or cut it by student.layers and student.kv_heads without prune",
        )
    unknown = [
        part for part, _ in model.named_parameters() if part not in _OTHER_PARTS and not _LAYER_PARTS.fullmatch(part)
    ]
    if unknown:
        raise CheckpointError(
            f"{name} has parts that a {kind} has not: {', '.join(unknown[:3])}",
            remedy="merge adapters, and use unquantized weights",
        )
    config = model.config
    return Structure(
        layers=int(config.num_hidden_layers),
        heads=int(config.num_attention_heads),
        kv_heads=int(config.num_key_value_heads),
        head_size=head_size_of(config),
        ffn=int(config.intermediate_size),
        hidden=int(config.hidden_size),
    )


def head_size_of(config: PreTrainedConfig) -> int:
    """d, which a config says or leaves to follow from the width."""
    keys = config.to_dict()
    return int(keys.get("head_dim") or config.hidden_size // config.num_attention_heads)


def layers_of(model: PreTrainedModel) -> Any:
    """The decoder layers, an nn.ModuleList whose items have `self_attn` and `mlp`."""
    layers = model.base_model.layers
    assert isinstance(layers, nn.ModuleList)
    return layers


def present_layers(model: PreTrainedModel) -> list[Any]:
    """The decoder layers that are not left out at present, in their order."""
    return [layer for layer in layers_of(model) if not isinstance(layer, _Skipped)]


def norms_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The norms that read the residual stream, two a present layer and the last one, by the name that their weight has
    in a model of the present layers alone."""
    norms: dict[str, nn.Module] = {}
    for index, layer in enumerate(present_layers(model)):
        norms[f"model.layers.{index}.input_layernorm.weight"] = layer.input_layernorm
        norms[f"model.layers.{index}.post_attention_layernorm.weight"] = layer.post_attention_layernorm
    last = model.base_model.norm
    assert isinstance(last, nn.Module)
    return {**norms, "model.norm.weight": last}


@contextmanager
def without(model: PreTrainedModel, layers: Iterable[int]) -> Iterator[None]:
    """Inside the block these layers hand on what they are given: the model computes what the other layers make."""
    held = {index: layers_of(model)[index] for index in layers}
    try:
        for index in held:
            layers_of(model)[index] = _Skipped()
        yield
    finally:
        for index, layer in held.items():
            layers_of(model)[index] = layer


class _Skipped(nn.Module):
    """In the place of a layer that is left out."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states
