"""How many KV blocks an engine gets, the caches made of them, and who keeps account of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distill.engine.kv_cache import CODES, PagedKVCache, blocks_for, stored_bytes
from distill.engine.paging.block_tables import BlockTables
from distill.engine.paging.blocks import BlockPool
from distill.engine.paging.groups import LayerGroups, group_layers, one_group
from distill.engine.paging.prefix import PrefixCache
from distill.engine.probe import Structure
from distill.engine.types import EngineConfig
from distill.errors import EngineError


@dataclass(frozen=True)
class Paging:
    """A model's KV cache, who holds which of its blocks, and the longest sequence that they hold."""

    cache: PagedKVCache
    pool: BlockPool
    prefix: PrefixCache
    tables: BlockTables
    max_length: int

    @property
    def has_spare_block(self) -> bool:
        """Whether the cache's last block is in no pool: captured steps write there what they do not need."""
        return self.pool.num_blocks < self.cache.num_blocks


def make_paging(
    structures: Sequence[Structure], config: EngineConfig, *, max_length: int, device: torch.device
) -> tuple[Paging, *tuple[PagedKVCache, ...]]:
    """What the first model's engine works with, in sequences of up to `max_length` tokens; the other models' caches."""
    first, *others = structures
    size, chunk = config.block_size, config.prefill_tokens
    groups = group_layers(first.layers, first.windows, max_length=max_length)
    layouts = [(groups, first.dtype), *((one_group(s.layers), s.dtype) for s in others)]
    cache, *more = make_caches(layouts, config, max_length, device)
    windows = groups.windows
    count = cache.num_blocks - (config.cuda_graphs and len(windows) == 1)
    pool = BlockPool(count, num_homes=len(windows))
    prefix = PrefixCache(pool, block_size=size, enabled=config.prefix_cache, windows=windows)
    tables = BlockTables(pool, windows, block_size=size, chunk=chunk)
    longest = groups.longest(count, block_size=size, chunk=chunk, limit=max_length)
    return Paging(cache, pool, prefix, tables, longest), *more


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
