"""The loss head for a teacher of another tokenizer: from hidden states and both LM heads, in chunks of whole spans.

Legend as in `head.py` and `aligned.py`. Gradients are made in the forward pass, by autograd within a chunk, so that no
more exists at once than some ten buffers [chunk, V] and [chunk, U].
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.objectives.aligned import AlignedTargets, Cuts, Tokens, span_distances
from distill.objectives.divergences import IGNORED, LossSums, Objective
from distill.objectives.forward_gradients import chunked_loss
from distill.objectives.head import Head

_CHUNK_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}  # of both models together: 32 and 512 MiB in float32


def aligned_head_loss(
    student_NH: Tensor,
    student: Head,
    targets: AlignedTargets,
    labels_N: Tensor,
    objective: Objective,
    *,
    chunk_tokens: int | None = None,
) -> LossSums:
    """Sums over the tokens whose label is not -100, as `head.head_loss`, with one divergence a span.

    `agreement` counts the tokens of the spans at whose beginning both models have the same likeliest event.
    """
    scored = (labels_N != IGNORED).nonzero().squeeze(-1)
    assert len(targets.spans_N) == len(scored), "targets of other tokens"
    if chunk_tokens is None:
        rows = student.weight.shape[0] + targets.head.weight.shape[0]
        chunk_tokens = max(1, _CHUNK_LOGITS.get(student_NH.device.type, 1 << 27) // rows)
    own_labels = labels_N.index_select(0, scored)
    device = student_NH.device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else student_NH.dtype

    def chunk_loss(raw_CV: Tensor, rows: slice, others: slice) -> tuple[Tensor, Tensor]:
        theirs = _teacher_logits(targets, others, compute, raw_CV.dtype)
        return _chunk(raw_CV, student, theirs, targets, rows, others, own_labels[rows], objective)

    parts = chunks(targets.spans_N.tolist(), targets.spans_M.tolist(), chunk_tokens)
    hidden_NH = student_NH.index_select(0, scored)
    loss, metrics = chunked_loss(hidden_NH, student.weight, student.bias, parts, chunk_loss)
    return LossSums(loss, *metrics.unbind())


def chunks(ours: Sequence[int], theirs: Sequence[int], limit: int) -> Iterator[tuple[slice, slice]]:
    """(student's tokens, teacher's tokens) of each chunk: at most `limit` of the student's, or one longer span."""
    begin = 0
    while begin < len(ours):
        end = min(begin + limit, len(ours))
        while begin < end < len(ours) and ours[end] == ours[end - 1] >= 0:
            end -= 1
        if end == begin:
            end = next((place for place in range(begin, len(ours)) if ours[place] != ours[begin]), len(ours))
        inside = [span for span in ours[begin:end] if span >= 0]
        first, last = (inside[0], inside[-1]) if inside else (0, -1)
        yield slice(begin, end), slice(bisect_left(theirs, first), bisect_left(theirs, last + 1))
        begin = end


def _teacher_logits(targets: AlignedTargets, rows: slice, compute: torch.dtype, exact: torch.dtype) -> Tensor:
    head = targets.head
    bias = None if head.bias is None else head.bias.detach().to(compute)
    raw = F.linear(targets.hidden_MK[rows].to(compute), head.weight.detach().to(compute), bias)
    return head.transform(raw.to(exact))


def _cuts(targets: AlignedTargets, rows: slice, others: slice, inside: Tensor) -> Cuts:
    """The chunk's cuts, with tokens counted among those of its spans."""
    spans_D = targets.spans_M[others]
    found = targets.cuts.of(int(spans_D[0]), int(spans_D[-1]))
    span_J, ours_J, theirs_J, ended_J = found.table_J4.unbind(-1)
    ours_J, theirs_J = torch.searchsorted(inside, ours_J - rows.start), theirs_J - others.start
    return replace(found, table_J4=torch.stack([span_J, ours_J, theirs_J, ended_J], -1))


def _chunk(
    raw_CV: Tensor,
    student: Head,
    teacher_DU: Tensor,
    targets: AlignedTargets,
    rows: slice,
    others: slice,
    labels_C: Tensor,
    objective: Objective,
) -> tuple[Tensor, Tensor]:
    """(loss, divergence, cross entropy, agreement, accuracy, weight) sums, and d loss / d raw projections [C, V]."""
    spans_C, spans_D = targets.spans_N[rows], targets.spans_M[others]
    inside = (spans_C >= 0).nonzero().squeeze(-1)
    number = int(spans_D[0]) if len(spans_D) else 0
    local_C, local_D = (spans.to(raw_CV.device) - number for spans in (spans_C[inside], spans_D))
    with torch.enable_grad():
        raw = raw_CV.detach().requires_grad_()
        logits = student.transform(raw)
        ce_C = F.cross_entropy(logits, labels_C, reduction="none")
        divergence = agreement = raw.new_zeros(())
        if len(inside):
            kept = inside.to(raw.device)
            distance_G, same_G = span_distances(
                Tokens(logits[kept], labels_C[kept], local_C),
                Tokens(teacher_DU, targets.ids_M[others], local_D),
                _cuts(targets, rows, others, inside).on(raw.device),
                targets.events,
                objective,
                targets.uld_weight,
            )
            divergence, agreement = distance_G.sum(), (same_G * torch.bincount(local_C)).sum()
        loss = objective.divergence_scale * divergence + objective.ce_weight * ce_C.sum()
        (gradient,) = torch.autograd.grad(loss, raw)
    accuracy = (logits.detach().gather(-1, labels_C.unsqueeze(-1)) == logits.detach().amax(-1, keepdim=True)).sum()
    columns = [loss, divergence, ce_C.sum(), agreement, accuracy, torch.tensor(len(labels_C))]
    return torch.stack([column.detach().to(raw.device, raw.dtype) for column in columns]), gradient
