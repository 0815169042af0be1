"""A step's block tables of a group of layers, as the GPU kernels read them: a row a sequence, padded to the longest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from distill.engine.buffers import StepBuffers
from distill.engine.kv_cache import blocks_for
from distill.engine.sequence import GONE, Sequence


@dataclass(frozen=True)
class KernelTables:
    """`decode`: block table and lengths of the sequences that decode. `prefill`: block table, then first token (counted
    from the first segment), length and context of each segment, and the longest length. None where there are none.
    `width` [1]: blocks in a row of decode's table, where that is flat and only the device is to know them; `arrived`:
    zeros that decode counts in."""

    decode: tuple[torch.Tensor, torch.Tensor] | None
    prefill: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor], int] | None
    width: torch.Tensor | None = None
    arrived: torch.Tensor | None = None


def make_tables(
    sequences: list[Sequence],
    counts: list[int],
    num_decode: int,
    block_size: int,
    buffers: StepBuffers,
    *,
    kv_heads: int,
    group: int = 0,
) -> KernelTables:
    """Tables of a batch whose sequences compute `counts` tokens each, the decoding ones first, for layers of at most so
    many KV heads."""
    ends = [s.num_computed + count for s, count in zip(sequences, counts, strict=True)]
    decode = prefill = None
    if num_decode:
        table = _table(sequences[:num_decode], ends[:num_decode], block_size, group)
        lengths = buffers.put("kernel lengths", np.array(ends[:num_decode]), part=group)
        decode = (buffers.put("kernel table of decode", table, part=group), lengths)
    if num_decode < len(sequences):
        own = np.array(counts[num_decode:])
        spans = np.stack((np.cumsum(own) - own, own, np.array(ends[num_decode:]) - own))
        starts, lengths, contexts = buffers.put("kernel spans", spans, part=group)
        table = _table(sequences[num_decode:], ends[num_decode:], block_size, group)
        prefill = (
            buffers.put("kernel table of prefill", table, part=group),
            (starts, lengths, contexts),
            int(own.max()),
        )
    arrived = buffers.put("kernel counts", np.zeros(num_decode * kv_heads, dtype=np.int32)) if num_decode else None
    return KernelTables(decode, prefill, arrived=arrived)


def _table(sequences: list[Sequence], ends: list[int], block_size: int, group: int) -> np.ndarray:
    """int32 [sequences, most blocks]."""
    counts = [blocks_for(end, block_size) for end in ends]
    table = np.full((len(sequences), max(counts)), GONE, dtype=np.int32)
    for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        table[row, :count] = sequence.tables[group][:count]
    return table
