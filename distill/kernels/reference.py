"""Attention by its definition, in float64 and loops: what every fast path is tested against."""

from __future__ import annotations

import torch


def attention_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Causal attention: query [H, L, D] for the last L of the S positions in keys [K, S, D] and values [K, S, E]
    -> [L, H, E]. A query head reads KV head `head // (H / K)`; `window` is how many tokens a token sees."""
    heads, length, _ = query.shape
    total, group = keys.shape[1], heads // keys.shape[0]
    position = torch.arange(total - length, total, device=query.device)[:, None]
    other = torch.arange(total, device=query.device)[None, :]
    visible = other <= position
    if window is not None:
        visible &= other > position - window
    out = []
    for head in range(heads):
        scores = query[head].double() @ keys[head // group].double().T * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        out.append(weights @ values[head // group].double())
    return torch.stack(out, dim=1)


def paged_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    contexts: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Packed segments over a paged cache: query [T, H, D], blocks keys [N, K, S, D] and values [N, K, S, E], a block
    table [n, M], and each segment's first token, its length and the tokens before it, [n] -> [T, H, E]."""
    out = torch.zeros(query.shape[0], query.shape[1], values.shape[-1], dtype=torch.float64, device=query.device)
    for table, start, length, context in zip(tables, starts.tolist(), lengths.tolist(), contexts.tolist(), strict=True):
        total = context + length
        blocks = table[: -(-total // keys.shape[2])].long().clamp_min(0)  # below 0: given back, as no window reaches it
        own_keys, own_values = (t[blocks].transpose(0, 1).flatten(1, 2)[:, :total] for t in (keys, values))
        out[start : start + length] = attention_reference(
            query[start : start + length].transpose(0, 1),
            own_keys,
            own_values,
            scale=scale,
            window=window,
            softcap=softcap,
        )
    return out
