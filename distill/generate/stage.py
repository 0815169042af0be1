"""The generate stage: every job of a recipe, each into its folder, all over one ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from distill import tasks
from distill.errors import DistillError, PartialError
from distill.generate.hub import PUSHED, push, require_token
from distill.generate.inputs import files_of
from distill.recipe.generate import CodeJob, FilePrompts, InstructionJob, PreferenceJob, TaskPrompts
from distill.recipe.schema import Recipe
from distill.runs import Run, StageFolder, digest_of, file_digest, path_digest
from distill.teacher.ledger import Ledger
from distill.teacher.requests import teacher_identity
from distill.track import METRICS, Tracker

if TYPE_CHECKING:
    from distill.generate.job import Finished
    from distill.teacher.client import TeacherClient

AnyJob = InstructionJob | PreferenceJob | CodeJob
BaseUrl = Callable[[], str | None]
_LOGS = (METRICS, PUSHED)


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
    for job in recipe.generate:
        if job.push is not None:
            require_token(job.push)
    partial = _make_all(recipe, run, base_url, console)
    for job in recipe.generate:
        _push(run.stage("generate", job.name), job, console)
    if partial:
        raise PartialError(
            f"less than asked for: {'; '.join(partial)}; the rest is written",
            remedy="see rejected.parquet for the reasons; run again to ask anew what may yet succeed",
        )


def _make_all(recipe: Recipe, run: Run, base_url: BaseUrl, console: Console) -> list[str]:
    """Every job that is not done; what fell short, in words."""
    todo: list[tuple[AnyJob, StageFolder, dict[str, str]]] = []
    for job in recipe.generate:
        folder, inputs = run.stage("generate", job.name), job_inputs(recipe, job)
        if _is_done(folder, inputs):
            console.print(f"generate {job.name}: done before", highlight=False)
        else:
            todo.append((job, folder, inputs))
    if not todo:
        return []
    partial: list[str] = []
    with Ledger(run.ledger_path) as ledger:
        for job, folder, inputs in todo:
            folder.begin(inputs)
            with _tracker(recipe, run, job, folder, inputs) as tracker:
                finished, metrics = asyncio.run(_make(recipe, job, folder, ledger, base_url(), console, tracker))
                tracker.summary(metrics)
                tracker.artifact(f"{recipe.name}-{job.name}", "dataset", folder.path, inputs)
            cost, notes = finished.funnel.cost_usd, _shortfalls(finished)
            folder.finish(recipe, inputs, metrics=metrics, seed=_seed(job), cost_usd=cost, notes=notes, apart=_LOGS)
            partial += [f"{job.name}: {shortfall}" for shortfall in notes]
    return partial


def _push(folder: StageFolder, job: AnyJob, console: Console) -> None:
    """Publish a finished dataset, unless exactly this was published before."""
    if job.push is None:
        return
    url = push(folder.path, job.push)
    what = "was pushed before" if url is None else f"pushed: {url}"
    console.print(f"generate {job.name}: {what}", highlight=False)


def job_inputs(recipe: Recipe, job: AnyJob) -> dict[str, str]:
    """Everything that decides a job's dataset."""
    inputs = {
        "job": digest_of(job.model_dump(mode="json", exclude={"push"})),
        "teacher": digest_of(teacher_identity(recipe.teacher)),
        **{name: path_digest(path) for name, path in files_of(job).items()},
    }
    if isinstance(job.prompts, TaskPrompts):
        inputs["tasks"] = _digest_of_sources(Path(next(iter(tasks.__path__))))
    return inputs


def _is_done(folder: StageFolder, inputs: dict[str, str]) -> bool:
    """Done, unless some of its requests failed in a way that may not last: those are asked again."""
    if not folder.is_done(inputs):
        return False
    manifest = folder.manifest()
    return manifest is not None and not manifest.metrics.get("retryable_failures")


def _digest_of_sources(package: Path) -> str:
    """The task families are code: other code, other prompts."""
    return digest_of({str(path.relative_to(package)): file_digest(path) for path in sorted(package.rglob("*.py"))})


def _tracker(recipe: Recipe, run: Run, job: AnyJob, folder: StageFolder, inputs: dict[str, str]) -> Tracker:
    return Tracker(
        folder.path,
        name=f"{recipe.name}/{folder.name}",
        run_folder=run.path,
        wandb_mode=recipe.track.wandb,
        project=recipe.track.project,
        run_id=digest_of({"recipe": recipe.name, "stage": folder.name, **inputs}),
        config={"recipe": recipe.name, "stage": folder.name, **job.model_dump(mode="json"), "digests": inputs},
    )


async def _make(
    recipe: Recipe,
    job: AnyJob,
    folder: StageFolder,
    ledger: Ledger,
    base_url: str | None,
    console: Console,
    tracker: Tracker,
) -> tuple[Finished, dict[str, Any]]:
    # The client brings the openai package, which takes a second to import and a finished run does not need.
    from distill.generate.job import write_dataset
    from distill.teacher.client import TeacherClient

    async with TeacherClient(recipe.teacher, ledger, base_url=base_url) as client:
        finished = await write_dataset(job, client, folder.path, console, tracker)
        funnel = finished.funnel
        if not funnel.rows:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in funnel.dropped.most_common(4))
            raise DistillError(
                f"generate {job.name} kept none of {funnel.prompts:,} prompts ({reasons or 'there were no prompts'})",
                remedy=f"look at {folder.path / 'rejected.parquet'}, then change the job or its teacher",
            )
        console.print(_summary(job, finished, client), highlight=False)
        return finished, finished.metrics(client)


async def _preview(
    recipe: Recipe, job: AnyJob, ledger: Ledger, base_url: str | None, console: Console, rows: int
) -> None:
    from distill.generate import preview
    from distill.generate.job import sample_dataset
    from distill.teacher.client import TeacherClient

    async with TeacherClient(recipe.teacher, ledger, base_url=base_url) as client:
        finished, made = await sample_dataset(job, client, console, rows)
        preview.show(console, job, finished, made, client)


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
    if finished.distributions is not None and finished.distributions.missing:
        found.append(f"no log probabilities came with {finished.distributions.missing:,} of {funnel.rows:,} rows")
    return found


def _summary(job: AnyJob, finished: Finished, client: TeacherClient) -> str:
    funnel, usage = finished.funnel, client.usage
    cost = "cost unknown" if funnel.cost_usd is None else f"${funnel.cost_usd:.4f}"
    dropped = sum(funnel.dropped.values())
    rates = "".join(f", {name.replace('_', ' ')} {rate:.1%}" for name, rate in funnel.rates().items())
    if finished.sifted:
        rates += f", educational value by a forest with held-out AUC {finished.sifted['auc']:.3f}"
    return (
        f"generate {job.name}: {funnel.rows:,} rows of {funnel.prompts:,} prompts ({dropped:,} dropped), "
        f"{usage.sent:,} requests sent, {usage.from_ledger:,} from the ledger, {funnel.tokens:,} tokens, {cost}, "
        f"{finished.seconds:.1f} s{rates}"
    )
