"""How many KV blocks an engine gets, and the caches made of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distill.engine.kv_cache import CODES, PagedKVCache, blocks_for, stored_bytes
from distill.engine.paging.groups import LayerGroups
from distill.engine.types import EngineConfig
from distill.errors import EngineError


def make_caches(
    models: Sequence[tuple[LayerGroups, torch.dtype]], config: EngineConfig, max_model_len: int, device: torch.device
) -> list[PagedKVCache]:
    """A cache each, with as many blocks for every group of layers as `kv_bytes` holds of all together, but no more than
    max_batch full contexts need. What is left gives the first model single blocks."""
    codes = CODES[config.kv_dtype]
    costs = [
        config.block_size * sum(stored_bytes(slot, dtype, codes=codes) for slot in groups.slots)
        for groups, dtype in models
    ]
    counts = [len(groups.windows) for groups, _ in models]
    whole = sum(cost * count for cost, count in zip(costs, counts, strict=True))
    most = config.max_batch * blocks_for(max_model_len, config.block_size)
    each = config.num_blocks or min(most, config.kv_bytes // whole)
    if each < 1:
        raise EngineError(
            f"a KV block takes {whole} bytes, kv_bytes is {config.kv_bytes}", remedy="give the cache more memory"
        )
    found = [each * count for count in counts]
    if config.num_blocks is None and each < most:
        found[0] += min(counts[0] - 1, (config.kv_bytes - each * whole) // costs[0])
    return [
        PagedKVCache(
            groups.slots,
            places=groups.places,
            num_blocks=count,
            block_size=config.block_size,
            dtype=dtype,
            device=device,
            codes=codes,
        )
        for (groups, dtype), count in zip(models, found, strict=True)
    ]
