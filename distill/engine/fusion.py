"""Decoder layers of Llama's build in eight launches instead of about 45 (five at a few rows), in the engine alone.

A layer qualifies by what it is made of (RMSNorm, attention with rotary halves, gated SiLU; Llama, Mistral, Qwen2,
Qwen3), and the model as a whole by giving the same logits with and without: nothing goes by names of models. Every
other layer runs as transformers wrote it. Query, key and value weights become parts of one tensor, gate and up of
another, so that one product makes them; in-place updates of the parameters reach them. Packed weights are joined alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from distill.engine.attention import attend_by_kernels, packed_attention
from distill.engine.batch import PackedBatch
from distill.kernels.fused import rms_norm, rotate_and_store, silu_mul
from distill.kernels.gemv import gated_gemv, gemv, pays, pays_apart
from distill.kernels.paged_attention import Turn, paged_decode
from distill.kernels.w4a16 import PackedLinear


class Fusion:
    """The layers of one model that have a fused form, for positions below `length`. Where all of them do, its rotary
    embedding is a table, and its last norm one launch too."""

    def __init__(self, model: PreTrainedModel, windows: list[int | None], length: int) -> None:
        decoder = model.get_decoder()
        layers = getattr(decoder, "layers", [])
        fusable = [is_fusable(layer) for layer in layers]
        self._angles: Angles | None = None
        self._norm: LastNorm | None = None
        if layers and all(fusable):
            self._angles = Angles.of(model, getattr(decoder, "rotary_emb", None), length)
            last = getattr(decoder, "norm", None)
            if isinstance(last, nn.Module) and _is_norm(last) and not _is_heard(last):
                self._norm = LastNorm(last)
        self._layers = [
            FusedLayer(layer, window, self._angles)
            for layer, window, fits in zip(layers, windows, fusable, strict=False)
            if fits
        ]

    def __len__(self) -> int:
        return len(self._layers)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the model's layers run fused inside the block."""
        parts = [part for part in (*self._layers, self._angles, self._norm) if part is not None]
        for layer in self._layers:
            layer.merge()
        for part in parts:
            part.module.forward = part  # type: ignore[assignment]
        try:
            yield
        finally:
            for part in parts:
                del part.module.forward


class Angles:
    """What takes the place of a rotary embedding's `forward`: cosines and sines of all positions, computed by it once,
    of which the layers take the rows that they need."""

    MOST_BYTES = 64 << 20

    def __init__(self, module: nn.Module, cos: torch.Tensor, sin: torch.Tensor) -> None:
        self.module = module
        self.cos, self.sin = cos, sin  # [positions, D]

    @classmethod
    def of(cls, model: PreTrainedModel, module: nn.Module | None, length: int) -> Angles | None:
        """Those of positions below `length`; None where there is no such embedding, or its table would be large."""
        embeddings: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        dim = getattr(getattr(model.get_decoder().layers[0], "self_attn", None), "head_dim", 0)
        if module is None or _is_heard(module) or 2 * length * dim * embeddings.element_size() > cls.MOST_BYTES:
            return None
        found = module(embeddings[:1, None], position_ids=torch.arange(length, device=embeddings.device)[None])
        cos, sin = (table[0].contiguous() for table in found)
        return cls(module, cos, sin)

    def __call__(self, *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, positions, D] each."""
        return self.cos[None], self.sin[None]


class LastNorm:
    """What takes the place of the `forward` of the norm before the LM head."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[1, T, W] -> the same, in one launch."""
        norm: Any = self.module
        return rms_norm(hidden_states[0], norm.weight, norm.variance_epsilon)[None]


