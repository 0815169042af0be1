"""Multi-head to grouped-query attention: key and value heads of a group become one (GQA, 2305.13245, section 2.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distill.errors import DistillError

_KEY_VALUE = re.compile(r"(?:\.(?P<layer>\d+)\..*)?\.(?P<part>k_proj|v_proj)\.(?:weight|bias)$")


def pool_kv_heads(
    state: Mapping[str, Tensor],
    *,
    kv_heads_before: int,
    kv_heads: int,
    weights: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Neighbouring key and value heads become their mean, weights and biases.

    Query head i reads KV head i // (queries per KV head), so pooling neighbours keeps every query with the mean of a
    group that its own head was in. Exact where the heads of a group are equal. Sums are taken in float32.
    `weights`: of each layer those of its key heads and of its value heads (K,), of any scale; None for equal ones.
    """
    require_even_groups(kv_heads_before, kv_heads)
    pooled = dict(state)
    found = 0
    for name, tensor in state.items():
        match = _KEY_VALUE.search(name)
        if match is None:
            continue
        found += 1
        heads = tensor.float().unflatten(0, (kv_heads, kv_heads_before // kv_heads, -1))
        if weights is None:
            mean = heads.mean(1)
        else:
            of_heads = weights[int(match["layer"])][0 if match["part"] == "k_proj" else 1]
            share = group_shares(of_heads, kv_heads).to(heads)
            mean = (heads * share.reshape(*share.shape, *[1] * (heads.ndim - 2))).sum(1)
        pooled[name] = mean.flatten(0, 1).to(tensor.dtype).contiguous()
    if not found:
        raise DistillError(
            "the model has no separate k_proj and v_proj to pool", remedy="leave student.kv_heads out for this model"
        )
    return pooled


def require_even_groups(kv_heads_before: int, kv_heads: int) -> None:
    """Raise DistillError unless the heads make groups of one size."""
    if kv_heads < 1 or kv_heads_before % kv_heads:
        divisors = [str(n) for n in range(1, kv_heads_before + 1) if kv_heads_before % n == 0]
        raise DistillError(
            f"student.kv_heads is {kv_heads}, the model has {kv_heads_before}", remedy=f"one of {', '.join(divisors)}"
        )


def group_shares(weights_K: Tensor, groups: int) -> Tensor:
    """(groups, K / groups): the weights of each group's heads, summing to 1; equal where all of them are 0."""
    grouped = weights_K.double().unflatten(0, (groups, -1))
    totals = grouped.sum(1, keepdim=True)
    return torch.where(totals > 0, grouped / totals, torch.full_like(grouped, 1 / grouped.shape[1]))
