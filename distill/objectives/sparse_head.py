"""The loss head for sparse targets: from hidden states and the student's LM head, chunk by chunk.

Legend as in `head.py` and `sparse.py`. There is no teacher projection, so it costs less than the live form; gradients
are made in the forward pass, and memory is a few [chunk, V] buffers.
"""

from __future__ import annotations

from torch import Tensor

from distill.objectives.divergences import IGNORED, LossSums, Objective
from distill.objectives.forward_gradients import chunked_loss
from distill.objectives.head import CHUNK_TOKENS, Head
from distill.objectives.sparse import SparseTargets, require_sound, sparse_chunk_loss

OWN_TOKENS = 16  # of the student's likeliest tokens in the teacher's tail, held to the smallest kept probability


def sparse_head_loss(
    student_NH: Tensor,
    student: Head,
    targets: SparseTargets,
    labels_N: Tensor,
    objective: Objective,
    weights_N: Tensor | None = None,
    *,
    chunk_tokens: int | None = None,
    own_tokens: int = OWN_TOKENS,
) -> LossSums:
    """Sums over the tokens whose label is not -100, as `head.head_loss`; `targets` has those tokens, in their order."""
    require_sound(objective, sampled=targets.log_tail_N is None)
    scored = (labels_N != IGNORED).nonzero().squeeze(-1)
    assert len(targets) == len(scored), "targets of other tokens"
    given, hidden_NH = targets.on(student_NH.device), student_NH.index_select(0, scored)
    own_labels = labels_N.index_select(0, scored)
    own_weights = weights_N.index_select(0, scored) if weights_N is not None else None

    def chunk_loss(raw_CV: Tensor, rows: slice, part: SparseTargets) -> tuple[Tensor, Tensor]:
        logits = student.transform(raw_CV)
        weights = own_weights[rows].to(logits.dtype) if own_weights is not None else None
        found, gradient = sparse_chunk_loss(logits, part, own_labels[rows], weights, objective, own_tokens)
        return found, student.transform_gradient(gradient, logits)

    step = chunk_tokens or CHUNK_TOKENS
    parts = ((slice(n, n + step), given.part(n, n + step)) for n in range(0, len(scored), step))
    loss, metrics = chunked_loss(hidden_NH, student.weight, student.bias, parts, chunk_loss)
    return LossSums(loss, *metrics.unbind())
