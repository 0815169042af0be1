"""What to serve: a model's folder or hub id, or one variant of a recipe's run, with the settings that go with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.recipe.load import load_recipe
from distill.recipe.schema import Serve
from distill.runs import Run


@dataclass(frozen=True)
class Target:
    """A model, its name for clients, and the serve section: the recipe's, then what the command line changed."""

    path: str
    name: str
    settings: Serve

    def api_key(self) -> str | None:
        """The key that clients must send, from the environment."""
        variable = self.settings.api_key_env
        key = os.environ.get(variable) if variable else None
        if variable and not key:
            raise DistillError(f"the environment variable {variable} is not set", remedy="set it to the key to ask for")
        return key


def resolve(
    target: str, *, overrides: Sequence[str], variant: str | None, model_name: str | None, flags: Mapping[str, Any]
) -> Target:
    """`flags` are the serve section's keys as the command line gave them; None stands for the recipe's value."""
    found = _resolve(target, overrides=overrides, variant=variant, model_name=model_name, flags=flags)
    if flags.get("draft_tokens") is not None and found.settings.draft is None:
        raise DistillError("--draft-tokens without a draft", remedy="name the model that guesses with --draft")
    return found


def _resolve(
    target: str, *, overrides: Sequence[str], variant: str | None, model_name: str | None, flags: Mapping[str, Any]
) -> Target:
    given = {name: value for name, value in flags.items() if value is not None}
    if not target.endswith((".yaml", ".yml")):
        if variant is not None or overrides:
            raise DistillError("--variant and overrides go with a recipe", remedy="name a recipe instead of a model")
        return Target(target, model_name or target, Serve(**given))
    recipe = load_recipe(Path(target), overrides)
    variants = Run(recipe).variants()
    if not variants:
        raise DistillError(f"{target} makes no model to serve", remedy="name a model folder, or a recipe that trains")
    chosen = variant or list(variants)[-1]
    if chosen not in variants:
        raise DistillError(f"no variant '{chosen}'", remedy=f"one of {', '.join(variants)}")
    path = _made(variants, chosen, target)
    settings = recipe.serve.model_copy(update=given)
    if settings.draft in variants:
        settings = settings.model_copy(update={"draft": _made(variants, settings.draft, target)})
    return Target(path, model_name or chosen, settings)


def _made(variants: Mapping[str, Path], name: str, target: str) -> str:
    """The path of a variant that is there."""
    if name != "teacher" and not variants[name].is_dir():
        raise DistillError(
            f"{name} is not made yet: no folder {variants[name]}",
            remedy=f"`distill run {target}` first, or another variant",
        )
    return str(variants[name])


def launched_processes() -> tuple[int, int]:
    """This process's rank and how many there are, from torchrun or a launcher like it."""
    rank, size = os.environ.get("RANK"), int(os.environ.get("WORLD_SIZE", "1"))
    if rank is None or size < 2:
        raise DistillError(
            "--tensor-parallel needs several processes",
            remedy="start it by `torchrun --nproc-per-node 2 -m distill serve MODEL --tensor-parallel`",
        )
    return int(rank), size
