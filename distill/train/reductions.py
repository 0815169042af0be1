"""Distributions reduced to what is stored of them: computed where the teacher is, and brought to the CPU later.

Legend: T tokens, R rows of the vocabulary, k kept, m drawn. What is on the device is never waited for here, so that the
whole batch is queued before the first of it is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.teacher.forms import Sparse


@dataclass(frozen=True)
class Top:
    """The k likeliest: which of them are kept, ids, log probabilities [T, k], and the logarithm of the others' mass."""

    kept_Tk: Tensor
    ids_Tk: Tensor
    log_p_Tk: Tensor
    log_tail_T: Tensor

    def fetch(self) -> Sparse:
        """On the CPU; the likeliest first."""
        kept, ids = self.kept_Tk.cpu().numpy(), self.ids_Tk.cpu().numpy()
        top, tail = self.log_p_Tk.cpu().numpy(), self.log_tail_T.cpu().numpy()
        return Sparse(kept.sum(-1), ids[kept], top[kept], log_tail_T=tail)


@dataclass(frozen=True)
class Drawn:
    """Ids [T, m], how many of them count, and the entropy in nats."""

    ids_Tm: Tensor
    used_T: Tensor
    entropy_T: Tensor
    rows: int

    def fetch(self) -> Sparse:
        """On the CPU, each id with how often it was drawn, the most frequent first."""
        drawn, used = self.ids_Tm.cpu().numpy(), self.used_T.cpu().numpy()
        keys = drawn + self.rows * np.arange(len(drawn))[:, None]
        keys, number = np.unique(keys[np.arange(drawn.shape[-1]) < used[:, None]], return_counts=True)
        token, ids = keys // self.rows, keys % self.rows
        order = np.lexsort((-number, token))
        weights = np.log(number[order] / drawn.shape[-1]).astype(np.float32)
        counts = np.bincount(token, minlength=len(drawn))
        return Sparse(counts, ids[order], weights, entropy_T=self.entropy_T.cpu().numpy())


def top_of(log_p_TR: Tensor, k: int, min_probability: float) -> tuple[Top, Tensor]:
    """The k likeliest of each token, without those below `min_probability` but the first; and the rest [T, R] of p."""
    top, ids = log_p_TR.topk(min(k, log_p_TR.shape[-1]), dim=-1)
    p_Tk = top.exp()
    kept = p_Tk >= min_probability
    kept[:, 0] = True
    rest_TR = log_p_TR.exp().scatter_(-1, ids, torch.where(kept, 0.0, p_Tk))
    return Top(kept, ids, top.float(), rest_TR.sum(-1).clamp_min(1e-30).log().float()), rest_TR


def drawn_of(log_p_TR: Tensor, draws: int, generator: torch.Generator) -> Drawn:
    """`draws` ids of each token's distribution."""
    used = torch.full((len(log_p_TR),), draws, device=log_p_TR.device)
    ids = systematic(log_p_TR.exp(), used, draws, generator)
    return Drawn(ids, used, _entropy(log_p_TR), log_p_TR.shape[-1])


def tail_drawn_of(rest_TR: Tensor, log_p_TR: Tensor, draws: int, generator: torch.Generator) -> Drawn:
    """Ids drawn from what a top k leaves, as many as its mass t is worth: ceil(4 t draws), at most `draws`."""
    used = (rest_TR.sum(-1) * (4.0 * draws)).ceil().clamp_max(draws).long()
    ids = systematic(rest_TR, used, draws, generator)
    return Drawn(ids, used, _entropy(log_p_TR), log_p_TR.shape[-1])


def systematic(weights_TR: Tensor, used_T: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Ids [T, draws] of which the first `used_T` count: n_i of n fall on i, n p_i in expectation, p_i its share.

    Systematic sampling (Madow and Madow, 1944): n points at equal distances over the shares laid end to end, the first
    at random, so that n_i is n p_i rounded down or up. Its variance is f (1 - f), f the fraction of n p_i; that of
    draws independent of each other is n p_i (1 - p_i), as small only for n p_i far below 1.
    """
    ends_TR = weights_TR.cumsum(-1, dtype=torch.float64)
    total_T1 = ends_TR[:, -1:]
    start_T1 = torch.rand(total_T1.shape, dtype=torch.float64, device=weights_TR.device, generator=generator)
    places = torch.arange(draws, device=weights_TR.device)
    points = (start_T1 + places) * (total_T1 / used_T.clamp_min(1).unsqueeze(-1))
    last = weights_TR.shape[-1] - 1
    return torch.searchsorted(ends_TR, points.contiguous(), right=True).clamp_max(last)


def _entropy(log_p_TR: Tensor) -> Tensor:
    return -(log_p_TR.exp() * log_p_TR).nan_to_num().sum(-1).float()
