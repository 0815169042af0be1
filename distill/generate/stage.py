"""The generate stage: every job of a recipe, each into its folder, all over one ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill import tasks
from distill.errors import DistillError, PartialError
from distill.generate.inputs import files_of
from distill.generate.shards import Shard
from distill.recipe.generate import CodeJob, FilePrompts, InstructionJob, PreferenceJob, TaskPrompts
from distill.recipe.schema import Recipe
from distill.runs import Run, StageFolder, digest_of, file_digest, path_digest
from distill.teacher.ledger import Ledger
from distill.teacher.requests import teacher_identity
from distill.teacher.sender import Senders

if TYPE_CHECKING:
    from distill.generate.job import Finished
    from distill.teacher.panel import Panel

AnyJob = InstructionJob | PreferenceJob | CodeJob
BaseUrl = Callable[[], str | None]


def run(
    recipe: Recipe,
    run: Run,
    *,
    base_url: BaseUrl,
    console: Console,
    rows: int | None = None,
    shard: Shard | None = None,
) -> None:
    """Make every dataset that is not there yet. `rows`: only a preview of so many prompts a job, nothing is finished.
    `shard`: only this part of each, in a run folder of its own; `merge.py` joins the parts.

    `base_url()` says where the teacher is (it starts an embedded one), or None: then the recipe or the environment
    does. Raises PartialError at the end where requests failed; what was answered is written and kept.
    """
    if not recipe.generate:
        raise DistillError("the recipe has nothing to generate", remedy="add a 'generate' section")
    if rows is not None:
        with Ledger(run.ledger_path) as ledger, Senders(kv_gib=recipe.serve.kv_gib) as senders:
            for job in recipe.generate:
                asyncio.run(_preview(recipe, job, ledger, base_url(), console, rows, senders))
        return
    if shard is not None:
        _require_separable(recipe)
    todo: list[Task] = []
    for job in recipe.generate:
        task = Task(job, run.stage("generate", job.name), job_inputs(recipe, job, shard), shard)
        if task.is_done():
            console.print(f"generate {task.name}: done before", highlight=False)
        else:
            todo.append(task)
    if not todo:
        return
    elder = run.whole / run.ledger_path.name if shard is not None else None
    part = recipe if shard is None else shard.part_of(recipe)
    with Ledger(run.ledger_path, elder=elder) as ledger, Senders(kv_gib=recipe.serve.kv_gib) as senders:
        make_all(part, todo, ledger, console, base_url=base_url, senders=senders)


@dataclass(frozen=True)
class Task:
    """One job to make: where, from what, and which part of it."""

    job: AnyJob
    folder: StageFolder
    inputs: dict[str, str]
    shard: Shard | None = None

    @property
    def name(self) -> str:
        return self.job.name if self.shard is None else f"{self.job.name} {self.shard}"

    def is_done(self) -> bool:
        """Done, unless some of its requests failed in a way that may not last: those are asked again."""
        if not self.folder.is_done(self.inputs):
            return False
        manifest = self.folder.manifest()
        return manifest is not None and not manifest.metrics.get("retryable_failures")


def make_all(
    recipe: Recipe,
    todo: Sequence[Task],
    ledger: Ledger,
    console: Console,
    *,
    base_url: BaseUrl,
    senders: Senders,
) -> None:
    """Make the jobs in turn."""
    partial: list[str] = []
    for task in todo:
        task.folder.begin(task.inputs)
        finished = asyncio.run(_make(recipe, task, ledger, base_url(), console, senders))
        partial += [f"{task.name}: {shortfall}" for shortfall in _shortfalls(finished)]
    if partial:
        raise PartialError(
            f"less than asked for: {'; '.join(partial)}; the rest is written",
            remedy="see rejected.parquet for the reasons; run again to ask anew what may yet succeed",
        )


def _require_separable(recipe: Recipe) -> None:
    """Prompts that the teacher writes look at those before them: they have no parts."""
    for job in recipe.generate:
        if not isinstance(job.prompts, (FilePrompts, TaskPrompts)):
            raise DistillError(
                f"generate {job.name}: prompts of source {job.prompts.source} have no parts: each looks back",
                remedy="have them written in one run, then shard a job over that file",
            )


def job_inputs(recipe: Recipe, job: AnyJob, shard: Shard | None = None) -> dict[str, str]:
    """Everything that decides a job's dataset, or its shard's."""
    inputs = {
        **({} if shard is None else {"shard": str(shard)}),
        "job": digest_of(job.model_dump(mode="json")),
        "teacher": digest_of(teacher_identity(recipe.teacher)),
        **_answering_inputs(recipe, job),
        **{name: path_digest(path) for name, path in files_of(job).items()},
    }
    if isinstance(job.prompts, TaskPrompts):
        inputs["tasks"] = _digest_of_sources(Path(next(iter(tasks.__path__))))
    return inputs


def _answering_inputs(recipe: Recipe, job: AnyJob) -> dict[str, str]:
    if job.teachers is None:
        return {}
    known = recipe.teachers_by_label()
    return {"teachers": digest_of([teacher_identity(known[name]) for name in job.teachers.names])}


def _digest_of_sources(package: Path) -> str:
    """The task families are code: other code, other prompts."""
    return digest_of({str(path.relative_to(package)): file_digest(path) for path in sorted(package.rglob("*.py"))})


async def _make(
    recipe: Recipe, task: Task, ledger: Ledger, base_url: str | None, console: Console, senders: Senders
) -> Finished:
    # What writes datasets takes a while to import, and a finished run does not need it.
    from distill.generate.job import write_dataset

    job, folder = task.job, task.folder
    async with _panel(recipe, job, ledger, base_url, senders) as panel:
        finished = await write_dataset(job, panel, folder.path, console, shard=task.shard)
        funnel = finished.funnel
        if not funnel.rows and task.shard is None:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in funnel.dropped.most_common(4))
            raise DistillError(
                f"generate {job.name} kept none of {funnel.prompts:,} prompts ({reasons or 'there were no prompts'})",
                remedy=f"look at {folder.path / 'rejected.parquet'}, then change the job or its teacher",
            )
        metrics = finished.metrics(panel)
        folder.finish(
            recipe, task.inputs, metrics=metrics, seed=_seed(job), cost_usd=funnel.cost_usd, notes=_shortfalls(finished)
        )
        console.print(_summary(task.name, finished, panel), highlight=False)
    return finished


async def _preview(
    recipe: Recipe, job: AnyJob, ledger: Ledger, base_url: str | None, console: Console, rows: int, senders: Senders
) -> None:
    from distill.generate import preview
    from distill.generate.job import sample_dataset

    async with _panel(recipe, job, ledger, base_url, senders, online=True) as panel:
        finished, outcomes = await sample_dataset(job, panel, console, rows)
        preview.show(console, job, finished, outcomes, panel)


@asynccontextmanager
async def _panel(
    recipe: Recipe, job: AnyJob, ledger: Ledger, base_url: str | None, senders: Senders, online: bool = False
) -> AsyncIterator[Panel]:
    """The job's teachers: the recipe's own, and those that the job names. `online`: without waiting for batches."""
    from distill.teacher.client import TeacherClient
    from distill.teacher.panel import Panel

    shared = bool(recipe.teachers)
    async with AsyncExitStack() as stack:
        way = senders.open(recipe.teacher, base_url)
        main = TeacherClient(recipe.teacher, ledger, base_url=base_url, sender=way, shared=shared, online=online)
        clients = {main.label: await stack.enter_async_context(main)}
        answering = job.teachers.names if job.teachers is not None else (main.label,)
        known = recipe.teachers_by_label()
        for name in answering:
            if name not in clients:
                way = senders.open(known[name])
                client = TeacherClient(known[name], ledger, sender=way, shared=shared, online=online)
                clients[name] = await stack.enter_async_context(client)
        weights = job.teachers.weights if job.teachers is not None else None
        yield Panel(main, [clients[name] for name in answering], weights=weights)


def _seed(job: AnyJob) -> int | None:
    return None if isinstance(job.prompts, FilePrompts) else job.prompts.seed


def _shortfalls(finished: Finished) -> list[str]:
    """What the job was asked for and did not deliver, for reasons that are not its own filters."""
    funnel, total = finished.funnel, finished.total_prompts
    found = []
    if funnel.failed:
        requests = "request" if funnel.failed == 1 else "requests"
        found.append(f"{funnel.failed:,} {requests} failed ({funnel.prompts:,} prompts)")
    if total is not None and funnel.prompts < total:
        found.append(f"only {funnel.prompts:,} of {total:,} prompts could be had")
    return found


def _summary(name: str, finished: Finished, panel: Panel) -> str:
    funnel, usage = finished.funnel, panel.usage
    cost = "cost unknown" if funnel.cost_usd is None else f"${funnel.cost_usd:.4f}"
    dropped = sum(funnel.dropped.values())
    return (
        f"generate {name}: {funnel.rows:,} rows of {funnel.prompts:,} prompts ({dropped:,} dropped), "
        f"{usage.sent:,} requests sent, {usage.from_ledger:,} from the ledger, {funnel.tokens:,} tokens, {cost}, "
        f"{finished.seconds:.1f} s"
    )
