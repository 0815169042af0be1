"""Questions are shared evenly, the same every time, and their version follows the source."""

from __future__ import annotations

from collections import Counter

import pytest

from distill.errors import DistillError
from distill.evaluate.questions import held_out_tasks, reference_tasks, tasks_version
from distill.recipe.schema import Evaluate


def test_rows_are_shared_by_splits_and_kinds() -> None:
    tasks = held_out_tasks(Evaluate(rows=42, kinds=("instruction", "code"), splits=("values", "phrasings")))
    assert sorted(Counter((t.split, t.kind) for t in tasks).values()) == [10, 10, 11, 11]
    assert len({t.id for t in tasks}) == 42
    assert [t.id for t in tasks] == [t.id for t in held_out_tasks(Evaluate(rows=42))]
    assert [t.id for t in tasks] != [t.id for t in held_out_tasks(Evaluate(rows=42, seed=3))]


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DistillError, match="fewer than its 4 pairs"):
        held_out_tasks(Evaluate(rows=3))


def test_reference_tasks_are_spread() -> None:
    tasks = held_out_tasks(Evaluate(rows=40))
    chosen = reference_tasks(tasks, 8)
    assert [tasks.index(t) for t in chosen] == [0, 5, 10, 15, 20, 25, 30, 35]
    assert reference_tasks(tasks, 100) == tasks


def test_version_is_stable() -> None:
    assert tasks_version() == tasks_version() and len(tasks_version()) == 16
