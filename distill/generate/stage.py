"""The generate stage: every job of a recipe, each into its folder, all over one ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill import tasks
from distill.errors import DistillError, PartialError
from distill.generate.inputs import files_of
from distill.recipe.generate import CodeJob, FilePrompts, InstructionJob, PreferenceJob, TaskPrompts
from distill.recipe.schema import Recipe
from distill.runs import Run, StageFolder, digest_of, file_digest, path_digest
from distill.teacher.ledger import Ledger
from distill.teacher.requests import teacher_identity

if TYPE_CHECKING:
    from distill.generate.job import Finished
    from distill.teacher.panel import Panel

AnyJob = InstructionJob | PreferenceJob | CodeJob
BaseUrl = Callable[[], str | None]


def run(recipe: Recipe, run: Run, *, base_url: BaseUrl, console: Console, rows: int | None = None) -> None:
    """Make every dataset that is not there yet. `rows`: only a preview of so many prompts a job, nothing is finished.

    `base_url()` says where the teacher is (it starts an embedded one), or None: then the recipe or the environment
    does. Raises PartialError at the end where requests failed; what was answered is written and kept.
    """
    if not recipe.generate:
        raise DistillError("the recipe has nothing to generate", remedy="add a 'generate' section")
    if rows is not None:
        with Ledger(run.ledger_path) as ledger:
            for job in recipe.generate:
                asyncio.run(_preview(recipe, job, ledger, base_url(), console, rows))
        return
    todo: list[tuple[AnyJob, StageFolder, dict[str, str]]] = []
    for job in recipe.generate:
        folder, inputs = run.stage("generate", job.name), job_inputs(recipe, job)
        if _is_done(folder, inputs):
            console.print(f"generate {job.name}: done before", highlight=False)
        else:
            todo.append((job, folder, inputs))
    if not todo:
        return
    partial: list[str] = []
    with Ledger(run.ledger_path) as ledger:
        for job, folder, inputs in todo:
            folder.begin(inputs)
            finished = asyncio.run(_make(recipe, job, folder, inputs, ledger, base_url(), console))
            partial += [f"{job.name}: {shortfall}" for shortfall in _shortfalls(finished)]
    if partial:
        raise PartialError(
            f"less than asked for: {'; '.join(partial)}; the rest is written",
            remedy="see rejected.parquet for the reasons; run again to ask anew what may yet succeed",
        )


def job_inputs(recipe: Recipe, job: AnyJob) -> dict[str, str]:
    """Everything that decides a job's dataset."""
    inputs = {
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


def _is_done(folder: StageFolder, inputs: dict[str, str]) -> bool:
    """Done, unless some of its requests failed in a way that may not last: those are asked again."""
    if not folder.is_done(inputs):
        return False
    manifest = folder.manifest()
    return manifest is not None and not manifest.metrics.get("retryable_failures")


def _digest_of_sources(package: Path) -> str:
    """The task families are code: other code, other prompts."""
    return digest_of({str(path.relative_to(package)): file_digest(path) for path in sorted(package.rglob("*.py"))})


async def _make(
    recipe: Recipe,
    job: AnyJob,
    folder: StageFolder,
    inputs: dict[str, str],
    ledger: Ledger,
    base_url: str | None,
    console: Console,
) -> Finished:
    # What writes datasets takes a while to import, and a finished run does not need it.
    from distill.generate.job import write_dataset

    async with _panel(recipe, job, ledger, base_url) as panel:
        finished = await write_dataset(job, panel, folder.path, console)
        funnel = finished.funnel
        if not funnel.rows:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in funnel.dropped.most_common(4))
            raise DistillError(
                f"generate {job.name} kept none of {funnel.prompts:,} prompts ({reasons or 'there were no prompts'})",
                remedy=f"look at {folder.path / 'rejected.parquet'}, then change the job or its teacher",
            )
        metrics = finished.metrics(panel)
        folder.finish(
            recipe, inputs, metrics=metrics, seed=_seed(job), cost_usd=funnel.cost_usd, notes=_shortfalls(finished)
        )
        console.print(_summary(job, finished, panel), highlight=False)
    return finished


async def _preview(
    recipe: Recipe, job: AnyJob, ledger: Ledger, base_url: str | None, console: Console, rows: int
) -> None:
    from distill.generate import preview
    from distill.generate.job import sample_dataset

    async with _panel(recipe, job, ledger, base_url) as panel:
        finished, outcomes = await sample_dataset(job, panel, console, rows)
        preview.show(console, job, finished, outcomes, panel)


@asynccontextmanager
async def _panel(recipe: Recipe, job: AnyJob, ledger: Ledger, base_url: str | None) -> AsyncIterator[Panel]:
    """The job's teachers: the recipe's own, and those that the job names."""
    from distill.teacher.client import TeacherClient
    from distill.teacher.panel import Panel

    shared = bool(recipe.teachers)
    async with AsyncExitStack() as stack:
        main = TeacherClient(recipe.teacher, ledger, base_url=base_url, shared=shared)
        clients = {main.label: await stack.enter_async_context(main)}
        answering = job.teachers.names if job.teachers is not None else (main.label,)
        known = recipe.teachers_by_label()
        for name in answering:
            if name not in clients:
                client = TeacherClient(known[name], ledger, shared=shared)
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


def _summary(job: AnyJob, finished: Finished, panel: Panel) -> str:
    funnel, usage = finished.funnel, panel.usage
    cost = "cost unknown" if funnel.cost_usd is None else f"${funnel.cost_usd:.4f}"
    dropped = sum(funnel.dropped.values())
    return (
        f"generate {job.name}: {funnel.rows:,} rows of {funnel.prompts:,} prompts ({dropped:,} dropped), "
        f"{usage.sent:,} requests sent, {usage.from_ledger:,} from the ledger, {funnel.tokens:,} tokens, {cost}, "
        f"{finished.seconds:.1f} s"
    )
