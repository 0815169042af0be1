"""Paged KV cache by KV head: one tensor for K and one for V a layer, cut into blocks.

A layer's tensors have the shape [num_blocks, kv_heads, block_size, head_dim], so that the keys of one block and KV head
are one contiguous matrix: attention multiplies the cache in place, without gathering it first. Query heads never appear
here: a model with grouped-query attention stores only its KV heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig


@dataclass(frozen=True)
class LayerShape:
    """What one layer stores of a token: K of [kv_heads, key_dim] and V of [kv_heads, value_dim]."""

    kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def numbers_per_token(self) -> int:
        return self.kv_heads * (self.key_dim + self.value_dim)


def kv_bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of K and V a token costs: 2 x bytes x layers x KV heads x head size."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * dtype.itemsize * int(text.num_hidden_layers) * int(kv_heads) * int(head_dim)


class PagedKVCache:
    """The tensors. Made once; nothing is allocated later."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.bytes_per_token = dtype.itemsize * sum(layer.numbers_per_token for layer in layers)
        # zeros, not empty: unused slots enter products under a zero weight, where a NaN would spread
        self.keys = [
            torch.zeros(num_blocks, s.kv_heads, block_size, s.key_dim, dtype=dtype, device=device) for s in layers
        ]
        self.values = [
            torch.zeros(num_blocks, s.kv_heads, block_size, s.value_dim, dtype=dtype, device=device) for s in layers
        ]

        # the same memory seen as rows [num_blocks x kv_heads x block_size, dim], and with the KV heads first
        self._rows = [
            (k.view(-1, k.shape[-1]), v.view(-1, v.shape[-1])) for k, v in zip(self.keys, self.values, strict=True)
        ]
        self._by_head = [(k.transpose(0, 1), v.transpose(0, 1)) for k, v in zip(self.keys, self.values, strict=True)]

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors: bytes_per_token x block_size x num_blocks."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def write(self, layer: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store the tokens' K [T, kv_heads, key_dim] and V at `rows` [T x kv_heads] (see `head_rows`)."""
        keys, values = self._rows[layer]
        keys.index_copy_(0, rows, key.reshape(-1, keys.shape[1]))
        values.index_copy_(0, rows, value.reshape(-1, values.shape[1]))

    def head_rows(self, slots: torch.Tensor, kv_heads: int) -> torch.Tensor:
        """Rows of [num_blocks x kv_heads x block_size] for tokens at `slots` = block x block_size + offset, [T]."""
        block, offset = slots // self.block_size, slots % self.block_size
        heads = torch.arange(kv_heads, device=slots.device)
        return ((block[:, None] * kv_heads + heads) * self.block_size + offset[:, None]).reshape(-1)

    def parts(
        self, layer: int, first: int, last: int, blocks: torch.Tensor | None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """K and V of the blocks [first, last), in place, and copies of the listed ones, as far as there are any."""
        keys, values = self.keys[layer], self.values[layer]
        found = [(keys[first:last], values[first:last])] if last > first else []
        return found if blocks is None else [*found, (keys.index_select(0, blocks), values.index_select(0, blocks))]

    def read(
        self, layer: int, blocks: range | torch.Tensor, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the tokens [start, stop), counted from the first block: K and V as [kv_heads, tokens, dim]."""
        keys, values = self._by_head[layer]
        return self._tokens(keys, blocks, start, stop), self._tokens(values, blocks, start, stop)

    def _tokens(self, by_head: torch.Tensor, blocks: range | torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if isinstance(blocks, range):
            picked = by_head.narrow(1, blocks.start, len(blocks))
        else:
            picked = by_head.index_select(1, blocks)
        heads, count, size, dim = picked.shape
        return picked.reshape(heads, count * size, dim).narrow(1, start, stop - start)


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // block_size)
