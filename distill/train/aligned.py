"""A live teacher of another tokenizer: the same chats in its own tokens, span by span beside the student's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.errors import CheckpointError, DataError
from distill.model.chat import IGNORED, encode_completion
from distill.objectives.aligned import AlignedTargets
from distill.objectives.events import Events, events_of
from distill.recipe.train import Alignment
from distill.records import Message, read_parquet
from distill.text.spans import Span, spans_around
from distill.text.token_bytes import Spelling, bytes_of_tokens
from distill.train.batches import NO_ROW, Sequences
from distill.train.live import LiveTeacher

_LONGEST = 64  # tokens of a span on either side; longer ones are texts that hardly agree
_UNCUT = 1 << 30
_SAMPLE = "Hello, wörld! 12 🙂\n x"


@dataclass(frozen=True)
class AlignedRow:
    """A row in the teacher's tokens, through the last one that is compared.

    `spans`: of each scored token of the student, in their order, the number of its span, -1 where it is in none;
    `places`: of each compared token of the teacher where it stands in `ids`; `their_spans`: its span's number.
    """

    ids: list[int]
    spans: list[int]
    places: list[int]
    their_spans: list[int]


@dataclass(frozen=True)
class Aligned:
    """All rows by their ids, and the tokens that end a turn, which both sides take for the same event."""

    rows: Mapping[int, AlignedRow]
    ends: tuple[int, int] | None

    def shares(self) -> dict[str, float]:
        """Of the student's scored tokens: how many are compared, and how many of these are paired one to one."""
        tokens = compared = paired = 0
        for row in self.rows.values():
            ours, theirs = Counter(span for span in row.spans if span >= 0), Counter(row.their_spans)
            tokens += len(row.spans)
            compared += ours.total()
            paired += sum(count == theirs[span] == 1 for span, count in ours.items())
        return {"compared_tokens": compared / max(1, tokens), "paired_tokens": paired / max(1, tokens)}


class AlignedTeacher:
    """A live teacher that reads each row in its own tokens; rows are found by the batch's row ids."""

    def __init__(self, teacher: LiveTeacher, aligned: Aligned, events: Events, uld_weight: float) -> None:
        self._teacher, self._rows, self._uld_weight = teacher, aligned.rows, uld_weight
        self._events = events
        self.facts = {**aligned.shares(), "shared_vocabulary": events.num_shared / int((~events.ours.excluded_V).sum())}

    def __call__(self, batch: Mapping[str, Tensor]) -> AlignedTargets:
        device = batch["labels"].device
        rows = [self._rows[row] for row in batch["row_ids"].flatten().tolist() if row != NO_ROW]
        input_ids = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.long)
        for index, row in enumerate(rows):
            input_ids[index, : len(row.ids)] = torch.tensor(row.ids)
        hidden = self._teacher({"input_ids": input_ids.to(device)}).hidden
        ours, theirs, numbers, before = [], [], [], 0
        for index, row in enumerate(rows):
            ours += [span + before if span >= 0 else -1 for span in row.spans]
            theirs += [(index, place) for place in row.places]
            numbers += [span + before for span in row.their_spans]
            before = numbers[-1] + 1 if numbers else 0
        at = torch.tensor(theirs, dtype=torch.long).view(-1, 2)
        self._events = self._events.on(device)
        return AlignedTargets(
            spans_N=torch.tensor(ours, dtype=torch.long),
            spans_M=torch.tensor(numbers, dtype=torch.long),
            ids_M=input_ids[at[:, 0], at[:, 1]].to(device),
            hidden_MK=hidden[at[:, 0].to(device), at[:, 1].to(device) - 1],
            head=self._teacher.head,
            events=self._events,
            uld_weight=self._uld_weight,
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
    aligned = align(rows, data, tokenizer, their_tokenizer, teacher_tokens=int(context or _UNCUT))
    events = events_of(
        spelling_of(tokenizer),
        spelling_of(their_tokenizer),
        rows=(_rows(student), _rows(teacher.model)),
        ends=aligned.ends,
        unmatched=alignment.unmatched,
    )
    return AlignedTeacher(teacher, aligned, events, alignment.uld_weight)


def align(
    rows: Sequences,
    data: Sequence[Path],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    *,
    teacher_tokens: int = _UNCUT,
) -> Aligned:
    """Every document of `rows`, which were read from `data`, in both tokenizations.

    `teacher_tokens`: how many the teacher can read. Raises DataError where no row has anything in common.
    """
    ours, theirs = spelling_of(student), spelling_of(teacher)
    chats = [[row["messages"] for row in read_parquet(path, columns=("messages",))] for path in data]
    found: dict[int, AlignedRow] = {}
    ends: Counter[tuple[int, int]] = Counter()
    cut: dict[int, tuple[_Both, int]] = {}
    for name, (file, number), length in _documents(rows):
        both = _Both.of(chats[file][number], student, teacher, ours, theirs)
        ends.update(both.ends)
        cut[name] = (both, length)
    end = ends.most_common(1)[0][0] if ends else None
    for name, (both, length) in cut.items():
        found[name] = both.row((length, teacher_tokens), end, ours, theirs)
    if not any(both.spans for both, _ in cut.values()):
        raise DataError(
            "no answer is found in both the student's and the teacher's chat template",
            remedy="use a teacher whose template leaves the answer's text as it is, or objective sft",
        )
    return Aligned(found, end)


def spelling_of(tokenizer: PreTrainedTokenizerBase) -> Spelling:
    """What its tokens say. Raises CheckpointError for one whose tokens do not spell a text byte by byte."""
    vocabulary = tokenizer.get_vocab()
    spelled = bytes_of_tokens(vocabulary, tokenizer.get_added_vocab())
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
    found = Spelling(
        {index: text for index, text in spelled.items() if index not in special and text},
        {index: text for index, text in spelled.items() if index in special},
    )
    sample = [int(index) for index in tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]]
    if _SAMPLE.encode() not in b"".join(found.ordinary.get(index, b"") for index in sample):
        raise CheckpointError(
            f"the tokens of {tokenizer.name_or_path} do not spell a text byte by byte, by which texts are aligned",
            remedy="use a model with a byte-level or SentencePiece tokenizer, or objective sft",
        )
    return found


