"""Attention over one packed batch and the paged cache, hooked into transformers' models by name.

Legend: T tokens of the batch, B decoding sequences, N cache blocks, H query heads, K KV heads, G = H / K query heads
that share a KV head, S block size, D key size, E value size. A batch holds its decoding sequences first (a token each),
then its prefill segments.

Decode reads the cache in place: one product of every block in use with the queries of its owner, then a softmax that is
put together over the blocks of a sequence (the split softmax of flash-decoding). On a CPU this beats gathering padded
sequences by two to three times, as the cache is read once and never copied. A single sequence is one call of SDPA over
a copy of its blocks: so little work is decided by the number of calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from distill.engine.batch import DecodeView, PackedBatch, Segment
from distill.engine.tables import KernelTables
from distill.errors import EngineError

NAME = "distill_packed"
_UNSUPPORTED = ("s_aux", "position_bias", "attention_bias", "indices")  # what would change the scores unseen by us


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed_batch: PackedBatch | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface: query [1, H, T, D], key [1, K, T, D], value [1, K, T, E] -> [1, T, H, E]."""
    assert packed_batch is not None, "its layers do not pass our argument on to attention"
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise EngineError(
                f"{type(module).__name__} passes '{name}' to attention, which the engine does not compute",
                remedy="serve this model with vLLM",
            )
    batch, layer = packed_batch, int(module.layer_idx)  # type: ignore[arg-type]
    placement = batch.placement(layer)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = query[0], key[0], value[0]
    if q.dtype != v.dtype:  # under autocast: rotated in float32, where attention computes as the values are, like SDPA
        q, k, query = q.to(v.dtype), k.to(v.dtype), query.to(v.dtype)
    if batch.observe is not None:
        batch.observe(layer, k, v, sliding_window)
    if batch.cache is not None:
        new_k, new_v = (k, v) if batch.stored is None else (k[:, batch.stored], v[:, batch.stored])
        rows = placement.head_rows(batch.cache, k.shape[0])
        batch.cache.write(layer, rows, new_k.transpose(0, 1), new_v.transpose(0, 1))
    if placement.tables is not None:
        return attend_by_kernels(batch, placement.tables, layer, query, sliding_window, scale, softcap), None
    if not placement.segments:
        return _decode(batch, layer, q, sliding_window, scale, softcap).unsqueeze(0), None
    out = q.new_empty(q.shape[1], q.shape[0], v.shape[-1])
    if batch.num_decode:
        out[: batch.num_decode] = _decode(batch, layer, q[:, : batch.num_decode], sliding_window, scale, softcap)
    for segment in placement.segments:
        out[segment.start : segment.end] = _prefill(batch, layer, segment, q, k, v, sliding_window, scale, softcap)
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, packed_attention)


