"""Attention over a paged KV cache on a GPU, for single tokens (split over the sequence) and for packed segments.

Legend: T tokens, B sequences, n segments, H query heads, K KV heads, N blocks of S tokens, D key size, E value size, M
blocks in a table. The cache is [N, K, S, D] and [N, K, S, E]; a table entry is a block.
Caches of codes (int8, float8_e4m3fn) come with `scales`, [N, K, S] of keys and of values. The plain form of both
functions is `paged_reference`; the kernels are Triton's (`paged_kernels.py`), and run on a CPU too with
TRITON_INTERPRET=1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from distill.kernels.early import may_begin_early
from distill.kernels.paged_kernels import decode_kernel, prefill_kernel
from distill.kernels.paged_launches import LAUNCHES, DecodeLaunch

_TILE = 64  # keys of one step of the inner loop of prefill
_ROWS = 64  # (token, query head) rows of one prefill program
_SMALLEST_DOT = 16  # tl.dot wants this many rows at least
_MERGED_AT_ONCE = 64  # numbers of other splits that a thread reads before it adds them up
_FEWEST_SPLITS = 4  # a long sequence among many short ones is not to be read by one program alone
_FEW_SPLITS, _MOST_SPLITS = 16, 128  # that the kernel is compiled for
_LONG = 1024  # tokens that one program reads at least, where there are programs enough


@dataclass(frozen=True)
class Turn:
    """Rotary positions of a decoding batch: cosines and sines, [B, D], or tables of all positions (`by_position`);
    where the newest tokens go, `slots` [B] = block x S + offset, nowhere where that is negative; `norms`: weights [D]
    of the RMSNorm of each query and key head before the turn, and its epsilon."""

    cos: torch.Tensor
    sin: torch.Tensor
    by_position: bool
    slots: torch.Tensor
    norms: tuple[torch.Tensor, torch.Tensor, float] | None = None


def decode_launch(dim: int) -> DecodeLaunch:
    """The launch for heads of so many numbers."""
    return next((how for most, how in LAUNCHES.items() if dim <= most), LAUNCHES[max(LAUNCHES)])


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
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    width: torch.Tensor | None = None,
    arrived: torch.Tensor | None = None,
    launch: DecodeLaunch | None = None,
    turn: Turn | None = None,
) -> torch.Tensor:
    """One token a sequence, the last of `lengths` [B] tokens in the cache: query [B, H, D], tables [B, M] -> [B, H, E].
    `width` [1]: M, where only the device is to know it; `tables` then is flat, and as long as it may become. How often
    a sequence is split depends on shapes alone, so nothing waits for the device; the last program of a sequence puts
    its splits together. `arrived`, int32 [B x K]: zeros, and zeros again afterwards, for callers that keep them. With
    a `turn` the query is [B, (H + 2 K) D], queries, keys and values of the newest tokens before it, which the cache
    does not hold yet; they go there meanwhile."""
    (rows, kv_heads, size, dim), value_dim = (len(query), *keys.shape[1:]), values.shape[3]
    if turn is not None:
        assert query.is_contiguous() and dim == value_dim and softcap is None and scales is None
        query = query.view(rows, -1, dim)
    heads = query.shape[1] - (0 if turn is None else 2 * kv_heads)
    group = heads // kv_heads
    query_weight, key_weight, eps = (turn.norms if turn is not None else None) or (query, query, 0.0)
    longest = tables.numel() // (rows if width is None else 1) * size
    how = launch or decode_launch(dim)
    splits, least_tiles = plan_splits(rows * kv_heads, longest if window is None else min(window, longest), how)
    group_pad, value_pad = triton.next_power_of_2(group), max(_SMALLEST_DOT, triton.next_power_of_2(value_dim))
    partial = torch.empty(rows, kv_heads, splits, group, value_dim, dtype=torch.float32, device=query.device)
    stats = torch.empty(rows, kv_heads, splits, 2, group, dtype=torch.float32, device=query.device)
    out = torch.empty(rows, heads, value_dim, dtype=query.dtype, device=query.device)
    if arrived is None:
        arrived = torch.zeros(rows * kv_heads, dtype=torch.int32, device=query.device)
    early = may_begin_early(query.device)
    decode_kernel[(rows, kv_heads, splits)](
        query,
        keys,
        values,
        *(scales or (keys, values)),
        tables,
        lengths,
        partial,
        stats,
        arrived,
        out,
        *((query, query, lengths) if turn is None else (turn.cos, turn.sin, turn.slots)),
        query_weight,
        key_weight,
        eps,
        scale,
        softcap or 0.0,
        window or 0,
        query.stride(0),
        query.stride(1),
        tables.stride(0) if width is None else width,
        splits,
        least_tiles,
        KV_HEADS=kv_heads,
        GROUP=group,
        GROUP_PAD=group_pad,
        ROWS=max(_SMALLEST_DOT, group_pad),
        DIM=dim,
        DIM_PAD=max(_SMALLEST_DOT, triton.next_power_of_2(dim)),
        VALUE_DIM=value_dim,
        VALUE_PAD=value_pad,
        SIZE=size,
        TILE=how.tile,
        MOST=_FEW_SPLITS if splits <= _FEW_SPLITS else _MOST_SPLITS,
        AT_ONCE=max(1, min(16, 32 * how.warps * _MERGED_AT_ONCE // (group_pad * value_pad))),
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap is not None,
        QUANTIZED=scales is not None,
        WIDTH_ON_DEVICE=width is not None,
        TURNS=turn is not None,
        BY_POSITION=turn is not None and turn.by_position,
        HAS_NORM=turn is not None and turn.norms is not None,
        EARLY=early,
        num_warps=how.warps,
        num_stages=how.stages,
        launch_pdl=early,
    )
    return out


def plan_splits(pairs: int, longest: int, how: DecodeLaunch) -> tuple[int, int]:
    """Programs for each of so many (sequence, KV head) pairs of at most so many tokens, and the tiles of keys that each
    reads at least. Those without tokens end at once."""
    wanted = max(1, how.programs // pairs)
    least = how.tokens if wanted >= _FEWEST_SPLITS else max(how.tokens, _LONG // wanted)
    least_tiles = triton.cdiv(least, how.tile)
    return min(max(wanted, _FEWEST_SPLITS), _MOST_SPLITS, triton.cdiv(longest, least_tiles * how.tile)), least_tiles


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
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
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
        *(scales or (keys, values)),
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
        QUANTIZED=scales is not None,
    )
    return out