@dataclass(frozen=True)
class _Both:
    """One chat in both tokenizations, uncut: tokens, labels, and the spans of each turn in places of the tokens."""

    ids: list[int]
    labels: list[int]
    their_ids: list[int]
    spans: list[Span]
    end_spans: list[Span]

    @classmethod
    def of(
        cls,
        messages: Sequence[Message],
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        ours: Spelling,
        theirs: Spelling,
    ) -> _Both:
        ids, labels = encode_completion(student, messages, _UNCUT)
        their_ids, their_labels = encode_completion(teacher, messages, _UNCUT)
        contents = [message["content"] for message in messages if message["role"] == "assistant"]
        turns, their_turns = _turns(labels), _turns(their_labels)
        spans: list[Span] = []
        ends: list[Span] = []
        if len(turns) == len(contents) == len(their_turns):
            for (a, b), (c, d), content in zip(turns, their_turns, contents, strict=True):
                b, ended = (b - 1, True) if ids[b - 1] in ours.special else (b, False)
                d, also = (d - 1, True) if their_ids[d - 1] in theirs.special else (d, False)
                inner = spans_around(ours.of(ids[a:b]), theirs.of(their_ids[c:d]), content.strip().encode())
                spans += [Span(s.begin + a, s.end + a, s.other_begin + c, s.other_end + c) for s in inner]
                if ended and also:
                    ends.append(Span(b, b + 1, d, d + 1))
        return cls(ids, labels, their_ids, spans, ends)

    @property
    def ends(self) -> list[tuple[int, int]]:
        """The tokens at the ends of turns."""
        return [(self.ids[span.begin], self.their_ids[span.other_begin]) for span in self.end_spans]

    def row(
        self, lengths: tuple[int, int], end: tuple[int, int] | None, ours: Spelling, theirs: Spelling
    ) -> AlignedRow:
        """What is compared within the first `lengths` tokens of the student's and the teacher's."""
        kept = [span for span in self.spans if self._is_sound(span, ours, theirs)]
        kept += [span for span, pair in zip(self.end_spans, self.ends, strict=True) if pair == end]
        kept = sorted(
            span
            for span in kept
            if span.end <= lengths[0] and span.other_end <= lengths[1] and span.begin > 0 and span.other_begin > 0
        )
        number = {place: n for n, span in enumerate(kept) for place in range(span.begin, span.end)}
        scored = [place for place in range(1, lengths[0]) if self.labels[place] != IGNORED]
        places = [place for span in kept for place in range(span.other_begin, span.other_end)]
        return AlignedRow(
            self.their_ids[: places[-1] + 1 if places else 1],
            [number.get(place, -1) for place in scored],
            places,
            [n for n, span in enumerate(kept) for _ in range(span.other_begin, span.other_end)],
        )

    def _is_sound(self, span: Span, ours: Spelling, theirs: Spelling) -> bool:
        """Special tokens inside an answer are compared with nothing, for no distribution has them."""
        ids, their_ids = self.ids[span.begin : span.end], self.their_ids[span.other_begin : span.other_end]
        plain = all(i in ours.ordinary for i in ids) and all(i in theirs.ordinary for i in their_ids)
        return plain and max(len(ids), len(their_ids)) <= _LONGEST


def _rows(model: PreTrainedModel) -> int:
    """Of the head, padding included."""
    return int(model.get_output_embeddings().weight.shape[0])


def _turns(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open runs of trained tokens."""
    trained = [False, *(label != IGNORED for label in labels), False]
    edges = [place for place in range(len(labels) + 1) if trained[place] != trained[place + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _documents(rows: Sequences) -> Iterator[tuple[int, tuple[int, int], int]]:
    """(row id, place, tokens) of every document, of packed rows too."""
    for names, places, lengths in zip(rows.row_ids, rows.places, rows.segments, strict=True):
        yield from zip(names, places, lengths, strict=True)
