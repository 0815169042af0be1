"""The generate stage: every job of a recipe, each into its folder, all over one ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from distill.errors import DistillError, PartialError
from distill.generate.hub import PUSHED, push, require_token
from distill.generate.inputs import AnyJob, job_inputs
from distill.generate.ray_tasks import require_ray
from distill.generate.shards import Shard, require_separable
from distill.recipe.generate import FilePrompts
from distill.recipe.schema import Recipe
from distill.runs import Run, StageFolder, digest_of
from distill.teacher.ledger import Ledger
from distill.teacher.sender import Senders
from distill.track import METRICS, Tracker

if TYPE_CHECKING:
    from distill.generate.job import Finished
    from distill.teacher.panel import Panel

BaseUrl = Callable[[], str | None]
_LOGS = (METRICS, PUSHED)


def run(
    recipe: Recipe,
    run: Run,
    *,
    base_url: BaseUrl,
    console: Console,
    rows: int | None = None,
    shard: Shard | None = None,
    part: Recipe | None = None,
) -> None:
    """Make every dataset that is not there yet. `rows`: only a preview of so many prompts a job, nothing is finished.
    `shard`: only this part of each, in a run folder of its own; `merge.py` joins the parts. `part`: the recipe with the
    shard's share of rates and budgets, where that is not an equal one.

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
        require_separable(recipe)
    else:
        require_tokens(recipe)
    todo: list[Task] = []
    for job in recipe.generate:
        task = Task(job, run.stage("generate", job.name), job_inputs(recipe, job, shard), shard)
        if task.is_done():
            console.print(f"generate {task.name}: done before", highlight=False)
        else:
            todo.append(task)
    here, spread = (todo, []) if shard is not None else _by_place(todo)
    partial: list[str] = []
    if here:
        elder = run.whole / run.ledger_path.name if shard is not None else None
        part = part or (recipe if shard is None else shard.part_of(recipe))
        with Ledger(run.ledger_path, elder=elder) as ledger, Senders(kv_gib=recipe.serve.kv_gib) as senders:
            partial += make_all(part, here, ledger, console, base_url=base_url, senders=senders)
    if spread:
        from distill.generate.spread import make_spread  # it orders from workers what this module makes

        partial += make_spread(recipe, run, spread, console, base_url=base_url)
    conclude(recipe, run, partial, console, publish=shard is None)


def _by_place(todo: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """Those to make in this process, and those of a cluster, which must be within reach before anything is paid."""
    spread = [task for task in todo if task.job.executor is not None]
    if spread:
        require_ray()
    return [task for task in todo if task.job.executor is None], spread


def require_tokens(recipe: Recipe) -> None:
    """Raise where a job is to be published and nothing says with which right: better before the work than after it."""
    for job in recipe.generate:
        if job.push is not None:
            require_token(job.push)


def conclude(recipe: Recipe, run: Run, partial: Sequence[str], console: Console, *, publish: bool) -> None:
    """Publish what is finished, where asked, and raise PartialError where something fell short."""
    for job in recipe.generate if publish else ():
        if job.push is None:
            continue
        url = push(run.stage("generate", job.name).path, job.push)
        what = "was pushed before" if url is None else f"pushed: {url}"
        console.print(f"generate {job.name}: {what}", highlight=False)
    if partial:
        raise PartialError(
            f"less than asked for: {'; '.join(partial)}; the rest is written",
            remedy="see rejected.parquet for the reasons; run again to ask anew what may yet succeed",
        )


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
) -> list[str]:
    """Make the jobs in turn; what fell short, in words."""
    partial: list[str] = []
    for task in todo:
        job, folder, inputs = task.job, task.folder, task.inputs
        folder.begin(inputs)
        with _tracker(recipe, task) as tracker:
            finished, metrics = asyncio.run(_make(recipe, task, ledger, base_url(), console, senders, tracker))
            tracker.summary(metrics)
            tracker.artifact(f"{recipe.name}-{job.name}", "dataset", folder.path, inputs)
        cost, notes = finished.funnel.cost_usd, _shortfalls(finished)
        folder.finish(recipe, inputs, metrics=metrics, seed=_seed(job), cost_usd=cost, notes=notes, apart=_LOGS)
        partial += [f"{task.name}: {shortfall}" for shortfall in notes]
    return partial


def _tracker(recipe: Recipe, task: Task) -> Tracker:
    folder = task.folder
    return Tracker(
        folder.path,
        name=f"{recipe.name}/{folder.name}" + ("" if task.shard is None else f" {task.shard}"),
        run_folder=folder.path.parent,
        wandb_mode=recipe.track.wandb,
        project=recipe.track.project,
        run_id=digest_of({"recipe": recipe.name, "stage": folder.name, **task.inputs}),
        config={
            "recipe": recipe.name,
            "stage": folder.name,
            **task.job.model_dump(mode="json"),
            "digests": task.inputs,
        },
    )


async def _make(
    recipe: Recipe,
    task: Task,
    ledger: Ledger,
    base_url: str | None,
    console: Console,
    senders: Senders,
    tracker: Tracker,
) -> tuple[Finished, dict[str, Any]]:
    # What writes datasets takes a while to import, and a finished run does not need it.
    from distill.generate.job import write_dataset

    job, folder = task.job, task.folder
    async with _panel(recipe, job, ledger, base_url, senders) as panel:
        finished = await write_dataset(job, panel, folder.path, console, tracker, shard=task.shard)
        funnel = finished.funnel
        if not funnel.rows and task.shard is None:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in funnel.dropped.most_common(4))
            raise DistillError(
                f"generate {job.name} kept none of {funnel.prompts:,} prompts ({reasons or 'there were no prompts'})",
                remedy=f"look at {folder.path / 'rejected.parquet'}, then change the job or its teacher",
            )
        console.print(_summary(task.name, finished, panel), highlight=False)
        return finished, finished.metrics(panel)


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
    if finished.distributions is not None and finished.distributions.missing:
        found.append(f"no log probabilities came with {finished.distributions.missing:,} of {funnel.rows:,} rows")
    return found


def _summary(name: str, finished: Finished, panel: Panel) -> str:
    funnel, usage = finished.funnel, panel.usage
    cost = "cost unknown" if funnel.cost_usd is None else f"${funnel.cost_usd:.4f}"
    dropped = sum(funnel.dropped.values())
    rates = "".join(f", {name.replace('_', ' ')} {rate:.1%}" for name, rate in funnel.rates().items())
    if finished.sifted:
        rates += f", educational value by a forest with held-out AUC {finished.sifted['auc']:.3f}"
    return (
        f"generate {name}: {funnel.rows:,} rows of {funnel.prompts:,} prompts ({dropped:,} dropped), "
        f"{usage.sent:,} requests sent, {usage.from_ledger:,} from the ledger, {funnel.tokens:,} tokens, {cost}, "
        f"{finished.seconds:.1f} s{rates}"
    )
