"""How many KV blocks an engine gets, and the caches made of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distill.engine.kv_cache import PagedKVCache, blocks_for, stored_bytes
from distill.engine.probe import Structure
from distill.engine.types import EngineConfig
from distill.errors import EngineError


def num_blocks(structures: Sequence[Structure], config: EngineConfig, max_model_len: int) -> int:
    """Blocks of each model's cache: as many as `kv_bytes` holds of all together, but no more than max_batch full
    contexts need."""
    block_bytes = config.block_size * sum(
        stored_bytes(layer, structure.dtype, quantized=config.kv_dtype == "int8")
        for structure in structures
        for layer in structure.layers
    )
    most = config.max_batch * blocks_for(max_model_len, config.block_size)
    count = config.num_blocks or min(most, config.kv_bytes // block_bytes)
    if count < 1:
        raise EngineError(
            f"a KV block takes {block_bytes} bytes, kv_bytes is {config.kv_bytes}", remedy="give the cache more memory"
        )
    return count


def make_cache(structure: Structure, config: EngineConfig, count: int, device: torch.device) -> PagedKVCache:
    """One model's cache of `count` blocks."""
    return PagedKVCache(
        structure.layers,
        num_blocks=count,
        block_size=config.block_size,
        dtype=structure.dtype,
        device=device,
        quantized=config.kv_dtype == "int8",
    )
