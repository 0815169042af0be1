"""A live teacher of another tokenizer: it reads the same chats in its own tokens, beside the student's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.objectives.aligned import AlignedTargets, Cuts
from distill.objectives.events import Events, events_of
from distill.recipe.train import Alignment
from distill.train.aligned_rows import UNCUT, Aligned, RowCut, align, spelling_of
from distill.train.batches import NO_ROW, Sequences
from distill.train.live import LiveTeacher


class AlignedTeacher:
    """A live teacher that reads each row in its own tokens; rows are found by the batch's row ids.

    A row whose tokens are not those of the dataset has the student's own answer at its end (on-policy).

    `facts`: shares of the student's tokens that are compared, and one to one, and of its vocabulary that is shared.
    """

    def __init__(self, teacher: LiveTeacher, aligned: Aligned, events: Events, uld_weight: float) -> None:
        self._teacher, self._aligned, self._events, self._uld_weight = teacher, aligned, events, uld_weight
        ruled_in = int((~events.ours.excluded_V).sum())
        self.facts = {**aligned.shares(), "shared_vocabulary": events.num_shared / ruled_in}

    def __call__(self, batch: Mapping[str, Tensor]) -> AlignedTargets:
        device = batch["labels"].device
        rows = [self._aligned.row(*document) for document in documents_of(batch)]
        input_ids = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.long)
        for index, row in enumerate(rows):
            input_ids[index, : len(row.ids)] = torch.tensor(row.ids)
        hidden = self._teacher({"input_ids": input_ids.to(device)}).hidden
        ours: list[int] = []
        theirs: list[int] = []
        places: list[tuple[int, int]] = []
        cuts: list[RowCut] = []
        spans = 0
        for index, row in enumerate(rows):
            cuts += [cut.behind(spans, len(ours), len(theirs)) for cut in row.cuts]
            ours += [span + spans if span >= 0 else -1 for span in row.spans]
            theirs += [span + spans for span in row.their_spans]
            places += [(index, place) for place in row.places]
            spans = theirs[-1] + 1 if theirs else 0
        at = torch.tensor(places, dtype=torch.long).view(-1, 2)
        self._events = self._events.on(device)
        return AlignedTargets(
            spans_N=torch.tensor(ours, dtype=torch.long),
            spans_M=torch.tensor(theirs, dtype=torch.long),
            ids_M=input_ids[at[:, 0], at[:, 1]].to(device),
            hidden_MK=hidden[at[:, 0].to(device), at[:, 1].to(device) - 1],
            cuts=cuts_of(cuts),
            head=self._teacher.head,
            events=self._events,
            uld_weight=self._uld_weight,
        )


def documents_of(batch: Mapping[str, Tensor]) -> Iterator[tuple[int, list[int], list[int]]]:
    """(row id, ids, labels) of every document of a batch, of packed rows too; padding counts to the last of a row."""
    for names, ids, labels, positions in zip(
        *(batch[name].tolist() for name in ("row_ids", "input_ids", "labels", "position_ids")), strict=True
    ):
        starts = [place for place, position in enumerate(positions) if position == 0]
        ends = [*starts[1:], len(ids)]
        for name, begin, end in zip([name for name in names if name != NO_ROW], starts, ends, strict=True):
            yield name, ids[begin:end], labels[begin:end]


def cuts_of(cuts: Sequence[RowCut]) -> Cuts:
    """Cuts as tensors."""
    table = [(cut.span, cut.token, cut.other_token, int(cut.ended)) for cut in cuts]
    sides = [cut.alike for cut in cuts], [cut.other_alike for cut in cuts]
    alike = [[(n, index) for n, ids in enumerate(side) for index in ids] for side in sides]
    return Cuts(
        torch.tensor(table, dtype=torch.long).view(-1, 4),
        *(torch.tensor(pairs, dtype=torch.long).view(-1, 2) for pairs in alike),
    )


def open_aligned(
    alignment: Alignment,
    teacher: LiveTeacher,
    their_tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequences,
    data: Sequence[Path],
) -> AlignedTeacher:
    """The teacher as it reads `rows`, which were read from `data`. Raises as `align` and `spelling_of` do."""
    context = teacher.model.config.get_text_config().to_dict().get("max_position_embeddings")
    aligned = align(rows, data, tokenizer, their_tokenizer, teacher_tokens=int(context or UNCUT))
    events = events_of(
        spelling_of(tokenizer),
        spelling_of(their_tokenizer),
        rows=(_rows(student), _rows(teacher.model)),
        ends=aligned.ends,
        unmatched=alignment.unmatched,
    )
    return AlignedTeacher(teacher, aligned, events, alignment.uld_weight)


def _rows(model: PreTrainedModel) -> int:
    """Of the head, padding included."""
    return int(model.get_output_embeddings().weight.shape[0])
