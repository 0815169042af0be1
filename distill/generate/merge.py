"""Shards into one: verify that every part is there, gather their ledgers, and make the datasets from answers alone."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from distill.errors import DistillError
from distill.generate.shards import Shard, all_shards
from distill.generate.stage import Task, conclude, job_inputs, make_all, require_tokens
from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.teacher.ledger import Ledger
from distill.teacher.sender import Nobody, Senders

_MOST_NAMED = 8


def merge(recipe: Recipe, run: Run, count: int, *, console: Console) -> None:
    """The datasets that an unsharded run would have made. Raises where a shard is missing, unfinished or of another
    recipe; asks no teacher."""
    require_tokens(recipe)
    shards = all_shards(count)
    problems = [problem for shard in shards for problem in _problems(recipe, shard)]
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
        partial = make_all(recipe, todo, ledger, console, base_url=lambda: None, senders=Senders(nobody=nobody))
    conclude(recipe, run, partial, console, publish=True)


def _problems(recipe: Recipe, shard: Shard) -> Iterator[str]:
    """What a shard lacks."""
    run = Run(recipe, shard=shard.folder)
    if not run.ledger_path.is_file():
        yield f"shard {shard} is not there ({run.path})"
        return
    for job in recipe.generate:
        task = Task(job, run.stage("generate", job.name), job_inputs(recipe, job, shard), shard)
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
