"""Several live teachers of one tokenizer: their distributions mixed, or each for the rows that are its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from distill.errors import DataError
from distill.objectives.divergences import IGNORED
from distill.objectives.mixture import MixedHead
from distill.recipe.train import Scoring
from distill.records import read_parquet
from distill.train.batches import NO_ROW, Sequences
from distill.train.forward import RoutedSignal, TeacherSignal
from distill.train.live import LiveTeacher


class MixedTeacher:
    """The mixture of teachers that all read every row."""

    def __init__(self, teachers: Sequence[LiveTeacher], weights: Sequence[float], temperature: float) -> None:
        self._teachers, self._temperature = teachers, temperature
        self._weights = tuple(weight / sum(weights) for weight in weights)

    def __call__(self, batch: Mapping[str, Tensor]) -> TeacherSignal:
        told = [teacher(batch) for teacher in self._teachers]
        heads = tuple(teacher.head for teacher in self._teachers)
        head = MixedHead(heads, self._weights, self._temperature)
        return TeacherSignal(torch.cat([signal.hidden for signal in told], -1), head)


class RoutedTeacher:
    """Each row's own teacher; `owners` says which of them, by the row's id. A packed row may have several."""

    def __init__(self, teachers: Sequence[LiveTeacher], owners: Mapping[int, int]) -> None:
        self._teachers, self._owners = teachers, owners

    def __call__(self, batch: Mapping[str, Tensor]) -> RoutedSignal:
        owner_BS = self.owners_of(batch)
        scored_BS = torch.zeros_like(owner_BS, dtype=torch.bool)
        scored_BS[:, :-1] = batch["labels"][:, 1:] != IGNORED
        parts: list[tuple[TeacherSignal, Tensor]] = []
        for number, teacher in enumerate(self._teachers):
            own_BS = scored_BS & (owner_BS == number)
            rows = own_BS.any(-1).nonzero().squeeze(-1)
            if len(rows):
                told = teacher({name: batch[name][rows] for name in ("input_ids", "position_ids")})
                parts.append(
                    (TeacherSignal(told.hidden[own_BS[rows]], told.head), own_BS.flatten().nonzero().squeeze(-1))
                )
        return RoutedSignal(tuple(parts))

    def owners_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The number of the teacher of each token [B, S]; padding counts to the document before it."""
        names = batch["row_ids"].tolist()
        numbers = torch.tensor([[self._owners[name] if name != NO_ROW else 0 for name in row] for row in names])
        document_BS = (batch["position_ids"] == 0).cumsum(-1) - 1
        return numbers.to(document_BS.device).gather(-1, document_BS)


def several_teachers(
    scoring: Scoring, teachers: Sequence[LiveTeacher], rows: Sequences, data: Sequence[Path], temperature: float
) -> MixedTeacher | RoutedTeacher:
    """The teachers, in the order of the names, as the entry uses them. Raises DataError for a row that names no one."""
    if scoring.route == "mixture":
        return MixedTeacher(teachers, scoring.weights or (1.0,) * len(teachers), temperature)
    return RoutedTeacher(teachers, owners_of(scoring, rows, data))


def owners_of(scoring: Scoring, rows: Sequences, data: Sequence[Path]) -> dict[int, int]:
    """Which of the names scores each row, by its id. Of equal rows of several teachers the first one decides."""
    columns = None
    if scoring.route == "rows":
        columns = [[row["teacher"] for row in read_parquet(path, columns=("teacher",))] for path in data]
    documents = (pair for names in zip(rows.places, rows.row_ids, strict=True) for pair in zip(*names, strict=True))
    found: dict[int, int] = {}
    for (file, number), name in sorted(documents):
        teacher = scoring.names[file] if columns is None else columns[file][number]
        if teacher not in scoring.names:
            raise DataError(
                f"row {number} of {data[file]} is of teacher {teacher!r}, which scores nothing here",
                remedy=f"add it to the entry's teachers ({', '.join(scoring.names)}), or use route: data",
            )
        found.setdefault(name, scoring.names.index(teacher))
    return found
