"""Rows as they are stored, for tests."""

from __future__ import annotations

import numpy as np
import torch

from distill.objectives.sparse import SparseTargets
from distill.teacher.forms import Sparse


def some_top_k(tokens: int = 5, k: int = 6, rows: int = 50) -> Sparse:
    """The `k` likeliest of random distributions."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (tokens, rows))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = np.argsort(-log_p, -1)[:, :k]
    top = np.take_along_axis(log_p, ids, -1)
    tail = np.log(np.maximum(1.0 - np.exp(top).sum(-1), 1e-30))
    return Sparse(np.full(tokens, k), ids.ravel(), top.ravel().astype(np.float32), log_tail_T=tail.astype(np.float32))


def targets_of(found: Sparse, rows: int) -> SparseTargets:
    """The same for the loss, as if it had been written without loss."""
    extras = {"log_tail_N": found.log_tail_T, "entropy_N": found.entropy_T}
    return SparseTargets(
        rows,
        torch.from_numpy(np.concatenate([[0], np.cumsum(found.counts_T)])),
        torch.from_numpy(found.ids_E),
        torch.from_numpy(found.logprobs_E),
        **{name: None if value is None else torch.from_numpy(value) for name, value in extras.items()},
    )
