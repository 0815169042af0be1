"""The student's answers of earlier steps, kept to be trained on again, so that fewer steps have to answer."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from distill.recipe.train import OnPolicyEntry, Replay
from distill.train.processes import Processes

_FILES = "replay-*.safetensors"  # in a checkpoint, one a process


@dataclass(frozen=True)
class OwnRow:
    """A prompt with the student's answer: `ids` [tokens] int32, the answer from `start` on; `name` is the prompt's
    row id, `step` how many optimizer steps the student had done when it answered."""

    ids: npt.NDArray[np.int32]
    start: int
    name: int
    step: int


class ReplayBuffer:
    """The newest answers, first in, first out, at most `rows` over all processes; 4 bytes a token.

    As in DistiLLM (2402.03898, section 3.2) a step of the student's own is replayed as a whole or answered as a whole.
    Which ones are replayed is drawn from the seed and the step alone, with probability `share`, or in the t-th of T
    steps `share` x t / T where the schedule is rising (there with share 1). Other than there the buffer need not be
    full: the first own step is answered, and every later one may be replayed.

    Answers are kept by place, the number of their micro-batch in its step over all processes, in equal parts. A
    replayed micro-batch draws from its own place, uniformly and each answer once, by seed, step and place: so every
    answer is as likely as any other, lengths in a micro-batch stay alike, for the order of rows puts long ones first
    in a step, and the number of processes changes nothing. A process has only the places of its own.
    """

    def __init__(self, entry: OnPolicyEntry, replay: Replay, *, steps: int, processes: Processes) -> None:
        """`steps`: of the whole training. `entry` is sound (`OnPolicyEntry.replay_problem`)."""
        self._replay, self._seed, self._steps, self._processes = replay, entry.seed, steps, processes
        num_places = entry.batch_size // entry.micro_batch_size
        self._kept: dict[int, deque[OwnRow]] = {
            place: deque(maxlen=replay.rows // num_places) for place in range(num_places) if self._is_ours(place)
        }

    def is_due(self, step: int) -> bool:
        """Whether an own step that follows `step` others is replayed: as drawn, once anything is kept."""
        share = self._replay.share * ((step + 1) / self._steps if self._replay.schedule == "rising" else 1.0)
        return any(self._kept.values()) and random.Random(f"replay/{self._seed}/{step}").random() < share

    def put(self, number: int, rows: Sequence[OwnRow]) -> None:
        """Keep the rows of this process's `number`-th micro-batch of a step; the oldest make room."""
        self._kept[self._place(number)].extend(rows)

    def draw(self, number: int, count: int, step: int) -> list[OwnRow]:
        """`count` different rows for this process's `number`-th micro-batch of the step that follows `step` others."""
        place = self._place(number)
        return random.Random(f"replay/{self._seed}/{step}/{place}").sample(list(self._kept[place]), count)

    def save(self, checkpoint: Path) -> None:
        """Write what this process keeps into a checkpoint's folder."""
        rows = list(self._rows())
        tensors = {
            "ids": np.concatenate([row.ids for _, row in rows]) if rows else np.zeros(0, np.int32),
            "lengths": _column(len(row.ids) for _, row in rows),
            "places": _column(place for place, _ in rows),
            "starts": _column(row.start for _, row in rows),
            "names": _column(row.name for _, row in rows),
            "steps": _column(row.step for _, row in rows),
        }
        save_file(tensors, checkpoint / _FILES.replace("*", str(self._processes.rank)))

    def load(self, checkpoint: Path) -> None:
        """Take back what is this process's, whichever processes wrote it."""
        for kept in self._kept.values():
            kept.clear()
        for path in sorted(checkpoint.glob(_FILES)):
            tensors = load_file(path)
            columns = (tensors[name].tolist() for name in ("lengths", "places", "starts", "names", "steps"))
            end = 0
            for length, place, start, name, step in zip(*columns, strict=True):
                begin, end = end, end + length
                if self._is_ours(place):
                    self._kept[place].append(OwnRow(tensors["ids"][begin:end].copy(), start, name, step))

    def _rows(self) -> Iterator[tuple[int, OwnRow]]:
        """(place, row), of each place the oldest first."""
        for place, kept in self._kept.items():
            for row in kept:
                yield place, row

    def _place(self, number: int) -> int:
        """As accelerate deals micro-batches to processes."""
        return number * self._processes.size + self._processes.rank

    def _is_ours(self, place: int) -> bool:
        return place % self._processes.size == self._processes.rank


def _column(values: Iterable[int]) -> npt.NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64)
