"""Divergence to the teacher's distributions (kd) against cross entropy on its answers (sft), all else equal.

Same rows, optimizer steps, schedule and initialisation; the learning rate of each is the best of the same sweep, judged
on validation tasks; then several seeds of each answer the same held-out tasks, and the mean difference over prompts
(each prompt's mean over the seeds) is set against its standard error. Every training is an entry of a recipe, so an
interrupted benchmark goes on where it was.

    python -m benchmarks.kd_vs_sft --data runs/demo-full/generate-instruct/data.parquet \
        --data runs/demo-full/generate-code/data.parquet --json benchmarks/results/kd-vs-sft_cpu.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common import Row, envelope
from distill.evaluate import stage as evaluate_stage
from distill.evaluate.statistics import PairedDifference, paired_difference
from distill.recipe.schema import Recipe
from distill.records import read_parquet
from distill.runs import Run, write_atomically
from distill.train import stage as train_stage

OBJECTIVES = ("sft", "kd")
RATES = (1e-4, 3e-4, 6e-4)
EVALUATED_TOGETHER = 512  # sequences decoded together
BAR = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print it; the exit code says whether the bar is met."""
    options = _options(arguments)
    console = Console(highlight=False)
    runs = [(objective, rate, 0) for objective in OBJECTIVES for rate in options.rates]
    sweep = _done(options, "sweep", runs, seed=500, rows=options.tune)
    best = {}
    for objective in OBJECTIVES:
        scores = {rate: _accuracy(sweep, _name(objective, rate, 0)) for rate in options.rates}
        best[objective] = max(scores, key=lambda rate: scores[rate])
        console.print(f"{objective}: " + ", ".join(f"{rate:g}: {score:.3f}" for rate, score in scores.items()))
    runs = [(objective, best[objective], seed) for seed in range(1, options.seeds + 1) for objective in OBJECTIVES]
    final = _done(options, "final", runs, seed=2000, rows=options.rows)
    answers = {run: _answers(final, _name(*run)) for run in runs}
    total, by_seed = _compare(answers, best, options.seeds)
    kl = {run: _metrics(final, _name(*run))["kl"] for run in runs}
    rows = _rows(answers, best, total, by_seed, kl)
    for row in rows:
        console.print(
            f"{row.name}: {row.value:.4f} {row.unit}" + ("" if row.ok is None else f" (bar {row.bar}: {row.ok})")
        )
    if options.json:
        details = {
            "learning_rates": best,
            "swept": options.rates,
            "temperature_of_kd": options.temperature,
            "epochs": options.epochs,
            "seeds": options.seeds,
            "prompts": options.rows,
            "data": options.data,
        }
        command = "python -m benchmarks.kd_vs_sft " + " ".join(arguments or sys.argv[1:])
        document = envelope(what="kd against sft", command=command, rows=rows, details=details)
        write_atomically(Path(options.json), json.dumps(document, indent=1) + "\n")
    return 0 if all(row.ok is not False for row in rows) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="Parquet of `distill generate`; may be repeated")
    parser.add_argument("--student", default="data/student-base")
    parser.add_argument("--teacher", default="data/teacher")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--max-steps", type=int, default=None)
    parser.add_argument("--temperature", type=float, default=1.0, help="of both distributions in kd")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates of the sweep")
    parser.add_argument("--micro-batch-size", type=int, default=8, help="rows of a pass; a step has 16")
    parser.add_argument("--rows", type=int, default=2120, help="held-out tasks")
    parser.add_argument("--tune", type=int, default=424, help="validation tasks of the sweep")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--isolation", choices=("bubblewrap", "none"), default="bubblewrap")
    parser.add_argument("--output", default="runs", help="folder of the runs")
    parser.add_argument("--quick", action="store_true", help="two steps and few tasks: shows that it runs, no result")
    parser.add_argument("--json", default=None)
    options = parser.parse_args(arguments)
    if options.quick:
        options.max_steps, options.rows, options.tune, options.seeds = 2, 12, 4, 1
    return options


def _name(objective: str, rate: float, seed: int) -> str:
    return f"{objective}-{rate:.0e}-{seed}".replace("+", "")


