"""Is a resumed run bitwise the uninterrupted one: weights and curve, at every save point, in every way to train.

    python -m benchmarks.resume_grid [--quick] [--ways NAME ...] [--json PATH]

All objectives on chats and pairs, full weights and LoRA, one process and two on the CPU; the model and LoRA drop out,
so that the generators' states count. The processes kill themselves after the checkpoint of a step; the same command
goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.common import Row, envelope, write_json
from distill.recipe.schema import Recipe
from distill.runs import Run, file_digest
from distill.track import read_metrics
from tests.train import forks, tiny

STEPS = 7
POINTS = tuple(range(1, STEPS))
DROPOUT = 0.1


@dataclass(frozen=True)
class Way:
    """One way to train."""

    objective: str
    lora: bool
    processes: int

    def __str__(self) -> str:
        return f"{self.objective}-{'lora' if self.lora else 'full'}-{self.processes}"


OBJECTIVES = ("sft", "kd", "on_policy", "replay", "dpo", "simpo", "kto")  # replay: on_policy with a replay buffer
WAYS = tuple(Way(*values) for values in product(OBJECTIVES, (False, True), (1, 2)))


def make_world(folder: Path) -> None:
    """A model that drops out in training, and rows."""
    tiny.save_model(folder / "teacher")
    path = folder / "teacher/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_dropout": DROPOUT}))
    tiny.save_data(folder)


def recipe_of(world: Path, way: Way, name: str) -> Recipe:
    lora = {"lora": {"rank": 4, "alpha": 8.0, "dropout": DROPOUT}} if way.lora else {}
    entry: dict[str, Any] = {"name": way.objective, "objective": way.objective, "max_steps": STEPS, "save_steps": 1}
    own: dict[str, Any] = {}
    if way.objective == "on_policy":
        own = {"lmbda": 0.6, "rollout": {"max_new_tokens": 8}}
    elif way.objective == "replay":
        rollout = {"max_new_tokens": 8, "replay": {"rows": 12, "share": 0.6}}
        own = {"objective": "on_policy", "lmbda": 0.65, "rollout": rollout}
    return tiny.recipe(world, {**entry, "micro_batch_size": 2, **lora, **own}, name=name)


def train_whole(world: Path, way: Way) -> Recipe:
    """The run that nothing interrupts."""
    return _run(world, way, f"{way}-whole", ())


def train_in_parts(world: Path, way: Way, deaths: Sequence[int]) -> Recipe:
    """The run that is killed after the checkpoints of the steps `deaths`, one start after another."""
    return _run(world, way, f"{way}-{'-'.join(map(str, deaths))}", deaths)


def difference(ours: Recipe, whole: Recipe, objective: str) -> str:
    """What differs between two finished runs; "" for nothing."""
    folders = [Run(recipe).stage("train", objective).path for recipe in (ours, whole)]
    if len({file_digest(folder / "model/model.safetensors") for folder in folders}) > 1:
        return "the weights differ"
    curves = [
        [{key: value for key, value in line.items() if "second" not in key} for line in lines]
        for lines in (read_metrics(folder / "metrics.jsonl") for folder in folders)
    ]
    return "" if curves[0] == curves[1] else "the curves differ"


def train_and_die(recipe: Recipe, step: int) -> None:
    """A target: SIGKILL for itself when the checkpoint of `step` is in its place."""
    from distill.train.callbacks import Watch

    def die(_self: Watch, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Watch.on_save = die  # type: ignore[method-assign]
    forks.train(recipe)


def _run(world: Path, way: Way, name: str, deaths: Sequence[int]) -> Recipe:
    recipe = recipe_of(world, way, name)
    log = world / f"{name}.log"
    for number, step in enumerate(deaths):
        codes = forks.start(train_and_die, recipe, step, log=log, processes=way.processes).wait()
        assert -signal.SIGKILL in codes, log.read_text()  # the other process may notice before its own turn
        assert not number or f"going on from step {deaths[number - 1]}\n" in log.read_text()
    codes = forks.start(forks.train, recipe, log=log, processes=way.processes).wait()
    assert not any(codes), log.read_text()
    assert not deaths or f"going on from step {deaths[-1]}\n" in log.read_text()
    return recipe


def main(arguments: Sequence[str]) -> int:
    """Print and write the result; 1 where a resumed run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two save points of a third of the ways")
    parser.add_argument("--ways", nargs="+", choices=OBJECTIVES, default=OBJECTIVES, metavar="NAME")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    ways, points = [way for way in WAYS if way.objective in options.ways], POINTS
    if options.quick:
        ways, points = ways[::3], points[::4]
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        make_world(world)
        for way in ways:
            whole = train_whole(world, way)
            for point in points:
                resumed = train_in_parts(world, way, [point])
                found[f"{way} at step {point}"] = difference(resumed, whole, way.objective) or "bitwise equal"
            print(way, [found[f"{way} at step {point}"] for point in points], flush=True)
    equal = sum(value == "bitwise equal" for value in found.values())
    rows = [Row("resumes that are bitwise equal", equal, "resumes", bar=len(found), ok=equal == len(found))]
    if options.json is not None:
        command = " ".join(["python -m benchmarks.resume_grid", *arguments])
        write_json(options.json, envelope(what="resume grid", command=command, rows=rows, details={"grid": found}))
    return 0 if rows[0].ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
