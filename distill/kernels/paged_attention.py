"""Attention over a paged KV cache on a GPU, for single tokens (split over the sequence) and for packed segments.

Legend: T tokens, B sequences, n segments, H query heads, K KV heads, N blocks of S tokens, D key size, E value size, M
blocks in a table. The cache is [N, K, S, D] and [N, K, S, E]; a table entry is a block. The plain form of both
functions is `paged_reference`; the kernels are Triton's (`paged_kernels.py`), and run on a CPU too with
TRITON_INTERPRET=1.
"""

from __future__ import annotations

import torch
import triton

from distill.kernels.paged_kernels import decode_kernel, merge_kernel, prefill_kernel

_TILE = 64  # keys of one step of the inner loop
_ROWS = 64  # (token, query head) rows of one prefill program
_SMALLEST_DOT = 16  # tl.dot wants this many rows at least
_TOKENS_A_SPLIT = 512
_MAX_SPLITS = 32


def paged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """One token a sequence, the last of `lengths` [B] tokens in the cache: query [B, H, D], tables [B, M] -> [B, H, E].
    How often a sequence is split depends on the width of the table alone, so nothing waits for the device."""
    rows, heads, dim = query.shape
    kv_heads, size, value_dim = keys.shape[1], keys.shape[2], values.shape[3]
    group = heads // kv_heads
    reach = tables.shape[1] * size if window is None else min(window, tables.shape[1] * size)
    splits = min(_MAX_SPLITS, triton.cdiv(reach, _TOKENS_A_SPLIT))
    partial = torch.empty(rows, kv_heads, splits, group, value_dim, dtype=torch.float32, device=query.device)
    stats = torch.empty(rows, kv_heads, splits, 2, group, dtype=torch.float32, device=query.device)
    out = torch.empty(rows, heads, value_dim, dtype=query.dtype, device=query.device)
    padded_group = triton.next_power_of_2(group)
    decode_kernel[(rows, kv_heads, splits)](
        query,
        keys,
        values,
        tables,
        lengths,
        partial,
        stats,
        scale,
        softcap or 0.0,
        window or 0,
        query.stride(0),
        query.stride(1),
        tables.stride(0),
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=max(_SMALLEST_DOT, padded_group),
        DIM=dim,
        DIM_PAD=max(_SMALLEST_DOT, triton.next_power_of_2(dim)),
        VALUE_DIM=value_dim,
        VALUE_PAD=max(_SMALLEST_DOT, triton.next_power_of_2(value_dim)),
        SIZE=size,
        TILE=_TILE,
        SPLITS=splits,
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap is not None,
    )
    merge_kernel[(rows, kv_heads)](
        partial,
        stats,
        out,
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=padded_group,
        VALUE_DIM=value_dim,
        VALUE_PAD=triton.next_power_of_2(value_dim),
        SPLITS=splits,
    )
    return out


def varlen_prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    contexts: torch.Tensor,
    longest: int,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Segments of a packed batch whose keys and values, and the `contexts` [n] tokens before them, are in the cache:
    query [T, H, D], tables [n, M]; segment i is the tokens starts[i] to starts[i] + lengths[i], `longest` the largest
    length -> [T, H, E]. Tokens outside the segments are left as they are."""
    tokens, heads, dim = query.shape
    kv_heads, size, value_dim = keys.shape[1], keys.shape[2], values.shape[3]
    group = heads // kv_heads
    rows = max(_ROWS, triton.next_power_of_2(group))
    out = torch.empty(tokens, heads, value_dim, dtype=query.dtype, device=query.device)
    prefill_kernel[(triton.cdiv(longest, rows // group), tables.shape[0], kv_heads)](
        query,
        keys,
        values,
        tables,
        starts,
        lengths,
        contexts,
        out,
        scale,
        softcap or 0.0,
        window or 0,
        query.stride(0),
        query.stride(1),
        tables.stride(0),
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=rows,
        DIM=dim,
        DIM_PAD=max(_SMALLEST_DOT, triton.next_power_of_2(dim)),
        VALUE_DIM=value_dim,
        VALUE_PAD=max(_SMALLEST_DOT, triton.next_power_of_2(value_dim)),
        SIZE=size,
        TILE=_TILE,
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap is not None,
    )
    return out