def _done(
    options: argparse.Namespace, part: str, runs: Sequence[tuple[str, float, int]], *, seed: int, rows: int
) -> Recipe:
    """Train and evaluate every run of a part, as far as that is not done; its recipe."""
    entries = [
        {
            "name": _name(objective, rate, run_seed),
            "objective": objective,
            "init": "student",
            "data": options.data,
            "epochs": options.epochs,
            "max_steps": options.max_steps,
            "batch_size": 16,
            "micro_batch_size": options.micro_batch_size,
            "learning_rate": rate,
            "max_length": 512,
            "mixed_precision": "bf16",
            "seed": run_seed,
            **({"temperature": options.temperature} if objective == "kd" else {}),
        }
        for objective, rate, run_seed in runs
    ]
    document = {
        "name": f"kd-vs-sft-{part}",
        "output_dir": options.output,
        "teacher": {"kind": "embedded", "model": options.teacher},
        "student": {"model": options.student, "dtype": "float32"},
        "train": entries,
        "serve": {"max_batch": EVALUATED_TOGETHER},
        "evaluate": {
            "rows": rows,
            "seed": seed,
            "variants": [entry["name"] for entry in entries],
            "isolation": options.isolation,
        },
    }
    recipe = Recipe.model_validate_json(json.dumps(document))
    console = Console(highlight=False)
    train_stage.run(recipe, Run(recipe), console=console)
    evaluate_stage.run(recipe, Run(recipe), console=console)
    return recipe


def _metrics(recipe: Recipe, variant: str) -> dict[str, Any]:
    return Run(recipe).stage("evaluate", variant).require().metrics


def _answers(recipe: Recipe, variant: str) -> dict[str, float]:
    """1 or 0 for each task by its id."""
    path = Run(recipe).stage("evaluate", variant).path / "answers.parquet"
    return {row["id"]: float(row["ok"]) for row in read_parquet(path, columns=("id", "ok"))}


def _accuracy(recipe: Recipe, variant: str) -> float:
    answers = _answers(recipe, variant)
    return sum(answers.values()) / len(answers)


def _compare(
    answers: dict[tuple[str, float, int], dict[str, float]], best: dict[str, float], seeds: int
) -> tuple[PairedDifference, list[PairedDifference]]:
    """kd minus sft over the prompts: of the means over the seeds, and of each seed."""
    kd = [answers["kd", best["kd"], seed] for seed in range(1, seeds + 1)]
    sft = [answers["sft", best["sft"], seed] for seed in range(1, seeds + 1)]
    prompts = sorted(kd[0])
    means = [[sum(run[prompt] for run in runs) / seeds for prompt in prompts] for runs in (kd, sft)]
    each = [
        paired_difference([mine[prompt] for prompt in prompts], [other[prompt] for prompt in prompts])
        for mine, other in zip(kd, sft, strict=True)
    ]
    return paired_difference(*means), each


def _rows(
    answers: dict[tuple[str, float, int], dict[str, float]],
    best: dict[str, float],
    total: PairedDifference,
    by_seed: list[PairedDifference],
    kl: dict[tuple[str, float, int], float],
) -> list[Row]:
    rows = []
    for objective in OBJECTIVES:
        runs = [run for run in answers if run[0] == objective]
        accuracy = [sum(answers[run].values()) / len(answers[run]) for run in runs]
        rows.append(Row(name=f"{objective} accuracy", value=sum(accuracy) / len(accuracy), unit="share"))
        rows.append(
            Row(name=f"{objective} KL to the teacher", value=sum(kl[run] for run in runs) / len(runs), unit="nats")
        )
    rows += [Row(name=f"kd - sft, seed {i}", value=one.mean, unit="share") for i, one in enumerate(by_seed, start=1)]
    rows.append(Row(name="kd - sft", value=total.mean, unit="share"))
    ratio = total.mean / total.standard_error if total.standard_error else 0.0
    rows.append(Row(name="kd - sft over its standard error", value=ratio, unit="", bar=BAR, ok=ratio > BAR))
    return rows


if __name__ == "__main__":
    sys.exit(main())
