"""What a replay buffer does to on-policy distillation: time of a step, and quality at equal steps.

    python -m benchmarks.replay [--quick] [--steps N] [--seeds N] [--json PATH]

The student base learns from the embedded teacher: first kd on rows of `distill.tasks` for all alike, then on_policy
with reverse KL in each way, from the same start, for the same steps at the same rate, at several seeds. Reported are
process seconds a step (one thread, with the start of the training, so that other work beside counts little), reverse KL
a token on fresh answers to held-out prompts, which is what is trained, and the share of held-out instructions answered
rightly.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console

from benchmarks.common import Row, envelope, write_json
from distill.engine.runner import Engine
from distill.engine.types import EngineConfig, SamplingParams
from distill.evaluate import stage as evaluate_stage
from distill.model.chat import render
from distill.model.load import load_model, load_tokenizer
from distill.recipe.schema import Recipe
from distill.records import INSTRUCTION, write_parquet
from distill.runs import Run
from distill.tasks.registry import sample_tasks
from distill.track import read_metrics
from distill.train import stage as train_stage

TEACHER, STUDENT = "data/teacher", "data/student-base"
ANSWER_TOKENS = 48
WAYS: dict[str, dict[str, Any]] = {
    "every step answers": {},
    "replay, share 0.5": {"replay": {"rows": 128, "share": 0.5}},
    "replay, rising to 1": {"replay": {"rows": 128, "share": 1.0, "schedule": "rising"}},
}


def recipe_of(folder: Path, options: argparse.Namespace) -> Recipe:
    """The start and every way's entry at every seed."""
    common = {"data": [str(folder / "rows.parquet")], "batch_size": 8, "micro_batch_size": 4, "max_length": 256}
    common |= {"save_steps": 10**6, "logging_steps": 1}
    start = {"name": "start", "objective": "kd", "max_steps": options.start_steps, "learning_rate": 1e-3}
    own = {"objective": "on_policy", "init": "start", "max_steps": options.steps, "learning_rate": options.rate}
    entries = [
        {**own, "name": name_of(way, seed), "seed": seed, "rollout": {"max_new_tokens": ANSWER_TOKENS, **rollout}}
        for seed in range(options.seeds)
        for way, rollout in enumerate(WAYS.values())
    ]
    document = {
        "name": "replay",
        "output_dir": str(folder / "runs"),
        "teacher": {"kind": "embedded", "model": TEACHER},
        "student": {"model": STUDENT, "dtype": "float32"},
        "train": [{**common, **entry} for entry in (start, *entries)],
        "evaluate": {"rows": options.rows, "kinds": ["instruction"], "variants": [entry["name"] for entry in entries]},
    }
    return Recipe.model_validate_json(json.dumps(document))


def name_of(way: int, seed: int) -> str:
    return f"way-{way}-{seed}"


def write_rows(folder: Path, count: int) -> None:
    """Instructions of the training split, answered rightly."""
    tasks = sample_tasks(kinds=("instruction",), split="train", count=count, seed=0)
    turns = [[{"role": "user", "content": t.prompt}, {"role": "assistant", "content": t.answer}] for t in tasks]
    write_parquet(folder / "rows.parquet", [{"messages": messages} for messages in turns], INSTRUCTION)


@torch.no_grad()
def own_divergence(folder: Path, count: int) -> float:
    """Mean over the tokens of the student's answers to held-out prompts of sum Q (log Q - log P), in nats."""
    student, teacher = (load_model(path, dtype="float32", device="cpu") for path in (folder, Path(TEACHER)))
    tokenizer = load_tokenizer(folder)
    tasks = sample_tasks(kinds=("instruction",), split="values", count=count, seed=1)
    prompts = [render(tokenizer, [{"role": "user", "content": task.prompt}], True) for task in tasks]
    params = [SamplingParams(max_tokens=ANSWER_TOKENS, temperature=1.0, seed=seed) for seed in range(count)]
    answers = Engine(student, tokenizer, EngineConfig(max_batch=32)).generate(prompts, params)
    total, size = 0.0, 0
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer.token_ids]])
        places = slice(len(prompt) - 1, -1)
        q, p = (torch.log_softmax(model(ids).logits[0, places].double(), -1) for model in (student, teacher))
        total += float((q.exp() * (q - p)).sum())
        size += len(answer.token_ids)
    return total / size


def measure(folder: Path, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Of every way what each seed gave."""
    write_rows(folder, options.rows_read)
    recipe = recipe_of(folder, options)
    run, console = Run(recipe), Console(file=io.StringIO())
    train_stage.run(recipe, run, console=console, entry="start")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed in range(options.seeds):
        for number, way in enumerate(WAYS):
            name = name_of(number, seed)
            begin = time.process_time()
            train_stage.run(recipe, run, console=console, entry=name)
            seconds = (time.process_time() - begin) / options.steps
            lines = read_metrics(run.stage("train", name).path / "metrics.jsonl")
            ages = [line["replay_age"] for line in lines if "replay_age" in line]
            found[way].append(
                {
                    "step_seconds": seconds,
                    "replayed": fmean(line.get("replayed", 0.0) for line in lines),
                    "age": fmean(ages) if ages else 0.0,
                    "own_divergence": own_divergence(run.checkpoint(name), options.rows),
                }
            )
            print(way, seed, found[way][-1], flush=True)
    evaluate_stage.run(recipe, run, console=console)
    for number, way in enumerate(WAYS):
        for seed, values in enumerate(found[way]):
            metrics = run.stage("evaluate", name_of(number, seed)).require().metrics
            values |= {"accuracy": metrics["accuracy"]["value"], "kl": metrics["kl"]}
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the JSON that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start-steps", type=int, default=100)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=200, help="held-out prompts")
    parser.add_argument("--rows-read", type=int, default=1000, help="rows to learn from")
    parser.add_argument("--quick", action="store_true", help="few steps and rows, one seed: shows that it runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        options.start_steps, options.steps, options.seeds, options.rows, options.rows_read = 2, 4, 1, 12, 60
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), options)
    rows = []
    units = {"step_seconds": "s/step", "own_divergence": "nats/token", "accuracy": "share", "kl": "nats/token"}
    for way, seeds in found.items():
        for key, unit in units.items():
            mean, first = fmean(one[key] for one in seeds), fmean(one[key] for one in next(iter(found.values())))
            rows.append(Row(f"{way}: {key}", mean, unit, peer=first, ratio=mean / first if first else None))
            print(f"{rows[-1].name:40s} {mean:.4f} {unit}")
    if options.json is not None:
        numbers = {key: value for key, value in vars(options).items() if isinstance(value, int | float)}
        command = " ".join(["python -m benchmarks.replay", *arguments])
        write_json(
            options.json, envelope(what="replay", command=command, rows=rows, details={**numbers, "runs": found})
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
