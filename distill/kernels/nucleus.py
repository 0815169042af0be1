"""The least probability that top-p keeps, on a GPU, which nobody waits for: found by bisection, not by sorting."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 4096
_ROUNDS = 31  # a probability has as many bits, its sign aside


@triton.jit
def nucleus_kernel(probs, wanted, out, row_stride, VOCAB: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):
    """One program a row. Numbers that are not negative are ordered as their bits are."""
    row = tl.program_id(0)
    mass = tl.load(wanted + row)
    low = tl.full([], 0, tl.int32)
    high = tl.full([], 0x3F800000, tl.int32)  # 1.0: nothing is more
    for _ in range(ROUNDS):
        middle = low + (high - low) // 2
        bound = middle.to(tl.float32, bitcast=True)
        above = tl.zeros([BLOCK], tl.float32)
        for start in range(0, VOCAB, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            p = tl.load(probs + row * row_stride + columns, mask=columns < VOCAB, other=0.0)
            above += tl.where(p > bound, p, 0.0)
        is_enough = tl.sum(above, 0) < mass
        low = tl.where(is_enough, low, middle + 1)
        high = tl.where(is_enough, middle, high)
    tl.store(out + row, high.to(tl.float32, bitcast=True))


def nucleus_threshold(probs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """probs [R, V] in float32, wanted [R, 1] -> [R, 1]: of each row the least probability before which, in falling
    order, less than `wanted` is gathered (Holtzman et al., 1904.09751). 0 where all of the row is less."""
    rows, vocab = probs.shape
    out = torch.empty_like(wanted)
    nucleus_kernel[(rows,)](probs, wanted, out, probs.stride(0), VOCAB=vocab, BLOCK=_BLOCK, ROUNDS=_ROUNDS, num_warps=8)
    return out
