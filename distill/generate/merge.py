"""Shards into one: verify that every part is there, gather their ledgers, and make the datasets from answers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console

from distill.errors import DistillError
from distill.generate.inputs import job_inputs
from distill.generate.shards import Shard, all_shards
from distill.generate.stage import Task, conclude, make_all, require_tokens
from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.teacher.ledger import Ledger
from distill.teacher.sender import Nobody, Senders

_MOST_NAMED = 8


def merge(recipe: Recipe, run: Run, count: int, *, console: Console) -> None:
    """The datasets that an unsharded run would have made. Raises where a shard is missing, unfinished or of another
    recipe; asks no teacher."""
    require_tokens(recipe)
    conclude(recipe, run, join(recipe, run, count, console=console), console, publish=True)


def join(recipe: Recipe, run: Run, count: int, *, console: Console) -> list[str]:
    """The datasets of the recipe's jobs from their shards; what they fell short of, in words."""
    shards = all_shards(count)
    problems = [problem for found in problems_of(recipe, shards).values() for problem in found]
    if problems:
        more = f" and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise DistillError(
            f"cannot merge {count} shards: {'; '.join(problems[:_MOST_NAMED])}{more}",
            remedy=f"run `distill generate RECIPE --shard i/{count}` for these, and bring their folders here",
        )
    with Ledger(run.ledger_path) as ledger:
        for shard in shards:
            path = Run(recipe, shard=shard.folder).ledger_path
            with Ledger(path):  # held, so that nobody writes to it now; of an older version, it is brought up to date
                console.print(f"shard {shard}: {ledger.absorb(path):,} answers", highlight=False)
        todo = [Task(job, run.stage("generate", job.name), job_inputs(recipe, job)) for job in recipe.generate]
        nobody = Nobody(
            "the shards' ledgers have no answer",
            f"run `distill generate RECIPE --shard i/{count}` again: it asks what is missing; then merge",
        )
        return make_all(recipe, todo, ledger, console, base_url=lambda: None, senders=Senders(nobody=nobody))


def problems_of(recipe: Recipe, shards: Sequence[Shard]) -> dict[Shard, list[str]]:
    """What each shard lacks."""
    inputs = {job.name: job_inputs(recipe, job) for job in recipe.generate}  # once: large files take a while
    return {shard: list(_problems(recipe, shard, inputs)) for shard in shards}


def _problems(recipe: Recipe, shard: Shard, inputs: Mapping[str, dict[str, str]]) -> Iterator[str]:
    run = Run(recipe, shard=shard.folder)
    if not run.ledger_path.is_file():
        yield f"shard {shard} is not there ({run.path})"
        return
    for job in recipe.generate:
        folder = run.stage("generate", job.name)
        task = Task(job, folder, {**inputs[job.name], "shard": str(shard)}, shard)
        if task.is_done():
            continue
        manifest = task.folder.manifest()
        if manifest is None:
            yield f"shard {shard} has not finished {job.name}"
        elif manifest.inputs != task.inputs:
            changed = sorted(name for name in task.inputs if manifest.inputs.get(name) != task.inputs[name])
            yield f"shard {shard} made {job.name} from another {', '.join(changed) or 'recipe'}"
        elif manifest.metrics.get("retryable_failures"):
            failures = manifest.metrics["retryable_failures"]
            yield f"shard {shard} has {failures:,} failed requests in {job.name} that may yet succeed"
        else:
            yield f"shard {shard} lacks files of {job.name}"
