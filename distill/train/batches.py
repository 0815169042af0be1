"""Rows for the trainers: tokenised once, ordered so that little is padded and every run sees the same batches."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distill.errors import DataError
from distill.model.chat import IGNORED, Preference, encode_completions, encode_preference
from distill.records import read_parquet
from distill.teacher.stored import row_id

T = TypeVar("T")
Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]
NO_ROW = -1  # in `row_ids` of a batch, behind a row's last document

# Rows are sorted by length inside groups of so many optimizer steps: enough to leave a few percent of padding, few
# enough that the order stays close to a shuffle.
STEPS_PER_GROUP = 16
_TOKENISED_AT_ONCE = 1000  # rows


@dataclass(frozen=True)
class Sequences:
    """Tokenised rows. `segments` are the lengths of the documents of a row: one, or several where rows were packed.

    `row_ids` names these documents by their tokens and labels, for stored signals to find theirs; `places` says where
    each stands: the number of its file, and its row there.
    """

    input_ids: list[list[int]]
    labels: list[list[int]]
    segments: list[list[int]]
    row_ids: list[list[int]]
    places: list[list[tuple[int, int]]]
    num_read: int
    num_dropped: int
    num_truncated: int

    def example(self, number: int) -> dict[str, Any]:
        """A row as the collator takes it."""
        return {
            "input_ids": self.input_ids[number],
            "labels": self.labels[number],
            "seq_lengths": self.segments[number],
            "row_ids": self.row_ids[number],
        }

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.input_ids]

    @property
    def trained(self) -> list[int]:
        """Tokens of each row that carry loss."""
        return [sum(label != IGNORED for label in labels) for labels in self.labels]


@dataclass(frozen=True)
class Pairs:
    """Tokenised preference pairs."""

    pairs: list[Preference]
    places: list[list[tuple[int, int]]]
    num_read: int
    num_dropped: int
    num_truncated: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of both sequences of a pair."""
        return [2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in self.pairs]

    @property
    def trained(self) -> list[int]:
        return [len(p.chosen_ids) + len(p.rejected_ids) for p in self.pairs]


def read_sequences(tokenizer: PreTrainedTokenizerBase, paths: Sequence[Path], max_length: int) -> Sequences:
    """Tokenise the `messages` of every row; one without a trained token within `max_length` is dropped."""
    ids, labels, places = [], [], []
    read = truncated = 0
    for file, path in enumerate(paths):
        chats = (row["messages"] for row in read_parquet(path, columns=("messages",)))
        # One token over the limit shows that the row was cut, without tokenising twice.
        found = (encode_completions(tokenizer, part, max_length + 1) for part in _batched(chats, _TOKENISED_AT_ONCE))
        for number, (tokens, row_labels) in enumerate(chain.from_iterable(found)):
            read += 1
            cut = len(tokens) > max_length
            tokens, row_labels = tokens[:max_length], row_labels[:max_length]
            row_labels[0] = IGNORED  # nothing precedes the first token, so nothing predicts it
            if all(label == IGNORED for label in row_labels):
                continue
            truncated += cut
            ids.append(tokens)
            labels.append(row_labels)
            places.append([(file, number)])
    _require_rows(ids, read, paths, max_length)
    names = [[row_id(*pair)] for pair in zip(ids, labels, strict=True)]
    return Sequences(ids, labels, [[len(row)] for row in ids], names, places, read, read - len(ids), truncated)


def read_pairs(tokenizer: PreTrainedTokenizerBase, paths: Sequence[Path], max_length: int) -> Pairs:
    """Tokenise `prompt`, `chosen`, `rejected`; pairs without room for a completion, or of equal ones, are dropped."""
    pairs: list[Preference] = []
    places: list[list[tuple[int, int]]] = []
    read = truncated = 0
    for file, path in enumerate(paths):
        for number, row in enumerate(read_parquet(path, columns=("prompt", "chosen", "rejected"))):
            read += 1
            pair = encode_preference(tokenizer, row["prompt"], row["chosen"], row["rejected"], max_length)
            if pair is None or pair.chosen_ids == pair.rejected_ids:
                continue
            longest = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
            truncated += longest >= max_length
            pairs.append(pair)
            places.append([(file, number)])
    _require_rows(pairs, read, paths, max_length)
    return Pairs(pairs, places, read, read - len(pairs), truncated)


