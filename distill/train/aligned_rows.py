"""Chats in the tokens of two models: which spans of the answers both tokenizations delimit, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from distill.errors import CheckpointError, DataError
from distill.model.chat import IGNORED, encode_completion
from distill.records import Message, read_parquet
from distill.text.continuations import Continuations, Ids
from distill.text.spans import Span, cuts, spans_around
from distill.text.token_bytes import Spelling, bytes_of_tokens
from distill.train.batches import Sequences

UNCUT = 1 << 30
_Turn = tuple[tuple[int, int], tuple[int, int], bytes]
_LONGEST = 64  # tokens of a span on either side; longer ones are texts that hardly agree
_SAMPLE = "Hello, wörld! 12 🙂\n x"


class RowCut(NamedTuple):
    """An end of a token inside of a span or at its end: the span, the student's token in which it lies among the scored
    ones and whether that ends there, the teacher's among the compared ones, and what could stand for either."""

    span: int
    token: int
    other_token: int
    ended: bool
    alike: Ids
    other_alike: Ids

    def behind(self, spans: int, tokens: int, other_tokens: int) -> RowCut:
        """The same where so many spans and tokens come before."""
        return RowCut(self.span + spans, self.token + tokens, self.other_token + other_tokens, *self[3:])


@dataclass(frozen=True)
class AlignedRow:
    """A row in the teacher's tokens, through the last one that is compared.

    `trained`: the student's scored tokens, `spans`: of each of them the number of its span, -1 where it is in none.
    `places`: of each compared token of the teacher where it stands in `ids`, `their_spans`: its span's number.
    """

    ids: list[int]
    trained: list[int]
    spans: list[int]
    places: list[int]
    their_spans: list[int]
    cuts: list[RowCut]


@dataclass(frozen=True)
class Aligned:
    """All rows by their ids, and the tokens that end a turn, which both sides take for the same event.

    `chats`: what comes before a row's last answer; `teacher_tokens`: how many the teacher can read.
    """

    rows: Mapping[int, AlignedRow]
    ends: tuple[int, int] | None
    pair: Pair
    chats: Mapping[int, Sequence[Message]]
    teacher_tokens: int

    def shares(self) -> dict[str, float]:
        """Of the student's scored tokens: how many are compared, and how many are so one to one."""
        tokens = compared = paired = 0
        for row in self.rows.values():
            ours, theirs = Counter(span for span in row.spans if span >= 0), Counter(row.their_spans)
            tokens += len(row.spans)
            compared += ours.total()
            paired += sum(count == theirs[span] == 1 for span, count in ours.items())
        return {"compared_tokens": compared / max(1, tokens), "paired_tokens": paired / max(1, tokens)}

    def row(self, name: int, ids: list[int], labels: list[int]) -> AlignedRow:
        """The row, or that of another answer, which the student wrote in the place of its last. Padding may follow."""
        trained = [label for label in labels if label != IGNORED]
        if trained == self.rows[name].trained:
            return self.rows[name]
        end = _turns(labels)[-1][1]
        both = self.pair.read_answer(self.chats[name], ids[:end], labels[:end])
        return self.pair.row(both, self.ends, end, self.teacher_tokens)


def align(
    rows: Sequences,
    data: Sequence[Path],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    *,
    teacher_tokens: int = UNCUT,
) -> Aligned:
    """Every document of `rows`, which were read from `data`, in both tokenizations.

    `teacher_tokens`: how many the teacher can read. Of several pairs of tokens that end turns the most frequent counts.
    Raises DataError where no row has anything in common.
    """
    pair = Pair.of(student, teacher)
    read = [[row["messages"] for row in read_parquet(path, columns=("messages",))] for path in data]
    chats = {name: read[file][number] for name, (file, number), _ in _documents(rows)}
    both = {name: (pair.read(chats[name]), length) for name, _, length in _documents(rows)}
    if not any(row.spans for row, _ in both.values()):
        raise DataError(
            "no answer is found in both the student's and the teacher's chat template",
            remedy="use a teacher whose template leaves the answer's text as it is, or objective sft",
        )
    found = Counter(row.end_tokens(span) for row, _ in both.values() for span in row.end_spans)
    ends = found.most_common(1)[0][0] if found else None
    made = {name: pair.row(row, ends, length, teacher_tokens) for name, (row, length) in both.items()}
    heard = {name: _heard(chats[name], row.labels[:length]) for name, (row, length) in both.items()}
    return Aligned(made, ends, pair, heard, teacher_tokens)


