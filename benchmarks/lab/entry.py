"""One training of the lab, in a process of its own: a recipe's entry for each seed, and the perplexity after it."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.lab.models import perplexity, sample
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
    threads: int = 1

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


def run(spec: Spec) -> None:
    """Every seed of the spec; the results so far, with those of another run, are written after each."""
    torch.set_num_threads(spec.threads)
    console = Console(highlight=False, soft_wrap=True)
    path = Path(spec.output) / RESULT
    done: dict[str, Any] = json.loads(path.read_text())["seeds"] if path.exists() else {}
    for seed in spec.students:
        done[seed] = train(spec, seed, console)
        console.print(f"{spec.name}, seed {seed}: perplexity {done[seed]['perplexity']:.3f}")
        result = json.dumps({"spec": asdict(spec), "seeds": done}, indent=1)
        write_atomically(path, result + "\n")


def sample_and_run(spec: Spec, rows: int, batch: int) -> None:
    """The teacher writes the rows first, after the beginnings of those that the spec names."""
    out = Path(spec.output) / "sampled.parquet"
    sample(Path(spec.teacher), Path(spec.rows), out, rows=rows, tokens=spec.row_tokens, batch=batch, seed=0)
    run(replace(spec, rows=str(out)))


def start_method() -> str:
    """ "fork", which spares each training its imports, where a forked process can compute on the GPU; else "spawn"."""
    if not torch.cuda.is_available():
        return "fork"
    probe = multiprocessing.get_context("fork").Process(target=_touch_gpu)
    probe.start()
    probe.join()
    return "spawn" if probe.exitcode else "fork"


def _touch_gpu() -> None:
    torch.zeros(1, device="cuda").add_(1).item()


def in_child(
    method: str, act: Callable[..., None], log: Path, *arguments: object, gpu: int | None = None
) -> BaseProcess:
    """`act` in a process of its own, which sees one GPU or all; what it says goes to `log`.

    Where it is forked, this process must not have touched the GPU, nor started threads that compute.
    """
    process = multiprocessing.get_context(method).Process(target=_logged, args=(act, log, arguments, gpu))  # type: ignore[attr-defined]
    process.start()
    return process


def _logged(act: Callable[..., None], log: Path, arguments: tuple[object, ...], gpu: int | None) -> None:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # nothing was tokenised before the fork
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb", buffering=0) as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    with open(1, "w", buffering=1, closefd=False) as lines:  # so that what is killed has said what it said
        sys.stdout = lines
        act(*arguments)
