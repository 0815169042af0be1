"""The held-out tasks every variant answers, and the version of the code that draws and verifies them."""

from __future__ import annotations

from pathlib import Path

import distill.tasks
from distill.errors import DistillError
from distill.recipe.schema import Evaluate
from distill.runs import digest_of, file_digest
from distill.tasks.registry import sample_tasks
from distill.tasks.types import Task


def held_out_tasks(section: Evaluate) -> list[Task]:
    """`rows` tasks, shared as evenly as can be by the splits and kinds, the same for every variant."""
    cells = [(split, kind) for split in section.splits for kind in section.kinds]
    if section.rows < len(cells):
        raise DistillError(
            f"evaluate.rows is {section.rows}, fewer than its {len(cells)} pairs of split and kind",
            remedy=f"ask for at least {len(cells)} rows",
        )
    tasks: list[Task] = []
    for index, (split, kind) in enumerate(cells):
        count = section.rows // len(cells) + (index < section.rows % len(cells))
        tasks += sample_tasks(kinds=(kind,), split=split, count=count, seed=section.seed)
    return tasks


def reference_tasks(tasks: list[Task], count: int) -> list[Task]:
    """`count` of the tasks, evenly spaced over their order, whose reference answers the models are scored on."""
    count = min(count, len(tasks))
    return [tasks[index * len(tasks) // count] for index in range(count)]


def tasks_version() -> str:
    """Digest of the source of `distill.tasks`: other questions or verifiers make other results."""
    folder = Path(distill.tasks.__path__[0])
    return digest_of({str(p.relative_to(folder)): file_digest(p) for p in sorted(folder.rglob("*.py"))})
