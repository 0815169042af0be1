"""Stored signals read ahead: while the device works on a step, a thread reads what the next batches need.

A batch takes its signal along from the collator to the loss, as a promise, so that nothing has to find it again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from distill.objectives.sparse import SparseTargets
from distill.train.forward import TeacherSignal
from distill.train.packed_signals import Packed
from distill.train.signals import StoredTeacher

SIGNAL = "signal"  # the batch's key
Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


class Coming:
    """The signal of one batch, being read."""

    def __init__(self, teacher: StoredTeacher, read: Future[Packed | SparseTargets | Tensor]) -> None:
        self._teacher, self._read = teacher, read

    def arrive(self) -> TeacherSignal | SparseTargets:
        """On the device. Raises DataError where a row is missing or damaged."""
        return self._teacher.bring(self._read.result())


def read_ahead(collate: Collate, teacher: StoredTeacher) -> Collate:
    """The collator with a batch's signal on its way."""
    reader = ThreadPoolExecutor(1, "signals")

    def collate_and_read(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(rows)
        return {**batch, SIGNAL: Coming(teacher, reader.submit(teacher.read, dict(batch)))}

    return collate_and_read