class Joined:
    """Linear layers of the same input as one product: their weights are made parts of one tensor where they are plain,
    and their outputs joined where they are not."""

    def __init__(self, *linears: nn.Module) -> None:
        self._linears = linears
        self._plain = all(map(_is_plain, linears)) and len({m.bias is None for m in linears}) == 1
        self._packed: PackedLinear | None = None
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None

    def merge(self) -> None:
        """Make the weights parts of one tensor, again where somebody has replaced them."""
        packed = [m for m in self._linears if isinstance(m, PackedLinear) and not _is_heard(m)]
        if len(packed) == len(self._linears):
            if self._packed is None or self._packed.packed.data_ptr() != packed[0].packed.data_ptr():
                self._packed = PackedLinear.joined(packed)
            return
        if not self._plain:
            return
        first: torch.Tensor = self._linears[0].weight  # type: ignore[assignment]
        if self._weight is None or self._weight.data_ptr() != first.data_ptr():
            with torch.inference_mode(False), torch.no_grad():
                self._weight = _as_one([m.weight for m in self._linears])  # type: ignore[misc]
                if self._linears[0].bias is not None:
                    self._bias = _as_one([m.bias for m in self._linears])  # type: ignore[misc]

    def __call__(self, x: torch.Tensor, norm: Any) -> torch.Tensor:
        """x [T, I] -> all outputs of norm(x), [T, sum of O]."""
        if self._weight is None:
            normed = rms_norm(x, norm.weight, norm.variance_epsilon)
            if self._packed is not None:
                return self._packed(normed)
            return torch.cat([linear(normed) for linear in self._linears], -1)
        if pays(x):
            return gemv(x, self._weight, self._bias, norm=(norm.weight, norm.variance_epsilon))
        normed = rms_norm(x, norm.weight, norm.variance_epsilon)
        if pays_apart(x):
            return gemv(normed, self._weight, self._bias)
        return nn.functional.linear(normed, self._weight, self._bias)

    def gated(self, x: torch.Tensor, norm: Any) -> torch.Tensor:
        """x [T, I] -> silu(first(norm(x))) * second(norm(x)), [T, O]."""
        if pays(x) and self._weight is not None and self._bias is None:
            return gated_gemv(x, self._weight, norm=(norm.weight, norm.variance_epsilon))
        if pays_apart(x) and self._weight is not None and self._bias is None:
            return gated_gemv(rms_norm(x, norm.weight, norm.variance_epsilon), self._weight)
        if self._packed is not None:
            return self._packed.gated(rms_norm(x, norm.weight, norm.variance_epsilon))
        return silu_mul(*self(x, norm).chunk(2, dim=-1))


def _as_one(parameters: list[nn.Parameter]) -> torch.Tensor:
    """The parameters' values in one tensor, of which they become parts."""
    whole = torch.cat([p.data for p in parameters])
    for parameter, part in zip(parameters, whole.split([len(p) for p in parameters]), strict=True):
        parameter.data = part
    return whole


def _is_plain(module: nn.Module) -> bool:
    """A dense linear layer that nobody listens to."""
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter and not _is_heard(module)


def _is_norm(module: object) -> bool:
    """An RMSNorm, as far as one can see."""
    return hasattr(module, "weight") and hasattr(module, "variance_epsilon")


