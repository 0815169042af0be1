"""A shard as an order to a worker, on this machine or another: what goes there, what is done there, what comes back."""

from __future__ import annotations

import io
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from distill.errors import DistillError, PartialError
from distill.generate import stage
from distill.generate.shards import Part, Shard
from distill.recipe.schema import Recipe
from distill.runs import Run

TOKEN = ".token"  # under shards/: whoever reads what the orderer wrote there shares its file system
_WIDTH = 200


@dataclass(frozen=True)
class Order:
    """One shard of the jobs of a recipe. No key is in it: workers read theirs from their own environment."""

    recipe: str  # JSON
    shard: Shard
    part: Part
    base_url: str | None
    folder: str  # where the recipe's relative paths begin
    token: str


@dataclass(frozen=True)
class End:
    """What became of an order: the lines that it printed, and the error that ended it. `partial`: some requests failed,
    the rest is done."""

    shard: Shard
    printed: str = ""
    problem: str | None = None
    remedy: str | None = None
    partial: bool = False


def carry_out(order: Order) -> End:
    """Make the shard, in its own folder. A user's error comes back as a value: it must survive the way."""
    out = io.StringIO()
    try:
        _make(order, Console(file=out, width=_WIDTH))
    except DistillError as error:
        partial = isinstance(error, PartialError)
        return End(order.shard, out.getvalue(), error.message, error.remedy, partial)
    return End(order.shard, out.getvalue())


def _make(order: Order, console: Console) -> None:
    recipe = Recipe.model_validate_json(order.recipe)
    try:
        os.chdir(order.folder)
        run = Run(recipe, shard=order.shard.folder)
        seen = (run.whole / "shards" / TOKEN).read_text(encoding="utf-8")
    except OSError:
        seen = ""
    if seen != order.token:
        raise DistillError(
            f"the worker on {platform.node()} does not see {Path(order.folder) / recipe.output_dir / recipe.name}",
            remedy="give output_dir and the recipe's files on a file system that all workers share, at the same paths",
        )
    with run.lock():
        stage.run(
            recipe,
            run,
            base_url=lambda: order.base_url,
            console=console,
            shard=order.shard,
            part=order.part.of(recipe),
        )
