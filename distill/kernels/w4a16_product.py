"""Products with packed weights on a GPU: which kernel, in how many pieces. Shapes decide alone, so that a CUDA graph
can hold any of these calls. With TRITON_INTERPRET=1 all of it runs on a CPU.

Up to `MOST_ROWS` rows the kernel multiplies packed weights; beyond that it is cheaper to make the weight dense once, in
memory that torch's allocator reuses, and to leave the product to cuBLAS.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from distill.kernels.early import may_begin_early
from distill.kernels.fused import silu_mul
from distill.kernels.w4a16_kernels import dense_kernel, product_kernel
from distill.kernels.w4a16_launches import KINDS, PROCESSORS, Kind
from distill.kernels.w4a16_layout import SLAB, TILE, cells, fragments

MOST_ROWS = 256
_FEWEST_TILES = 7  # of a program that has others beside it
_FAST = os.environ.get("TRITON_INTERPRET") != "1"


@dataclass(frozen=True)
class Form:
    """What a packed weight (O, I) is, beside its numbers."""

    outputs: int
    inputs: int
    bits: int
    group_size: int
    has_zeros: bool
    has_half_scales: bool

    @classmethod
    def of(cls, codes: Tensor, scales: Tensor, zeros: Tensor | None, *, bits: int) -> Form:
        """That of `pack`'s arguments."""
        outputs, inputs = codes.shape
        group_size = inputs // scales.shape[1]
        return cls(outputs, inputs, 8 if bits == 8 else 4, group_size, zeros is not None, scales.dtype == torch.float16)

    @property
    def slabs(self) -> int:
        return triton.cdiv(self.outputs, SLAB)

    @property
    def tiles(self) -> int:
        return triton.cdiv(self.inputs, TILE)


def pack(codes: Tensor, scales: Tensor, zeros: Tensor | None, *, bits: int) -> tuple[Tensor, Tensor]:
    """Words and grid of `w4a16_layout` from signed codes (O, I), scales (O, G) and signed zero points (O, G), on their
    device. Scales keep their 16 bits; float32 ones are rounded to bfloat16."""
    narrow = scales if scales.dtype in (torch.float16, torch.bfloat16) else scales.bfloat16()
    return fragments(codes, bits=bits), cells(narrow, zeros)


def counters(form: Form, device: torch.device) -> Tensor:
    """A zero for each program of the largest launch; every product leaves them at zero."""
    return torch.zeros(form.slabs * triton.cdiv(MOST_ROWS, 16), dtype=torch.int32, device=device)


def product(
    x: Tensor,
    words: Tensor,
    grid: Tensor,
    arrived: Tensor,
    form: Form,
    bias: Tensor | None,
    dtype: torch.dtype,
    add_to: Tensor | None = None,
    *,
    gated: bool = False,
) -> Tensor:
    """x (N, I) in float16 or bfloat16 -> x W^T + bias (N, O) in `dtype`; added to `add_to` (N, O) where given; `gated`:
    silu of its first half of outputs times the second (N, O / 2), halves that are whole slabs."""
    if x.shape[0] > MOST_ROWS:
        made = F.linear(x, dense(words, grid, form, x.dtype), None if bias is None else bias.to(x.dtype)).to(dtype)
        if gated:
            return silu_mul(*made.chunk(2, -1))
        return made if add_to is None else add_to.add_(made)
    width = max(16, min(max(KINDS), triton.next_power_of_2(x.shape[0])))
    return launch_product(x, words, grid, arrived, form, bias, dtype, width, KINDS[width], add_to, gated=gated)


def num_splits(rows: int, form: Form, width: int, kind: Kind) -> int:
    """Programs along the inputs, so that each multiprocessor has as many as it shall, with a few tiles at least: with
    fewer, small layers were slower (2 and 3 programs in `benchmarks/results/w4a16-sweep_h200_2026-11-29.json`)."""
    blocks = triton.cdiv(form.slabs, kind.slabs) * triton.cdiv(rows, width)
    return max(1, min(form.tiles // _FEWEST_TILES, kind.programs * PROCESSORS // blocks))


def launch_product(
    x: Tensor,
    words: Tensor,
    grid: Tensor,
    arrived: Tensor,
    form: Form,
    bias: Tensor | None,
    dtype: torch.dtype,
    width: int,
    how: Kind,
    add_to: Tensor | None = None,
    *,
    gated: bool = False,
) -> Tensor:
    """`product` by the kernel, with `width` rows a program and launched as told."""
    rows = x.shape[0]
    assert x.stride(1) == 1
    assert not gated or (add_to is None and form.outputs % (2 * SLAB) == 0 and how.slabs > 1)
    outputs = form.outputs // 2 if gated else form.outputs
    out = torch.empty(rows, outputs, dtype=dtype, device=x.device) if add_to is None else add_to
    assert out.is_contiguous()
    partial, splits = out, num_splits(rows, form, width, how)
    if splits > 1:
        partial = torch.empty(splits, rows, form.outputs, dtype=torch.float32, device=x.device)
    early = how.early and may_begin_early(x.device)
    programs = (triton.cdiv(form.slabs, how.slabs), splits, triton.cdiv(rows, width))
    assert programs[0] * programs[2] <= arrived.numel()
    product_kernel[programs](
        x,
        words,
        grid,
        out if bias is None else bias,
        out,
        partial,
        arrived,
        rows,
        form.outputs,
        form.inputs,
        form.slabs,
        form.tiles,
        splits,
        x.stride(0),
        SLABS=how.slabs,
        BN=width,
        HAS_SPLITS=splits > 1,
        STAGES=how.stages,
        BITS=form.bits,
        PARTS=max(1, TILE // form.group_size),
        GROUP_TILES=max(1, form.group_size // TILE),
        HAS_ZERO=form.has_zeros,
        HAS_BIAS=bias is not None,
        ADDS=add_to is not None,
        HALF_SCALES=form.has_half_scales,
        WHOLE=form.inputs % TILE == 0,
        SCALED=how.scaled,
        GATED=gated,
        EARLY=early,
        FAST=_FAST,
        num_warps=how.warps,
        launch_pdl=early,
    )
    return out


def dense(words: Tensor, grid: Tensor, form: Form, dtype: torch.dtype) -> Tensor:
    """W (O, I) in float16 or bfloat16."""
    out = torch.empty(form.outputs, form.inputs, dtype=dtype, device=words.device)
    dense_kernel[(triton.cdiv(form.slabs, 4), form.tiles)](
        words,
        grid,
        out,
        form.outputs,
        form.inputs,
        form.slabs,
        form.tiles,
        SLABS=4,
        BITS=form.bits,
        GROUP=form.group_size,
        HAS_ZERO=form.has_zeros,
        HALF_SCALES=form.has_half_scales,
        FAST=_FAST,
    )
    return out
