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


CODES: dict[str, torch.dtype | None] = {"auto": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""By `kv_dtype`: the type of the codes that stand for the numbers, none where the numbers are stored themselves."""
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def stored_bytes(layer: LayerShape, dtype: torch.dtype, *, codes: torch.dtype | None) -> int:
    """Bytes a token takes in one layer: its numbers, or a code each and a float16 scale for K and V of every head."""
    numbers = layer.key_dim + layer.value_dim
    if codes is None:
        return layer.kv_heads * numbers * dtype.itemsize
    return layer.kv_heads * (numbers * codes.itemsize + 2 * torch.float16.itemsize)


def kv_bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of K and V a token costs: 2 x bytes x layers x KV heads x head size."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * dtype.itemsize * int(text.num_hidden_layers) * int(kv_heads) * int(head_dim)


def quantize_rows(rows: torch.Tensor, codes: torch.dtype = torch.int8) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric codes of each row of [R, D] and its scale [R] in float16: row = code x scale, where the largest code
    is 127 in int8 and 448 in float8_e4m3fn (Micikevicius et al., 2209.05433), which rounds to one part in 16."""
    largest = _LARGEST[codes]
    # at least float16's smallest normal number: all-zero rows divide by it
    scales = (rows.abs().amax(-1).float() / largest).clamp_(min=2.0**-14).half()
    exact = rows.float() / scales.float().unsqueeze(-1)
    if codes == torch.int8:
        exact.round_()  # a cast to int8 would cut off
    return exact.clamp_(-largest, largest).to(codes), scales


class _Store:
    """K or V of one layer: [num_blocks, kv_heads, block_size, dim] in the model's dtype, or codes with a scale a head
    and token, which is multiplied in again wherever they are read."""

    def __init__(
        self, shape: tuple[int, int, int, int], dtype: torch.dtype, *, codes: torch.dtype | None, device: torch.device
    ) -> None:
        # zeros, not empty: unused slots enter products under a zero weight, where a NaN would spread
        self.data = torch.zeros(shape, dtype=codes or dtype, device=device)
        self.scales = torch.zeros(shape[:3], dtype=torch.float16, device=device) if codes is not None else None
        self._dtype, self._codes = dtype, codes
        # the same memory as rows, and with the KV heads first; torch moves codes of fp8 about as plain bytes
        self._plain = self.data if codes is None else self.data.view(torch.int8)
        self._rows = self._plain.view(-1, shape[3])
        self._by_head = self.data.transpose(0, 1)

    @property
    def num_bytes(self) -> int:
        tensors = [self.data] if self.scales is None else [self.data, self.scales]
        return sum(t.numel() * t.element_size() for t in tensors)

    def write(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        tokens = tokens.reshape(-1, self._rows.shape[1])
        if self.scales is not None and self._codes is not None:
            tokens, scales = quantize_rows(tokens, self._codes)
            self.scales.view(-1).index_copy_(0, rows, scales)
            tokens = tokens.view(torch.int8)
        self._rows.index_copy_(0, rows, tokens)

    def between(self, first: int, last: int) -> torch.Tensor:
        """The blocks [first, last), in place where nothing is to be scaled."""
        data = self.data[first:last]
        return data if self.scales is None else self._scaled(data, self.scales[first:last])

    def pick(self, blocks: torch.Tensor) -> torch.Tensor:
        data = self._plain.index_select(0, blocks)
        return (
            data
            if self.scales is None
            else self._scaled(data.view(self.data.dtype), self.scales.index_select(0, blocks))
        )

    def tokens(self, blocks: range | torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if self.scales is None and isinstance(blocks, range):
            picked = self._by_head.narrow(1, blocks.start, len(blocks))  # the shortest way to decode one sequence
        elif isinstance(blocks, range):
            picked = self.between(blocks.start, blocks.stop).transpose(0, 1)
        else:
            picked = self.pick(blocks).transpose(0, 1)
        heads, count, size, dim = picked.shape
        return picked.reshape(heads, count * size, dim).narrow(1, start, stop - start)

    def _scaled(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return codes.to(self._dtype) * scales.unsqueeze(-1).to(self._dtype)


class PagedKVCache:
    """The tensors. Made once; nothing is allocated later. Layers of different groups (see `paging/groups.py`) share the
    tensors of a slot, as a block holds tokens of one group."""

    def __init__(
        self,
        slots: Sequence[LayerShape],
        *,
        places: Sequence[tuple[int, int]] | None = None,  # group and slot of each layer; None: a slot each
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        codes: torch.dtype | None = None,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.is_quantized = codes is not None
        places = places or [(0, slot) for slot in range(len(slots))]
        self.groups = [group for group, _ in places]  # of each layer
        self.most_kv_heads = max(slot.kv_heads for slot in slots)
        self.num_groups = max(self.groups) + 1
        sizes = [stored_bytes(slot, dtype, codes=codes) for slot in slots]
        self.bytes_per_token = sum(sizes[slot] for _, slot in places)
        self.block_bytes = block_size * sum(sizes)

        def store(kv_heads: int, dim: int) -> _Store:
            return _Store((num_blocks, kv_heads, block_size, dim), dtype, codes=codes, device=device)

        self._slots = [(store(s.kv_heads, s.key_dim), store(s.kv_heads, s.value_dim)) for s in slots]
        self._layers = [self._slots[slot] for _, slot in places]
        self.keys = [key.data for key, _ in self._layers]
        self.values = [value.data for _, value in self._layers]
        self.scales = [
            (key.scales, value.scales) if key.scales is not None and value.scales is not None else None
            for key, value in self._layers
        ]

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors: block_bytes x num_blocks."""
        return sum(key.num_bytes + value.num_bytes for key, value in self._slots)

    def write(self, layer: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store the tokens' K [T, kv_heads, key_dim] and V at `rows` [T x kv_heads] (see `head_rows`)."""
        keys, values = self._layers[layer]
        keys.write(rows, key)
        values.write(rows, value)

    def head_rows(self, slots: torch.Tensor, kv_heads: int) -> torch.Tensor:
        """Rows of [num_blocks x kv_heads x block_size] for tokens at `slots` = block x block_size + offset, [T]."""
        block, offset = slots // self.block_size, slots % self.block_size
        heads = torch.arange(kv_heads, device=slots.device)
        return ((block[:, None] * kv_heads + heads) * self.block_size + offset[:, None]).reshape(-1)

    def parts(
        self, layer: int, ranges: Sequence[range], blocks: torch.Tensor | None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """K and V of the ranges of blocks, in place, and copies of the listed ones, if there are any."""
        keys, values = self._layers[layer]
        found = [(keys.between(part.start, part.stop), values.between(part.start, part.stop)) for part in ranges]
        return found if blocks is None else [*found, (keys.pick(blocks), values.pick(blocks))]

    def read(
        self, layer: int, blocks: range | torch.Tensor, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the tokens [start, stop), counted from the first block: K and V as [kv_heads, tokens, dim]."""
        keys, values = self._layers[layer]
        return keys.tokens(blocks, start, stop), values.tokens(blocks, start, stop)


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // block_size)
