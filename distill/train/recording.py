"""Writing a teacher's signals down, row by row, from its weights; what is there already is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.recipe.signals import HiddenSignal, SampledSignal, TopKSignal, WrittenSignal
from distill.teacher.forms import Sparse, encode_sampled, join
from distill.teacher.stored import About, Record, Writer
from distill.teacher.tail_draws import encode_with_draws
from distill.teacher.top_k_form import encode_top_k
from distill.train.batches import Sequences, collator
from distill.train.live import LiveTeacher
from distill.train.reductions import Drawn, Top, drawn_of, tail_drawn_of, top_of

_BATCH_TOKENS = 4096  # of a forward pass, padding included
_CHUNK_NUMBERS = 1 << 25  # probabilities that exist at once
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
    states = [hidden[place, torch.tensor(row.scored, device=device)] for place, row in enumerate(batch)]
    if isinstance(settings, HiddenSignal):
        plain = [part.cpu().contiguous().view(torch.uint8).numpy().tobytes() for part in states]
        return [Record(row.row_id, len(part), 0, raw) for row, part, raw in zip(batch, states, plain, strict=True)]
    reduced = [
        _reduced(part, row.row_id, teacher, about, settings) for row, part in zip(batch, states, strict=True)
    ]  # all of them queued before the first is waited for
    return [record_of(row.row_id, *_fetch(parts), about) for row, parts in zip(batch, reduced, strict=True)]


def record_of(row: int, entries: Sparse, tail: Sparse | None, about: About) -> Record:
    """A row's entries as they are written. `tail`: what was drawn besides, where `about` has draws of a top k."""
    rows, count = about.fingerprint.vocabulary, len(entries.ids_E)
    if about.form == "sampled":
        packed = encode_sampled(entries, rows, about.draws)
    elif tail is None:
        packed = encode_top_k(entries, rows, about.step_nats)
    else:
        packed = encode_with_draws(entries, tail, rows, step_nats=about.step_nats, draws=about.draws)
        count += len(tail.ids_E)
    return Record(row, len(entries.counts_T), count, packed)


Reduced = tuple[Top | Drawn, Drawn | None]  # of some tokens; the second: what is drawn from a tail


def _reduced(
    states_TK: Tensor, row: int, teacher: LiveTeacher, about: About, settings: TopKSignal | SampledSignal
) -> list[Reduced]:
    """Of the rows that teacher and student both have, at the objective's temperature; a few tokens at a time."""
    rows = about.fingerprint.vocabulary
    generator = torch.Generator(states_TK.device)
    generator.manual_seed((row ^ settings.seed) & 0x7FFFFFFF_FFFFFFFF)
    step, found = max(1, _CHUNK_NUMBERS // rows), list[Reduced]()
    for begin in range(0, len(states_TK), step):
        states = states_TK[begin : begin + step].to(teacher.head.weight.dtype)
        logits = teacher.head.logits(states)[:, :rows].float()
        log_p = torch.log_softmax(logits / about.temperature, dim=-1)
        if isinstance(settings, SampledSignal):
            found.append((drawn_of(log_p, settings.draws, generator), None))
            continue
        top, rest = top_of(log_p, settings.k, settings.min_probability)
        draws = settings.num_tail_draws
        found.append((top, tail_drawn_of(rest, log_p, draws, generator) if draws else None))
    return found


def _fetch(parts: Sequence[Reduced]) -> tuple[Sparse, Sparse | None]:
    tails = [tail.fetch() for _, tail in parts if tail is not None]
    return join([part.fetch() for part, _ in parts]), join(tails) if tails else None
