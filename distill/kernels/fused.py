"""What stands between the matrix products of a decoder layer, in one launch each.

A layer of a Llama takes about 45 launches in transformers, most of them reading a few kilobytes; at batch 1 it is their
number that decides the speed. Legend: T tokens, H query heads, K KV heads, D head size, N blocks of S tokens.
"""

from __future__ import annotations

import torch
import triton

from distill.kernels.early import may_begin_early
from distill.kernels.fused_kernels import rms_norm_kernel, rotate_and_store_kernel, silu_mul_kernel

_HEADS = 8  # of one program
_COLUMNS = 1024


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [T, W], weight [W] -> weight * x / sqrt(mean(x^2) + eps), [T, W] (Zhang and Sennrich, 2019)."""
    tokens, width = x.shape
    out = torch.empty(tokens, width, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    early = may_begin_early(x.device)
    rms_norm_kernel[(tokens,)](
        x,
        weight,
        out,
        eps,
        x.stride(0),
        WIDTH=width,
        BLOCK=block,
        EARLY=early,
        num_warps=min(16, max(4, block // 512)),
        launch_pdl=early,
    )
    return out


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, both [T, W]; the rows may be parts of longer ones."""
    tokens, width = gate.shape
    out = torch.empty(tokens, width, dtype=gate.dtype, device=gate.device)
    grid = (tokens, triton.cdiv(width, _COLUMNS))
    early = may_begin_early(gate.device)
    silu_mul_kernel[grid](
        gate, up, out, gate.stride(0), up.stride(0), WIDTH=width, BLOCK=_COLUMNS, EARLY=early, launch_pdl=early
    )
    return out


def rotate_and_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    query_heads: int,
    norms: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotary positions (Su et al., 2021; halves turned against each other) of queries and keys; keys and values go to
    the cache at `slots` [T] = block x S + offset, nowhere where that is negative.

    qkv [T, (H + 2 K) D], cos and sin [T, D], keys and values [N, K, S, D] -> queries [T, H, D]. `norms`: weights [D] of
    the RMSNorm of each query and key head before the turn, and its epsilon. `positions`, int64 [T]: the rows of cos and
    sin that the tokens take, where those are tables.
    """
    tokens = qkv.shape[0]
    _, kv_heads, size, dim = keys.shape
    query = torch.empty(tokens, query_heads, dim, dtype=qkv.dtype, device=qkv.device)
    query_weight, key_weight, eps = norms or (qkv, qkv, 0.0)
    early = may_begin_early(qkv.device)
    rotate_and_store_kernel[(tokens, triton.cdiv(query_heads + 2 * kv_heads, _HEADS))](
        qkv,
        cos,
        sin,
        slots if positions is None else positions,
        slots,
        query,
        keys,
        values,
        query_weight,
        key_weight,
        eps,
        qkv.stride(0),
        QUERY_HEADS=query_heads,
        KV_HEADS=kv_heads,
        HALF=dim // 2,
        HALF_PAD=triton.next_power_of_2(dim // 2),
        SIZE=size,
        HEADS=_HEADS,
        HAS_NORM=norms is not None,
        BY_POSITION=positions is not None,
        EARLY=early,
        num_warps=2,
        launch_pdl=early,
    )
    return query
