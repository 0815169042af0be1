"""Verdicts on answers: pure Python for instructions and comparisons, the sandbox for code, once for equal answers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from distill.recipe.generate import Isolation
from distill.sandbox.run import Job, run_many
from distill.tasks.registry import verify
from distill.tasks.types import Task, Verdict
from distill.text.code import extract_code


class Grader:
    """Grades answers of several variants; they give many of the same programs, and each is run once."""

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation
        self._known: dict[tuple[str, str], Verdict] = {}

    def grade(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[Verdict]:
        """A verdict for each text, in order."""
        code = {
            (task.id, text): Job(extract_code(text, task.entry_point), task.tests, task.entry_point)
            for task, text in zip(tasks, texts, strict=True)
            if task.kind == "code" and (task.id, text) not in self._known
        }
        if code:
            found = run_many(list(code.values()), workers=os.cpu_count() or 1, isolation=self._isolation)
            self._known.update(
                {key: Verdict(one.ok, one.reason) for key, one in zip(code, found, strict=True)},
            )
        return [
            self._known[task.id, text] if task.kind == "code" else verify(task, text)
            for task, text in zip(tasks, texts, strict=True)
        ]
