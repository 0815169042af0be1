"""One training of the lab as a process of its own: `python -m benchmarks.lab.entry SPEC.json`.

The spec names the recipe's parts and the seeds, one after the other in this process; the result, with the perplexity on
the validation rows, stands beside the spec in `result.json` after each seed.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.lab.models import perplexity
from distill.recipe.schema import Recipe
from distill.runs import Run, write_atomically
from distill.train import stage as train_stage

RESULT = "result.json"


@dataclass(frozen=True)
class Spec:
    """`students`: a folder of random weights for each seed. `teacher`: a folder, "" for none."""

    name: str
    entry: dict[str, Any]
    rows: str
    validation: str
    tokenizer: str
    row_tokens: int
    teacher: str
    students: dict[str, str]
    dtype: str
    output: str

    def recipe(self, seed: str) -> Recipe:
        """One entry from random weights."""
        entry = {
            **self.entry,
            "name": f"seed-{seed}",
            "init": "student",
            "data": [self.rows],
            "max_length": self.row_tokens,
            "seed": int(seed),
        }
        document = {
            "name": "lab",
            "output_dir": self.output,
            "teacher": {"kind": "embedded", "model": self.teacher or self.students[seed]},
            "student": {"model": self.students[seed], "dtype": self.dtype},
            "train": [entry],
            "track": {"wandb": "off"},
        }
        return Recipe.model_validate_json(json.dumps(document))


def train(spec: Spec, seed: str, console: Console) -> dict[str, Any]:
    """Trains and scores; numbers of both."""
    recipe = spec.recipe(seed)
    run = Run(recipe)
    started = time.monotonic()
    train_stage.run(recipe, run, console=console)
    seconds = time.monotonic() - started
    metrics = run.stage("train", f"seed-{seed}").require().metrics
    scored = perplexity(run.checkpoint(f"seed-{seed}"), Path(spec.validation), spec.row_tokens, Path(spec.tokenizer))
    names = ("steps", "tokens", "trained_tokens", "parameters", "tokens_per_second", "train_seconds", "final_loss")
    stored = [
        json.loads(path.read_text())["metrics"]["bytes_per_token"]
        for path in sorted(run.path.glob("signals-*/manifest.json"))
    ]
    return {
        **scored,
        **{name: metrics[name] for name in names if name in metrics},
        "seconds": seconds,
        "signal_bytes_per_token": stored[0] if stored else None,
    }


def main(path: Path) -> None:
    """Every seed of the spec; what fails is written down and ends the process with 1."""
    spec = Spec(**json.loads(path.read_text()))
    console = Console(highlight=False, soft_wrap=True)
    done: dict[str, Any] = {}
    for seed in spec.students:
        done[seed] = train(spec, seed, console)
        console.print(f"{spec.name}, seed {seed}: perplexity {done[seed]['perplexity']:.3f}")
        write_atomically(path.with_name(RESULT), json.dumps({"spec": asdict(spec), "seeds": done}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