def spelling_of(tokenizer: PreTrainedTokenizerBase) -> Spelling:
    """What its tokens say. Raises CheckpointError for one whose tokens do not spell a text byte by byte."""
    spelled = bytes_of_tokens(tokenizer.get_vocab(), tokenizer.get_added_vocab())
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
    """One chat in both tokenizations, uncut: tokens, labels, and spans in places of the tokens."""

    ids: list[int]
    labels: list[int]
    their_ids: list[int]
    spans: list[Span]
    end_spans: list[Span]

    def end_tokens(self, span: Span) -> tuple[int, int]:
        """The tokens of the end of a turn."""
        return self.ids[span.begin], self.their_ids[span.other_begin]


@dataclass(frozen=True)
class Pair:
    """Two tokenizers, and what their tokens say."""

    student: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase
    ours: Spelling
    theirs: Spelling
    our_continuations: Continuations
    their_continuations: Continuations

    @classmethod
    def of(cls, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> Pair:
        ours, theirs = spelling_of(student), spelling_of(teacher)
        return cls(student, teacher, ours, theirs, Continuations(ours, theirs), Continuations(theirs, ours))

    def read(self, messages: Sequence[Message]) -> _Both:
        """A chat by either's own template; no spans where these do not have the same turns."""
        ids, labels = encode_completion(self.student, messages, UNCUT)
        their_ids, their_labels = encode_completion(self.teacher, messages, UNCUT)
        contents = [message["content"].strip().encode() for message in messages if message["role"] == "assistant"]
        turns, their_turns = _turns(labels), _turns(their_labels)
        if not len(turns) == len(contents) == len(their_turns):
            return _Both(ids, labels, their_ids, [], [])
        return self._both(ids, labels, their_ids, list(zip(turns, their_turns, contents, strict=True)))

    def read_answer(self, heard: Sequence[Message], ids: list[int], labels: list[int]) -> _Both:
        """What the student answered to a chat, the end of its row, and how the teacher reads that answer.

        A special token ends what is compared, and so do bytes that are no character.
        """
        begin, end = _turns(labels)[-1]
        plain = takewhile(lambda index: index in self.ours.ordinary, ids[begin:end])
        text = _characters(b"".join(self.ours.of(list(plain))))
        answer: Message = {"role": "assistant", "content": text}
        their_ids, their_labels = encode_completion(self.teacher, [*heard, answer], UNCUT)
        theirs = _turns(their_labels)[-1:]
        return self._both(ids, labels, their_ids, [((begin, end), turn, text.strip().encode()) for turn in theirs])

    def _both(self, ids: list[int], labels: list[int], their_ids: list[int], turns: Sequence[_Turn]) -> _Both:
        """The spans of each turn (the student's tokens, the teacher's, what is said in both)."""
        spans: list[Span] = []
        ends: list[Span] = []
        for (a, b), (c, d), content in turns:
            ended, also = ids[b - 1] in self.ours.special, their_ids[d - 1] in self.theirs.special
            texts, others = self.ours.of(ids[a : b - ended]), self.theirs.of(their_ids[c : d - also])
            for span in spans_around(texts, others, content):
                spans.append(Span(span.begin + a, span.end + a, span.other_begin + c, span.other_end + c))
            if ended and also:
                ends.append(Span(b - 1, b, d - 1, d))
        return _Both(ids, labels, their_ids, spans, ends)

    def row(self, both: _Both, ends: tuple[int, int] | None, length: int, their_length: int) -> AlignedRow:
        """What is compared of a chat within the first tokens of the student's and the teacher's."""
        kept = [span for span in both.spans if self._is_sound(both, span)]
        kept += [span for span in both.end_spans if both.end_tokens(span) == ends]
        kept = sorted(span for span in kept if span.end <= length and span.other_end <= their_length)
        kept = [span for span in kept if span.begin > 0 and span.other_begin > 0]  # nothing predicts a first token
        number = {place: n for n, span in enumerate(kept) for place in range(span.begin, span.end)}
        scored = [place for place in range(1, length) if both.labels[place] != IGNORED]
        places = [place for span in kept for place in range(span.other_begin, span.other_end)]
        at, other_at = ({place: n for n, place in enumerate(found)} for found in (scored, places))
        inside = [
            cut.behind(n, at[span.begin], other_at[span.other_begin])
            for n, span in enumerate(kept)
            for cut in self._cuts(both, span)
        ]
        return AlignedRow(
            both.their_ids[: places[-1] + 1 if places else 1],
            [both.labels[place] for place in scored],
            [number.get(place, -1) for place in scored],
            places,
            [n for n, span in enumerate(kept) for _ in range(span.other_begin, span.other_end)],
            inside,
        )

    def _cuts(self, both: _Both, span: Span) -> Iterator[RowCut]:
        """The cuts of a span, tokens counted in it. A pair of tokens has one, its end, and none where neither
        vocabulary has longer tokens that begin so."""
        ids, their_ids = both.ids[span.begin : span.end], both.their_ids[span.other_begin : span.other_end]
        if ids[0] in self.ours.special:
            return
        texts, others = self.ours.of(ids), self.theirs.of(their_ids)
        if span.is_pair:
            end = (len(texts[0]),)
            alike = self.their_continuations.ids(b"", texts[0], end)
            if len(alike) > 1 or len(self.our_continuations.ids(b"", texts[0], end)) > 1:
                yield RowCut(0, 0, 0, True, (ids[0],), alike)
            return
        found = cuts(texts, others)
        ours = self.our_continuations.at(found, ids, texts, others)
        theirs = self.their_continuations.at([cut.mirrored for cut in found], their_ids, others, texts)
        for cut, our_alike, their_alike in zip(found, ours, theirs, strict=True):
            ended = cut.length == len(texts[cut.token])
            yield RowCut(0, cut.token, cut.other_token, ended, our_alike, their_alike)

    def _is_sound(self, both: _Both, span: Span) -> bool:
        """Special tokens inside an answer are compared with nothing, for no distribution has them."""
        ids, their_ids = both.ids[span.begin : span.end], both.their_ids[span.other_begin : span.other_end]
        plain = all(index in self.ours.ordinary for index in ids) and all(i in self.theirs.ordinary for i in their_ids)
        return plain and max(len(ids), len(their_ids)) <= _LONGEST


def _characters(text: bytes) -> str:
    """What comes before bytes that are no character."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start].decode()


def _heard(messages: Sequence[Message], labels: Sequence[int]) -> list[Message]:
    """What comes before the last answer of which a token is trained."""
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    return list(messages[: places[len(_turns(labels)) - 1]])


def _turns(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open runs of trained tokens."""
    trained = [False, *(label != IGNORED for label in labels), False]
    edges = [place for place in range(len(labels) + 1) if trained[place] != trained[place + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _documents(rows: Sequences) -> Iterator[tuple[int, tuple[int, int], int]]:
    """(row id, place, tokens) of every document, of packed rows too."""
    for names, places, lengths in zip(rows.row_ids, rows.places, rows.segments, strict=True):
        yield from zip(names, places, lengths, strict=True)
