"""Dense layers of a few rows, one launch each with what stands around them.

At a few rows a product reads its weights and does little else: its time is their bytes over the memory's bandwidth, and
the launches. Legend: M rows (at most MOST_ROWS), I inputs, O outputs.
"""

from __future__ import annotations

import torch
import triton

from distill.kernels.gemv_kernels import gated_gemv_kernel, gemv_kernel

MOST_ROWS = 4
_TILE = 4096  # weights of one step of a program
_WARPS = 4


def _blocks(rows: int, width: int) -> tuple[int, int, int]:
    """Rows as a power of two, outputs of a program and inputs of one step."""
    padded = triton.next_power_of_2(rows)
    block = min(1024 // padded, triton.next_power_of_2(width))
    return padded, max(1, min(4, _TILE // (padded * block))), block


def gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [M, I], weight [O, I], bias [O] -> x W^T + bias, [M, O]; added to `out` [M, O] where that is given. `norm` is
    weight [I] and epsilon of the RMSNorm that x goes through first."""
    rows, width = x.shape
    padded, out_block, block = _blocks(rows, width)
    target = torch.empty(rows, len(weight), dtype=x.dtype, device=x.device) if out is None else out
    norm_weight, eps = norm or (x, 0.0)
    gemv_kernel[(triton.cdiv(len(weight), out_block),)](
        x,
        weight,
        x if bias is None else bias,
        norm_weight,
        target,
        eps,
        x.stride(0),
        target.stride(0),
        OUT=len(weight),
        WIDTH=width,
        M=rows,
        ROWS=padded,
        OUT_BLOCK=out_block,
        BLOCK=block,
        HAS_BIAS=bias is not None,
        HAS_NORM=norm is not None,
        ADDS=out is not None,
        num_warps=_WARPS,
    )
    return target


def gated_gemv(x: torch.Tensor, weight: torch.Tensor, *, norm: tuple[torch.Tensor, float]) -> torch.Tensor:
    """x [M, I], weight [2 O, I] of gate and up -> silu(n(x) W_gate^T) * (n(x) W_up^T) with n the RMSNorm, [M, O]."""
    rows, width = x.shape
    padded, out_block, block = _blocks(rows, width)
    outputs = len(weight) // 2
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    gated_gemv_kernel[(triton.cdiv(outputs, out_block),)](
        x,
        weight,
        norm[0],
        out,
        norm[1],
        x.stride(0),
        OUT=outputs,
        WIDTH=width,
        M=rows,
        ROWS=padded,
        OUT_BLOCK=out_block,
        BLOCK=block,
        num_warps=_WARPS,
    )
    return out
