"""Tensor parallelism: one process schedules and samples, the others compute the same batches on their shares.

transformers cuts the weights (its `tp_plan`) and adds up what the shares compute, so that every process has all logits.
A process's KV cache has the blocks of all others' and in them the KV heads that its own share of the model makes. What
goes from the first process to the others is a step's batch, as numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import chain, islice

import torch
import torch.distributed as dist

from distill.engine.batch import Work
from distill.engine.sequence import Sequence
from distill.engine.types import SamplingParams

_FOREVER = timedelta(days=365)  # between two requests nothing is said


class Team:
    """The processes that share a model; to be made by all of them, once it is loaded."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_FOREVER)
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def lead(self, works: list[Work], rows: list[int]) -> None:
        """Let the others compute this step as well."""
        self._tell(encode(works, rows))

    def dismiss(self) -> None:
        """Let the others go."""
        self._tell([])

    def next_step(self) -> tuple[list[Work], list[int]] | None:
        """What the first process computes now; None once it is done."""
        size = torch.empty(1, dtype=torch.int64)
        dist.broadcast(size, 0, group=self._group)
        if not int(size):
            return None
        numbers = torch.empty(int(size), dtype=torch.int64)
        dist.broadcast(numbers, 0, group=self._group)
        return decode(numbers.tolist())

    def _tell(self, numbers: list[int]) -> None:
        dist.broadcast(torch.tensor([len(numbers)]), 0, group=self._group)
        if numbers:
            dist.broadcast(torch.tensor(numbers), 0, group=self._group)


def encode(works: list[Work], rows: list[int]) -> list[int]:
    """A step as numbers: all that packing it reads of its sequences."""
    numbers = [len(works), len(rows), *rows]
    for work in works:
        sequence, first = work.sequence, work.sequence.num_computed
        numbers += (first, sequence.num_shared, work.num_tokens, len(sequence.tables))
        numbers += sequence.token_ids[first : first + work.num_tokens]
        for table, num_dropped in zip(sequence.tables, sequence.num_dropped, strict=True):
            numbers += (num_dropped, len(table), *table)
    return numbers


def decode(numbers: list[int]) -> tuple[list[Work], list[int]]:
    """The step again, on sequences that know no more than that."""
    left = iter(numbers)
    num_works, num_rows = next(left), next(left)
    rows = list(islice(left, num_rows))
    return [_work(left) for _ in range(num_works)], rows


def _work(left: Iterator[int]) -> Work:
    first, num_shared, num_tokens, num_groups = islice(left, 4)
    sequence = Sequence(
        request_id="",
        token_ids=list(chain([0] * first, islice(left, num_tokens))),
        num_prompt=0,
        params=SamplingParams(),
        seed=0,
        max_length=0,
        stop_ids=frozenset(),
        num_computed=first,
        num_shared=num_shared,
    )
    for _ in range(num_groups):
        sequence.num_dropped.append(next(left))
        sequence.tables.append(list(islice(left, next(left))))
    return Work(sequence, num_tokens)