def pack(rows: Sequences, max_length: int, seed: int) -> Sequences:
    """Put whole rows together into rows of at most `max_length` tokens (first fit over shuffled rows).

    Documents keep their own positions, by which attention stays inside each; none is split.
    """
    order = list(range(len(rows.input_ids)))
    random.Random(f"pack/{seed}").shuffle(order)
    bins: list[list[int]] = []
    room: list[int] = []
    open_bins: list[int] = []
    for row in order:
        length = len(rows.input_ids[row])
        place = next((b for b in open_bins if room[b] >= length), None)
        if place is None:
            place = len(bins)
            bins.append([])
            room.append(max_length)
            open_bins.append(place)
        bins[place].append(row)
        room[place] -= length
        # Looking at the last 64 open bins keeps first fit linear.
        open_bins = [b for b in open_bins[-64:] if room[b] > 1]
    return Sequences(
        [[token for row in members for token in rows.input_ids[row]] for members in bins],
        [[label for row in members for label in rows.labels[row]] for members in bins],
        [[len(rows.input_ids[row]) for row in members] for members in bins],
        [[name for row in members for name in rows.row_ids[row]] for members in bins],
        [[place for row in members for place in rows.places[row]] for members in bins],
        rows.num_read,
        rows.num_dropped,
        rows.num_truncated,
    )


def num_steps(num_rows: int, *, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps that see `epochs` times all rows; the last batch is filled up from the next epoch."""
    return max_steps or math.ceil(epochs * num_rows / batch_size)


def row_order(lengths: Sequence[int], *, batch_size: int, micro_batch_size: int, steps: int, seed: int) -> list[int]:
    """Row numbers in the order of training, `steps * batch_size` of them, the same for any number of processes.

    Epoch after epoch in a new shuffle; inside a group of steps rows are sorted into micro-batches of equal length, the
    micro-batches are shuffled over the group's steps, and lie from long to short inside a step, so that processes that
    take them in turn wait little for each other.
    """
    total = steps * batch_size
    stream: list[int] = []
    epoch = 0
    while len(stream) < total:
        rows = list(range(len(lengths)))
        random.Random(f"order/{seed}/{epoch}").shuffle(rows)
        stream += rows
        epoch += 1
    stream = stream[:total]
    order: list[int] = []
    for group, begin in enumerate(range(0, total, STEPS_PER_GROUP * batch_size)):
        rows = sorted(stream[begin : begin + STEPS_PER_GROUP * batch_size], key=lambda row: -lengths[row])
        micro = [rows[i : i + micro_batch_size] for i in range(0, len(rows), micro_batch_size)]
        random.Random(f"group/{seed}/{group}").shuffle(micro)
        per_step = batch_size // micro_batch_size
        for i in range(0, len(micro), per_step):
            for rows in sorted(micro[i : i + per_step], key=lambda rows: -lengths[rows[0]]):
                order += rows
    return order


def collator(pad_token_id: int) -> Collate:
    """Pads on the right to the longest row; `position_ids` start over at every document of a packed row.

    There is no attention mask: a causal model's real tokens never see what stands to their right, the padding's labels
    are -100, and without a mask attention takes its fast causal path. Models keep packed documents apart by the
    position ids (`transformers.masking_utils.find_packed_sequence_indices`). `row_ids` names the documents of each row.
    """

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        input_ids = torch.full((len(rows), width), pad_token_id)
        labels = torch.full((len(rows), width), IGNORED)
        position_ids = torch.arange(width).repeat(len(rows), 1)
        row_ids = torch.full((len(rows), max(len(row["row_ids"]) for row in rows)), NO_ROW)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            # by way of numpy, which reads lists seven times faster
            input_ids[index, :length] = torch.from_numpy(np.array(row["input_ids"], dtype=np.int64))
            labels[index, :length] = torch.from_numpy(np.array(row["labels"], dtype=np.int64))
            row_ids[index, : len(row["row_ids"])] = torch.tensor(row["row_ids"])
            begin = 0
            for segment in row["seq_lengths"][:-1]:
                begin += segment
                position_ids[index, begin:] = torch.arange(width - begin)
        return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids, "row_ids": row_ids}

    return collate


def numbered(rows: Sequences, order: Sequence[int], collate: Collate) -> tuple[Dataset, Collate]:
    """A dataset of row numbers in their order, and the collator that looks the rows up: the rows themselves would be
    copied into a dataset, and out of it again."""

    def pick(numbers: list[dict[str, Any]]) -> dict[str, Tensor]:
        return collate([rows.example(number["row"]) for number in numbers])

    return Dataset.from_dict({"row": list(order)}), pick


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _require_rows(rows: Sequence[object], read: int, paths: Sequence[Path], max_length: int) -> None:
    if not rows:
        names = ", ".join(str(path) for path in paths)
        raise DataError(
            f"none of the {read} rows of {names} has an answer within {max_length} tokens",
            remedy="raise max_length, or generate rows",
        )
