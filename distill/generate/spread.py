"""Jobs whose shards workers make: what is finished is not ordered again, and the merge sees that nothing is missing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from distill.errors import DistillError, PartialError
from distill.generate import ray_tasks
from distill.generate.merge import join, problems_of
from distill.generate.orders import TOKEN, End, Order
from distill.generate.shards import Part, Shard, all_shards
from distill.generate.stage import BaseUrl, Task
from distill.recipe.schema import Recipe
from distill.runs import Run, write_atomically
from distill.teacher.ledger import Ledger
from distill.teacher.requests import teacher_label
from distill.track import METRICS, read_metrics

_PATIENCE_SECONDS = 30.0  # for workers of a killed run, which learn of its death a moment later
_SECONDS_A_LINE = 60.0


def make_spread(recipe: Recipe, run: Run, tasks: Sequence[Task], console: Console, *, base_url: BaseUrl) -> list[str]:
    """Make the jobs in turn; what they fell short of, in words. Raises PartialError where requests failed that may yet
    succeed: their job then has no dataset, but every answer is kept."""
    partial: list[str] = []
    unfinished: list[str] = []
    for task in tasks:
        job = task.job
        executor = job.executor
        assert executor is not None
        only = recipe.model_copy(update={"generate": (job,)})
        shards = all_shards(executor.shards)
        todo = [shard for shard, problems in problems_of(only, shards).items() if problems]
        if len(todo) < len(shards):
            console.print(f"generate {job.name}: {len(shards) - len(todo)} shards done before", highlight=False)
        if todo:
            _work_off(only, run, todo, console, base_url=base_url)
        problems = [f"{job.name}: {problem}" for found in problems_of(only, shards).values() for problem in found]
        unfinished += problems
        if not problems:
            partial += join(only, run, executor.shards, console=console)
    if unfinished:
        raise PartialError(
            f"less than asked for: {'; '.join([*partial, *unfinished])}",
            remedy="run again: it asks anew what may yet succeed, and nothing else",
        )
    return partial


def _work_off(recipe: Recipe, run: Run, todo: Sequence[Shard], console: Console, *, base_url: BaseUrl) -> None:
    """Have these shards of the recipe's one job made. Raises the first error that stopped one, when all have ended."""
    job = recipe.generate[0]
    assert job.executor is not None
    token = uuid.uuid4().hex
    (run.whole / "shards").mkdir(parents=True, exist_ok=True)
    write_atomically(run.whole / "shards" / TOKEN, token)
    parts = divide(recipe, run, todo)
    where = base_url()
    text = recipe.model_dump_json()
    orders = [Order(text, shard, parts[shard], where, str(Path.cwd()), token) for shard in todo]
    stopped: list[End] = []
    with _watched(console, run, job.name, todo) as tick:

        def tell(line: str) -> None:
            console.print(f"generate {job.name}: {line}", highlight=False, markup=False)

        for end in ray_tasks.carry_out_all(job.executor, orders, tell=tell, tick=tick):
            console.print(end.printed, end="", highlight=False, markup=False)
            if end.problem is not None and not end.partial:
                stopped.append(end)
    if stopped:
        first = stopped[0]
        raise DistillError(
            f"generate {job.name}: {len(stopped)} of {len(todo)} shards stopped; {first.shard}: {first.problem}",
            remedy=first.remedy,
        )


def divide(recipe: Recipe, run: Run, todo: Sequence[Shard]) -> dict[Shard, Part]:
    """What each unfinished shard may use: an equal part of the rates and of the dollars that are left.

    Every answer of every shard, also of another division, is first copied into the run's ledger, which all shards read:
    nothing is paid twice, and the dollars left are the budget less all that was ever spent.
    """
    labels = [teacher_label(teacher) if recipe.teachers else None for teacher in (recipe.teacher, *recipe.teachers)]
    spent_there: dict[str, list[float]] = {}
    with Ledger(run.ledger_path) as ledger:
        for path in sorted((run.whole / "shards").glob("*/ledger.sqlite")):
            folder = path.parent.name
            with Run(recipe, shard=folder).lock(patience_seconds=_PATIENCE_SECONDS), Ledger(path) as part:
                ledger.absorb(path)
                spent_there[folder] = [part.spent_usd(label) for label in labels]
        spent = [ledger.spent_usd(label) for label in labels]
    nothing = [0.0] * len(labels)
    parts = {}
    for shard in todo:
        budgets = {}
        for place, teacher in enumerate((recipe.teacher, *recipe.teachers)):
            if teacher.budget_usd is not None:
                left = max(0.0, teacher.budget_usd - spent[place]) / len(todo)
                budgets[teacher_label(teacher)] = spent_there.get(shard.folder, nothing)[place] + left
        parts[shard] = Part(1 / len(todo), budgets)
    return parts


@contextmanager
def _watched(console: Console, run: Run, job: str, todo: Sequence[Shard]) -> Iterator[Callable[[], None]]:
    """A function that shows how far the shards are, by their metrics: on a terminal at once, in a log once a minute."""
    folders = [Run(run.recipe, shard=shard.folder).stage("generate", job).path for shard in todo]
    told_at = time.monotonic()
    with console.status(f"generate {job}: {len(todo)} shards") as status:

        def tick() -> None:
            nonlocal told_at
            text = f"generate {job}: {progress(folders)}"
            status.update(text)
            if not console.is_terminal and time.monotonic() - told_at >= _SECONDS_A_LINE:
                console.print(text, highlight=False)
                told_at = time.monotonic()

        yield tick


def progress(folders: Sequence[Path]) -> str:
    """The sums of the last lines of shards' metrics."""
    last = []
    for folder in folders:
        lines = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else []
        last += lines[-1:]
    rows, in_flight = (sum(line[name] for line in last) for name in ("rows", "in_flight"))
    dollars = [line["spent_usd"] for line in last if "spent_usd" in line]
    cost = f", ${sum(dollars):.4f}" if dollars else ""
    return f"{len(last)} of {len(folders)} shards at work or done, {rows:,} rows, {in_flight:,} in flight{cost}"