@contextmanager
def attention_by(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let the model call the attention registered as `name` inside the block; outside it stays as it was loaded. As no
    mask function is registered under our own name, transformers builds no mask for it."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


def attend_by_kernels(
    batch: PackedBatch,
    tables: KernelTables,
    layer: int,
    query: torch.Tensor,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """The whole batch by the Triton kernels: query [1, H, T, D] -> [1, T, H, E]."""
    from distill.kernels.paged_attention import paged_decode, varlen_prefill  # Triton is not installed everywhere

    assert batch.cache is not None
    keys, values = batch.cache.keys[layer], batch.cache.values[layer]
    scales = batch.cache.scales[layer]
    q = query[0].transpose(0, 1)
    parts = []
    if tables.decode is not None:
        single, (table, lengths) = q[: batch.num_decode], tables.decode
        parts.append(
            paged_decode(
                single,
                keys,
                values,
                table,
                lengths,
                scale=scale,
                window=window,
                softcap=softcap,
                scales=scales,
                width=tables.width,
                arrived=tables.arrived,
            )
        )
    if tables.prefill is not None:
        table, (starts, lengths, contexts), longest = tables.prefill
        rest = q[batch.num_decode :]
        parts.append(
            varlen_prefill(
                rest,
                keys,
                values,
                table,
                starts,
                lengths,
                contexts,
                longest,
                scale=scale,
                window=window,
                softcap=softcap,
                scales=scales,
            )
        )
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)


def _decode(
    batch: PackedBatch, layer: int, q: torch.Tensor, window: int | None, scale: float, softcap: float | None
) -> torch.Tensor:
    """q [H, B, D] -> [B, H, E]."""
    decode = batch.placement(layer).decode
    assert batch.cache is not None and decode is not None
    if q.shape[1] == 1 and softcap is None:
        row = decode.only_row(window)
        return _attend_one(q, *batch.cache.read(layer, row.blocks, row.start, row.stop), scale)
    view = decode.view(window)
    parts = batch.cache.parts(layer, view.ranges, view.gather)
    heads, rows, dim = q.shape
    kv_heads = parts[0][0].shape[1]
    grouped = q.transpose(0, 1).reshape(rows, kv_heads, heads // kv_heads, dim)
    return blockwise_decode(grouped, parts, view, scale=scale, softcap=softcap).reshape(rows, heads, -1)


def _attend_one(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """One token that sees all of keys [K, S, D] and values [K, S, E]: query [H, 1, D] -> [1, H, E]. The heads of a
    group stand in SDPA's dimension of query tokens, so that each KV head is read once for all of them."""
    heads, _, dim = query.shape
    grouped = query.view(keys.shape[0], 1, -1, dim)
    out = F.scaled_dot_product_attention(grouped, keys.unsqueeze(1), values.unsqueeze(1), scale=scale)
    return out.view(1, heads, -1)


def blockwise_decode(
    query: torch.Tensor,
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]],
    view: DecodeView,
    *,
    scale: float,
    softcap: float | None = None,
) -> torch.Tensor:
    """One query token a sequence: query [B, K, G, D]; N blocks in a few parts, each of keys [n, K, S, D] and values
    [n, K, S, E] -> [B, K, G, E].

    `view.rows` [N] names the sequence of each block, `view.visible` [N, S] its tokens that count. With s the scores of
    a block and m the largest score of its sequence, over all its blocks: output = sum exp(s - m) V / sum exp(s - m).
    """
    num_rows, kv_heads, group, dim = query.shape
    num_blocks, size = view.visible.shape
    per_block = query.index_select(0, view.rows).view(num_blocks * kv_heads, group, dim)
    mask = view.additive_mask(kv_heads, group, query.dtype)
    ends = list(accumulate((keys.shape[0] * kv_heads for keys, _ in parts), initial=0))
    scores = _joined(
        [
            _scores(per_block[a:b], keys, mask[a:b], scale, softcap)
            for (keys, _), a, b in zip(parts, ends, ends[1:], strict=False)
        ]
    )
    owners = view.rows[:, None].expand(num_blocks, kv_heads * group)
    largest = scores.new_full((num_rows, kv_heads * group), float("-inf"))
    largest.scatter_reduce_(0, owners, scores.amax(-1).view(num_blocks, -1), "amax")
    weights = scores.sub_(largest.index_select(0, view.rows).view(-1, group, 1)).exp_()
    total = weights.new_zeros(num_rows, kv_heads * group)
    total.index_add_(0, view.rows, weights.sum(-1).view(num_blocks, -1))
    weights = weights.to(query.dtype)
    partial = _joined(
        [
            torch.bmm(weights[a:b], values.flatten(0, 1))
            for (_, values), a, b in zip(parts, ends, ends[1:], strict=False)
        ]
    )
    out = total.new_zeros(num_rows, kv_heads * group * partial.shape[-1])
    out.index_add_(0, view.rows, partial.view(num_blocks, -1).float())
    out = out.view(num_rows, kv_heads, group, -1) / total.view(num_rows, kv_heads, group, 1)
    return out.to(query.dtype)


def _scores(
    query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scale: float, softcap: float | None
) -> torch.Tensor:
    """query [n x K, G, D], keys [n, K, S, D], mask 0 or -inf [n x K, G, S] -> [n x K, G, S] in float32."""
    keys = keys.flatten(0, 1).transpose(1, 2)
    if softcap is None:
        return torch.baddbmm(mask, query, keys, alpha=scale).float()
    return torch.bmm(query, keys).float().mul_(scale / softcap).tanh_().mul_(softcap).add_(mask)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _prefill(
    batch: PackedBatch,
    layer: int,
    segment: Segment,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """One segment of the batch; its context, if any, comes from the cache -> [L, H, E]."""
    keys, values = k[:, segment.start : segment.end], v[:, segment.start : segment.end]
    if segment.blocks is not None:
        assert batch.cache is not None
        keys, values = batch.cache.read(layer, segment.blocks, 0, segment.context + segment.length - segment.skipped)
    kv_heads = keys.shape[0]
    grouped = q[:, segment.start : segment.end].unflatten(0, (kv_heads, q.shape[0] // kv_heads))
    mask = segment.mask(window, q.device)
    out = grouped_attention(grouped, keys, values, mask, scale=scale, softcap=softcap)
    return out.permute(2, 0, 1, 3).flatten(1, 2)


def grouped_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scale: float,
    softcap: float | None = None,
) -> torch.Tensor:
    """query [K, G, L, D], keys [K, S, D], values [K, S, E], mask bool [L, S], None: causal (L = S) -> [K, G, L, E].

    The KV heads stand in SDPA's batch dimension and are broadcast over the group with stride 0, never copied.
    """
    if softcap is None:
        wide = query.shape[1]
        return F.scaled_dot_product_attention(
            query,
            keys.unsqueeze(1).expand(-1, wide, -1, -1),
            values.unsqueeze(1).expand(-1, wide, -1, -1),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
        )
    kv_heads, group, length, dim = query.shape
    scores = torch.bmm(query.reshape(kv_heads, group * length, dim), keys.transpose(1, 2)).float()
    scores = torch.tanh(scores * (scale / softcap)) * softcap
    visible = mask if mask is not None else torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    scores = scores.view(kv_heads, group, length, -1).masked_fill(~visible, float("-inf"))
    weights = scores.softmax(-1).to(values.dtype).view(kv_heads, group * length, -1)
    return torch.bmm(weights, values).view(kv_heads, group, length, -1)
