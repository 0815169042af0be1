"""The student before any training: its model as it is, or cut down by what calibration rows say of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from distill.errors import DataError
from distill.recipe.schema import Recipe, Student
from distill.runs import Run, digest_of, path_digest
from distill.train.processes import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill.model.importance import Progress as Report

STUDENT_BASE = "student-base"


def make_student_base(recipe: Recipe, student: Student, run: Run, processes: Processes, console: Console) -> None:
    """`train-student-base/model`: the student as training finds it, cut down from its model where asked, and beside it
    `importance.json`, by which.

    A student from scratch has none: its first entry makes the random weights itself.
    """
    if student.model is None:
        return
    folder = run.stage("train", STUDENT_BASE)
    rows = _calibration_rows(recipe, run)
    inputs = {"student": digest_of(student.model_dump(mode="json")), "weights": path_digest(student.model)}
    if student.chat_template is not None:
        inputs["chat_template"] = path_digest(student.chat_template)
    if rows is not None:
        inputs["calibration"] = rows[1]
    if processes.agree(folder.is_done(inputs)):
        if processes.is_first:
            console.print(f"{STUDENT_BASE}: done before")
        return
    if processes.is_first:
        from distill.model.calibration import Batch, calibration_batches
        from distill.model.student import make_student
        from distill.quiet import quiet

        def read_batches(tokenizer: PreTrainedTokenizerBase) -> list[Batch]:
            assert rows is not None and student.prune is not None and student.model is not None
            return calibration_batches(tokenizer, student.model, rows[0], student.prune.calibration)

        folder.begin(inputs)
        with quiet(), _bar(console) as progress:
            made = make_student(
                student,
                folder.path / "model",
                read_batches=None if rows is None else read_batches,
                progress=progress,
            )
        folder.finish(recipe, inputs, metrics=made.as_metrics())
        console.print(f"{STUDENT_BASE}: {made.summary()}")
    processes.wait()


def _calibration_rows(recipe: Recipe, run: Run) -> tuple[Path, str] | None:
    """The Parquet file on whose rows the model is measured, and the digest of its rows; None where nothing is."""
    name = recipe.calibration_of_student()
    if name is None or recipe.student is None or not recipe.student.measures:
        return None
    if any(job.name == name for job in recipe.generate):
        return run.dataset(name), run.stage("generate", name).require().digest
    if not Path(name).is_file():
        raise DataError(f"student.prune.calibration: no dataset at {name}", remedy="mend the path")
    return Path(name), path_digest(name)


@contextmanager
def _bar(console: Console) -> Iterator[Report]:
    """A bar for each thing that is measured, or where none can be drawn a line when it is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{STUDENT_BASE}: {what}", completed=done, total=total)
            if done == total and not console.is_terminal:
                console.print(f"{STUDENT_BASE}: {what} measured")

        yield show