def _is_heard(module: nn.Module) -> bool:
    """Whether hooks listen to it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class FusedLayer:
    """What takes the place of a decoder layer's `forward`. Adds to the hidden states in place."""

    def __init__(self, layer: nn.Module, window: int | None, angles: Angles | None) -> None:
        self.module = layer
        self._angles = angles
        self._window = window
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self._attention = attention
        self._index = int(attention.layer_idx)
        self._norms: Any = (layer.input_layernorm, layer.post_attention_layernorm)
        self._qkv = Joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self._gate_up = Joined(mlp.gate_proj, mlp.up_proj)
        self._down: nn.Module = mlp.down_proj
        self._head_dim = int(attention.head_dim)
        self._heads = attention.q_proj.out_features // self._head_dim
        self._kv_heads = attention.k_proj.out_features // self._head_dim

    def merge(self) -> None:
        """See `Joined.merge`."""
        self._qkv.merge()
        self._gate_up.merge()

    def __call__(
        self,
        hidden_states: torch.Tensor,
        *args: object,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        packed_batch: PackedBatch,
        **kwargs: object,
    ) -> torch.Tensor:
        """hidden_states [1, T, W], cosines and sines [1, T, D], or tables of them -> [1, T, W]."""
        hidden = hidden_states[0]
        first, second = self._norms
        _add(hidden, self._attention.o_proj, self._attend(self._qkv(hidden, first), position_embeddings, packed_batch))
        _add(hidden, self._down, self._gate_up.gated(hidden, second))
        return hidden_states

    def _attend(
        self, qkv: torch.Tensor, embeddings: tuple[torch.Tensor, torch.Tensor], batch: PackedBatch
    ) -> torch.Tensor:
        """qkv [T, (H + 2 K) D] -> [T, H D]."""
        cos, sin = embeddings[0][0], embeddings[1][0]
        positions = None if self._angles is None else batch.position_ids[0]
        scale = float(self._attention.scaling)
        norms = None
        if hasattr(self._attention, "q_norm"):
            q_norm, k_norm = self._attention.q_norm, self._attention.k_norm
            norms = (q_norm.weight, k_norm.weight, q_norm.variance_epsilon)
        placement = batch.placement(self._index)
        if batch.cache is not None and placement.tables is not None and not batch.cache.is_quantized:
            keys, values = batch.cache.keys[self._index], batch.cache.values[self._index]
            slots, tables = batch.token_slots(self._index), placement.tables
            if tables.decode is not None and tables.prefill is None:
                turn = Turn(cos, sin, self._angles is not None, slots, norms)
                table, lengths = tables.decode
                out = paged_decode(
                    qkv,
                    keys,
                    values,
                    table,
                    lengths,
                    scale=scale,
                    window=self._window,
                    width=tables.width,
                    arrived=tables.arrived,
                    turn=turn,
                )
                return out.view(len(qkv), -1)
            query = rotate_and_store(
                qkv, cos, sin, slots, keys, values, query_heads=self._heads, norms=norms, positions=positions
            )
            out = attend_by_kernels(batch, tables, self._index, query.transpose(0, 1)[None], self._window, scale, None)
            return out.view(len(qkv), -1)
        keys, values = (qkv.new_empty(1, self._kv_heads, len(qkv), self._head_dim) for _ in range(2))
        own = torch.arange(len(qkv), device=qkv.device)
        query = rotate_and_store(
            qkv, cos, sin, own, keys, values, query_heads=self._heads, norms=norms, positions=positions
        )
        out, _ = packed_attention(
            self._attention,
            query.transpose(0, 1)[None],
            keys,
            values,
            None,
            scaling=scale,
            sliding_window=self._window,
            packed_batch=batch,
        )
        return out.reshape(len(qkv), -1)


def _add(hidden: torch.Tensor, linear: nn.Module, x: torch.Tensor) -> None:
    """hidden [T, O] += linear(x [T, I]), in the product itself where that is a plain one."""
    if isinstance(linear, PackedLinear) and not _is_heard(linear):
        linear.add_to(hidden, x)
    elif not _is_plain(linear) or linear.bias is not None:
        hidden.add_(linear(x))
    elif pays(hidden) or pays_apart(hidden):
        gemv(x, linear.weight, out=hidden)  # type: ignore[arg-type]
    else:
        hidden.addmm_(x, linear.weight.t())  # type: ignore[operator]


def is_fusable(layer: nn.Module) -> bool:
    """Whether a decoder layer has the parts of a Llama's, and no others."""
    parts = dict(layer.named_children())
    if set(parts) != {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}:
        return False
    attention, mlp = dict(parts["self_attn"].named_children()), dict(parts["mlp"].named_children())
    norms = [parts["input_layernorm"], parts["post_attention_layernorm"]]
    if "q_norm" in attention and "k_norm" in attention:
        norms += [attention.pop("q_norm"), attention.pop("k_norm")]
    active = mlp.pop("act_fn", None)
    if set(attention) != {"q_proj", "k_proj", "v_proj", "o_proj"} or set(mlp) != {"gate_proj", "up_proj", "down_proj"}:
        return False
    dim = getattr(parts["self_attn"], "head_dim", None)
    linear = all(hasattr(module, "out_features") for module in (*attention.values(), *mlp.values()))
    same_size = linear and attention["k_proj"].out_features == attention["v_proj"].out_features
    return (
        same_size
        and isinstance(dim, int)
        and dim % 2 == 0
        and all(map(_is_norm, norms))
        and active is not None
        and torch.allclose(active(x := torch.linspace(-3, 3, 7)), nn.functional.silu(x))
    )
