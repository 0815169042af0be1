"""Dense layers of a few rows, one launch each with what stands around them.

At a few rows a product reads its weights and does little else: its time is their bytes over the memory's bandwidth, and
the launches. Legend: M rows (at most 4), I inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from distill.kernels.early import may_begin_early
from distill.kernels.gemv_kernels import gated_gemv_kernel, gemv_kernel

_MOST_ROWS = 4
_NARROW = 2048  # inputs that every program can norm for itself


@dataclass(frozen=True)
class Launch:
    """How a product is cut up: `outputs` of a program, `inputs` of one of its steps, warps, and whether it may start
    while the kernel before it runs (programmatic dependent launch, of GPUs from Hopper on)."""

    outputs: int
    inputs: int
    warps: int
    early: bool


def pays(x: torch.Tensor) -> bool:
    """Whether these products beat a matrix product and the kernels around it, for x [M, I] (`benchmarks/gemv.py`): for
    few rows, and where they are so narrow that every program can norm them for itself."""
    return len(x) <= 2 and x.shape[1] <= _NARROW


def pays_apart(x: torch.Tensor) -> bool:
    """Whether they do with the norm in a launch of its own: for one row of any width."""
    return len(x) == 1


def plan(rows: int, width: int, outputs: int, device: torch.device) -> Launch:
    """The launch for x of [rows, width] and so many outputs, as `benchmarks/gemv.py` found it."""
    assert rows <= _MOST_ROWS
    more, early = triton.next_power_of_2(rows), may_begin_early(device)
    if min(width, outputs) > _NARROW:
        return Launch(8 if outputs > width else 4, 512 // more, 4, early)
    return Launch(2, min(1024 // more, triton.next_power_of_2(width)), 4, early)


def gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    out: torch.Tensor | None = None,
    launch: Launch | None = None,
) -> torch.Tensor:
    """x [M, I], weight [O, I], bias [O] -> x W^T + bias, [M, O]; added to `out` [M, O] where that is given. `norm` is
    weight [I] and epsilon of the RMSNorm that x goes through first."""
    rows, width = x.shape
    launch = launch or plan(rows, width, len(weight), x.device)
    target = torch.empty(rows, len(weight), dtype=x.dtype, device=x.device) if out is None else out
    norm_weight, eps = norm or (x, 0.0)
    gemv_kernel[(triton.cdiv(len(weight), launch.outputs),)](
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
        ROWS=triton.next_power_of_2(rows),
        OUT_BLOCK=launch.outputs,
        BLOCK=launch.inputs,
        STEPS=triton.cdiv(width, launch.inputs),
        UNROLL=max(1, min(4, triton.cdiv(width, launch.inputs) - 1)),
        HAS_BIAS=bias is not None,
        HAS_NORM=norm is not None,
        ADDS=out is not None,
        EARLY=launch.early,
        num_warps=launch.warps,
        launch_pdl=launch.early,
    )
    return target


def gated_gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    launch: Launch | None = None,
) -> torch.Tensor:
    """x [M, I], weight [2 O, I] of gate and up -> silu(n(x) W_gate^T) * (n(x) W_up^T), [M, O]; n is the RMSNorm where
    `norm` is given, and nothing else."""
    rows, width = x.shape
    norm_weight, eps = norm or (x, 0.0)
    outputs = len(weight) // 2
    launch = launch or plan(rows, width, outputs, x.device)
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    gated_gemv_kernel[(triton.cdiv(outputs, launch.outputs),)](
        x,
        weight,
        norm_weight,
        out,
        eps,
        x.stride(0),
        OUT=outputs,
        WIDTH=width,
        M=rows,
        ROWS=triton.next_power_of_2(rows),
        OUT_BLOCK=launch.outputs,
        BLOCK=launch.inputs,
        STEPS=triton.cdiv(width, launch.inputs),
        UNROLL=max(1, min(4, triton.cdiv(width, launch.inputs) - 1)),
        HAS_NORM=norm is not None,
        EARLY=launch.early,
        num_warps=launch.warps,
        launch_pdl=launch.early,
    )
    return out
