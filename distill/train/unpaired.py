"""Rows of kto: a prompt, an answer, and whether it is desirable; pairs are taken apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from distill.errors import DataError
from distill.model.chat import encode_preference
from distill.records import has_columns, read_parquet

UNPAIRED = ("prompt", "completion", "label")
PAIRED = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Answer:
    """A tokenised answer to a prompt, end of turn included."""

    prompt_ids: list[int]
    answer_ids: list[int]
    desirable: bool


@dataclass(frozen=True)
class Answers:
    """Tokenised rows. Those of a pair stand at the same place of their file."""

    answers: list[Answer]
    places: list[list[tuple[int, int]]]
    num_read: int
    num_dropped: int
    num_truncated: int

    @property
    def lengths(self) -> list[int]:
        return [len(answer.prompt_ids) + len(answer.answer_ids) for answer in self.answers]

    @property
    def trained(self) -> list[int]:
        return [len(answer.answer_ids) for answer in self.answers]


def read_answers(tokenizer: PreTrainedTokenizerBase, paths: Sequence[Path], max_length: int) -> Answers:
    """Tokenise `prompt`, `completion`, `label`, or both sides of `prompt`, `chosen`, `rejected`.

    Rows without room for an answer are dropped, and so are pairs of equal answers. Raises DataError where no row is
    left, or none of one kind: kto needs both.
    """
    answers: list[Answer] = []
    places: list[list[tuple[int, int]]] = []
    read = truncated = 0
    for file, path in enumerate(paths):
        columns = UNPAIRED if has_columns(path, UNPAIRED) else PAIRED
        for number, row in enumerate(read_parquet(path, columns=columns)):
            found = list(_answers_of(tokenizer, row, max_length))
            read += 1 if columns is UNPAIRED else 2
            truncated += sum(len(answer.prompt_ids) + len(answer.answer_ids) >= max_length for answer in found)
            answers += found
            places += [[(file, number)]] * len(found)
    kinds = {answer.desirable for answer in answers}
    if len(kinds) < 2:
        names = ", ".join(str(path) for path in paths)
        missing = "no desirable" if False in kinds else "no undesirable" if kinds else "no"
        raise DataError(
            f"{missing} answers of the {read} rows of {names} fit into {max_length} tokens",
            remedy="kto needs answers of both kinds: raise max_length, or add rows",
        )
    return Answers(answers, places, read, read - len(answers), truncated)


def columns_of(answers: Sequence[Answer], *, micro_batch_size: int, max_length: int) -> dict[str, list[Any]]:
    """KTOTrainer's columns of answers in the order of training.

    Its estimate of KL(policy, reference) wants answers to other prompts: in each micro-batch every prompt gets the
    answer of the row before it, the first one that of the last, cut where the two together exceed `max_length`.
    """
    mismatched: list[list[int]] = []
    for begin in range(0, len(answers), micro_batch_size):
        group = answers[begin : begin + micro_batch_size]
        for place, answer in enumerate(group):
            room = max(0, max_length - len(answer.prompt_ids))
            mismatched.append(group[place - 1].answer_ids[:room])
    return {
        "prompt_ids": [answer.prompt_ids for answer in answers],
        "completion_ids": [answer.answer_ids for answer in answers],
        "KL_completion_ids": mismatched,
        "label": [answer.desirable for answer in answers],
    }


def _answers_of(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], max_length: int) -> Iterator[Answer]:
    chosen, rejected = (row[name] if name in row else row["completion"] for name in ("chosen", "rejected"))
    pair = encode_preference(tokenizer, row["prompt"], chosen, rejected, max_length)
    if pair is None:
        return
    if "label" in row:
        yield Answer(pair.prompt_ids, pair.chosen_ids, row["label"])
    elif pair.chosen_ids != pair.rejected_ids:
        yield Answer(pair.prompt_ids, pair.chosen_ids, True)
        yield Answer(pair.prompt_ids, pair.rejected_ids, False)
