"""Writing a teacher's signals down, row by row, from its weights; what is there already is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.recipe.signals import HiddenSignal, SampledSignal, TopKSignal, WrittenSignal
from distill.teacher.forms import Sparse, encode_sampled, join
from distill.teacher.stored import About, Record, Writer
from distill.teacher.top_k_form import encode_top_k
from distill.train.batches import Sequences, collator
from distill.train.live import LiveTeacher

_BATCH_TOKENS = 4096  # of a forward pass, padding included
_CHUNK_TOKENS = 256  # whose distributions exist at once
_ROWS_A_COMMIT = 256
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Row:
    """A row to write: its id, its tokens, and the positions whose next token is trained."""

    row_id: int
    input_ids: list[int]
    labels: list[int]

    @property
    def scored(self) -> list[int]:
        return [place for place, label in enumerate(self.labels[1:]) if label >= 0]


def rows_to_write(rows: Sequences, writer: Writer) -> list[Row]:
    """Each row once, those left out that are written. `rows` are not packed."""
    found: dict[int, Row] = {}
    for names, ids, labels in zip(rows.row_ids, rows.input_ids, rows.labels, strict=True):
        assert len(names) == 1, "rows are written before they are packed"
        if names[0] not in writer:
            found.setdefault(names[0], Row(names[0], ids, labels))
    return list(found.values())


def record_rows(
    rows: Sequence[Row],
    teacher: LiveTeacher,
    writer: Writer,
    about: About,
    settings: WrittenSignal,
    *,
    device: torch.device,
    progress: Progress,
) -> None:
    """Compute and commit the rows' signals, a few hundred rows at a time."""
    for begin in range(0, len(rows), _ROWS_A_COMMIT):
        group = sorted(rows[begin : begin + _ROWS_A_COMMIT], key=lambda row: -len(row.input_ids))
        records: list[Record] = []
        for batch in _batches(group):
            records += _record_batch(batch, teacher, about, settings, device)
        writer.add(records)
        progress(len(group))


def _batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Neighbours of similar length, the longest first."""
    begin = 0
    while begin < len(rows):
        count = max(1, _BATCH_TOKENS // len(rows[begin].input_ids))
        yield list(rows[begin : begin + count])
        begin += count


@torch.no_grad()
def _record_batch(
    batch: Sequence[Row], teacher: LiveTeacher, about: About, settings: WrittenSignal, device: torch.device
) -> list[Record]:
    collated = collator(0)(
        [
            {"input_ids": row.input_ids, "labels": row.labels, "row_ids": [row.row_id], "seq_lengths": [0]}
            for row in batch
        ]
    )
    hidden = teacher({name: values.to(device) for name, values in collated.items()}).hidden
    found = []
    for place, row in enumerate(batch):
        states = hidden[place, torch.tensor(row.scored, device=device)]
        if isinstance(settings, HiddenSignal):
            plain = states.cpu().contiguous().view(torch.uint8).numpy()
            found.append(Record(row.row_id, len(states), 0, plain.tobytes()))
        else:
            found.append(record_of(row.row_id, _distributions(states, row.row_id, teacher, about, settings), about))
    return found


def record_of(row: int, entries: Sparse, about: About) -> Record:
    """A row's entries as they are written."""
    rows = about.fingerprint.vocabulary
    if about.form == "sampled":
        packed = encode_sampled(entries, rows, about.draws)
    else:
        packed = encode_top_k(entries, rows, about.step_nats)
    return Record(row, len(entries.counts_T), len(entries.ids_E), packed)


def _distributions(
    states_TK: Tensor, row: int, teacher: LiveTeacher, about: About, settings: TopKSignal | SampledSignal
) -> Sparse:
    """Of the rows that teacher and student both have, at the objective's temperature."""
    rows, parts = about.fingerprint.vocabulary, []
    generator = torch.Generator(states_TK.device)
    if isinstance(settings, SampledSignal):
        generator.manual_seed((row ^ settings.seed) & 0x7FFFFFFF_FFFFFFFF)
    for begin in range(0, len(states_TK), _CHUNK_TOKENS):
        states = states_TK[begin : begin + _CHUNK_TOKENS].to(teacher.head.weight.dtype)
        logits = teacher.head.logits(states)[:, :rows].float()
        log_p = torch.log_softmax(logits / about.temperature, dim=-1)
        if isinstance(settings, SampledSignal):
            parts.append(sampled_of(log_p, settings.draws, generator))
        else:
            parts.append(top_k_of(log_p, settings.k, settings.min_probability))
    return join(parts)


def top_k_of(log_p_TR: Tensor, k: int, min_probability: float) -> Sparse:
    """The k likeliest of each token, without those below `min_probability` but the first; and the others' mass."""
    top, ids = log_p_TR.topk(min(k, log_p_TR.shape[-1]), dim=-1)
    p_Tk = top.exp()
    kept = p_Tk >= min_probability
    kept[:, 0] = True
    rest = log_p_TR.exp().scatter_(-1, ids, torch.where(kept, 0.0, p_Tk)).sum(-1)
    return Sparse(
        kept.sum(-1).cpu().numpy(),
        ids[kept].cpu().numpy(),
        top[kept].float().cpu().numpy(),
        log_tail_T=rest.clamp_min(1e-30).log().float().cpu().numpy(),
    )


def sampled_of(log_p_TR: Tensor, draws: int, generator: torch.Generator) -> Sparse:
    """Ids drawn from each token's distribution with how often each was, the most frequent first; and its entropy."""
    p_TR = log_p_TR.exp()
    rows = log_p_TR.shape[-1]
    drawn = torch.multinomial(p_TR, draws, replacement=True, generator=generator).cpu().numpy()
    keys, number = np.unique(drawn + rows * np.arange(len(drawn))[:, None], return_counts=True)
    token, ids = keys // rows, keys % rows
    order = np.lexsort((-number, token))
    counts = np.bincount(token, minlength=len(drawn))
    weights = np.log(number[order] / draws).astype(np.float32)
    entropy = -(p_TR * log_p_TR).nan_to_num().sum(-1)
    return Sparse(counts, ids[order], weights, entropy_T=entropy.float().cpu().numpy())
