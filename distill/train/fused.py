"""Decoder layers of Llama's build as they are trained on a GPU: what stands between their matrix products in one launch
each way, and query, key and value one product, gate and up another.

For plain rows in 16 bits: causal attention without a mask, nothing dropped out, no adapters, no cache. The residual
keeps its dtype (float32 under autocast); each step between is computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.kernels.layers import add_norm, gate, rotate


class FusedLayers:
    """The layers of a model that have a fused form."""

    def __init__(self, model: PreTrainedModel) -> None:
        from distill.engine.fusion import is_fusable

        layers = getattr(model.get_decoder(), "layers", [])
        self._layers = [FusedLayer(layer) for layer in layers if is_fusable(layer) and _is_plain(layer)]

    def __len__(self) -> int:
        return len(self._layers)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the model's layers run fused inside the block."""
        for layer in self._layers:
            layer.module.forward = layer
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.module.forward


class FusedLayer:
    """What takes the place of a decoder layer's `forward`."""

    def __init__(self, layer: nn.Module) -> None:
        self.module = layer
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self._norms: Any = (layer.input_layernorm, layer.post_attention_layernorm)
        self._qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._output: nn.Module = attention.o_proj
        self._gate_up = (mlp.gate_proj, mlp.up_proj)
        self._down: nn.Module = mlp.down_proj
        self._scale = float(attention.scaling)
        self._heads = attention.q_proj.out_features // attention.head_dim
        self._kv_heads = attention.k_proj.out_features // attention.head_dim

    def __call__(
        self,
        hidden_states: Tensor,
        *args: object,
        position_embeddings: tuple[Tensor, Tensor],
        **kwargs: object,
    ) -> Tensor:
        """hidden_states [B, S, W], cosines and sines [B, S, D] -> [B, S, W]."""
        rows, length, width = hidden_states.shape
        device = hidden_states.device.type
        cast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if cast else hidden_states.dtype
        first, second = self._norms
        cos, sin = (part.flatten(0, 1) for part in position_embeddings)
        hidden, normal = add_norm(hidden_states.flatten(0, 1), None, first.weight, first.variance_epsilon, dtype)
        parts = rotate(_product(normal, self._qkv), cos, sin, self._heads, self._kv_heads)
        query, key, value = (part.unflatten(0, (rows, length)).transpose(1, 2) for part in parts)
        grouped = self._heads != self._kv_heads
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self._scale, enable_gqa=grouped)
        delta = self._output(found.transpose(1, 2).reshape(rows * length, -1))
        hidden, normal = add_norm(hidden, delta, second.weight, second.variance_epsilon, dtype)
        hidden = hidden + self._down(gate(_product(normal, self._gate_up)))
        return hidden.view(rows, length, width)


def _product(x: Tensor, linears: Sequence[Any]) -> Tensor:
    """x [T, W] -> the linears' outputs side by side, [T, sum of O]."""
    bias = None if linears[0].bias is None else torch.cat([linear.bias.to(x.dtype) for linear in linears])
    return F.linear(x, torch.cat([linear.weight.to(x.dtype) for linear in linears]), bias)


def _is_plain(layer: nn.Module) -> bool:
    """Whether its linears are dense and heard by nobody, alike in having a bias, and its heads have no norms."""
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    groups = ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj))
    linears = [*groups[0], *groups[1], attention.o_proj, mlp.down_proj]
    return (
        all(type(linear) is nn.Linear and not linear._forward_hooks for linear in linears)
        and all(len({linear.bias is None for linear in group}) == 1 for group in groups)
        and not hasattr(attention, "q_norm")
        and attention.q_proj.weight.is_floating_point()
    )
