"""What stands between the matrix products of a decoder layer that is trained, in one launch each way.

Differentiable. Legend: T tokens, W width, H query heads, K KV heads, D head size, I width of the gated part.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from distill.kernels.layer_kernels import (
    gate_backward_kernel,
    gate_forward_kernel,
    norm_backward_kernel,
    norm_forward_kernel,
    rotate_kernel,
)

_COLUMNS = 1024
_NORM_PROGRAMS = 528  # four for each processor of an H100; each sums the weight's gradient of its rows


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(s, n): s = x + delta [T, W] in x's dtype, n = weight * s / sqrt(mean(s^2) + eps) in `dtype` (RMSNorm; Zhang and
    Sennrich, 2019). x is to be used no more but as s, so that one pass back makes its gradient."""
    summed, normal = _AddNorm.apply(x, delta, weight, eps, dtype)
    return summed, normal


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [T, (H + 2 K) D] -> queries [T, H, D] and keys [T, K, D] turned by rotary positions (Su et al., 2021; halves
    turned against each other), values [T, K, D]. cos and sin: [T, D], without gradients."""
    query, key, value = _Rotate.apply(qkv, cos, sin, query_heads, kv_heads)
    return query, key, value


def gate(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2 I] -> silu(first half) * second half, [T, I] (SwiGLU; Shazeer, 2020)."""
    out: Tensor = _Gate.apply(gate_up)
    return out


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        rows, width = x.shape
        assert x.is_contiguous() and (delta is None or delta.is_contiguous())
        summed = x if delta is None else torch.empty_like(x)
        out = torch.empty(rows, width, dtype=dtype, device=x.device)
        inverse = torch.empty(rows, dtype=torch.float32, device=x.device)
        block = triton.next_power_of_2(width)
        norm_forward_kernel[(rows,)](
            x,
            x if delta is None else delta,
            weight,
            summed,
            out,
            inverse,
            eps,
            WIDTH=width,
            BLOCK=block,
            HAS_DELTA=delta is not None,
            num_warps=_warps(block),
        )
        ctx.save_for_backward(summed, weight, inverse)
        ctx.delta_dtype = None if delta is None else delta.dtype  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return summed, out

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: FunctionCtx, above: Tensor | None, gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors  # type: ignore[attr-defined]
        dtype: torch.dtype | None = ctx.delta_dtype  # type: ignore[attr-defined]
        assert gradient is not None, "nobody asks for a sum without its norm"
        rows, width = x.shape
        out = torch.empty_like(x)
        apart = dtype is not None and dtype != x.dtype
        by_delta = torch.empty(rows, width, dtype=dtype, device=x.device) if apart else out
        programs = min(rows, _NORM_PROGRAMS)
        partial = torch.empty(programs, width, dtype=torch.float32, device=x.device)
        block = triton.next_power_of_2(width)
        norm_backward_kernel[(programs,)](
            gradient.contiguous(),
            x if above is None else above.contiguous(),
            x,
            weight,
            inverse,
            out,
            by_delta,
            partial,
            rows,
            programs,
            WIDTH=width,
            BLOCK=block,
            HAS_ABOVE=above is not None,
            HAS_DELTA=apart,
            num_warps=_warps(block),
        )
        return out, None if dtype is None else by_delta, partial.sum(0).to(weight.dtype), None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx, qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert qkv.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()
        dim = qkv.shape[1] // (query_heads + 2 * kv_heads)
        query = qkv.new_empty(len(qkv), query_heads, dim)
        key, value = (qkv.new_empty(len(qkv), kv_heads, dim) for _ in range(2))
        _turn(qkv, cos, sin, query, key, value, back=False)
        ctx.save_for_backward(cos, sin)
        return query, key, value

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        out = query.new_empty(len(query), (query.shape[1] + 2 * key.shape[1]) * query.shape[2])
        parts = (part if part.stride(2) == 1 else part.contiguous() for part in (query, key, value))
        _turn(out, cos, sin, *parts, back=True)
        return out, None, None, None, None


def _turn(qkv: Tensor, cos: Tensor, sin: Tensor, query: Tensor, key: Tensor, value: Tensor, *, back: bool) -> None:
    heads = query.shape[1] + 2 * key.shape[1]
    half = query.shape[2] // 2
    rotate_kernel[(len(qkv),)](
        qkv,
        cos,
        sin,
        query,
        key,
        value,
        query.stride(0),
        key.stride(0),
        value.stride(0),
        query.stride(1),
        key.stride(1),
        value.stride(1),
        QUERY_HEADS=query.shape[1],
        KV_HEADS=key.shape[1],
        HALF=half,
        HALF_PAD=triton.next_power_of_2(half),
        HEADS=triton.next_power_of_2(heads),
        BACK=back,
        num_warps=4,
    )


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, gate_up: Tensor) -> Tensor:  # type: ignore[override]
        assert gate_up.is_contiguous()
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        gate_forward_kernel[(rows, triton.cdiv(width, _COLUMNS))](gate_up, out, WIDTH=width, BLOCK=_COLUMNS)
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (gate_up,) = ctx.saved_tensors  # type: ignore[attr-defined]
        rows, width = gradient.shape
        out = torch.empty_like(gate_up)
        grid = (rows, triton.cdiv(width, _COLUMNS))
        gate_backward_kernel[grid](gradient.contiguous(), gate_up, out, WIDTH=width, BLOCK=_COLUMNS)
        return out


def _warps(block: int) -> int:
    return min(16, max(2, block // 512))
