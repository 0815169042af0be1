"""A run folder as the stages leave it, made of synthetic numbers, for the report's tests."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.evaluate.accuracy import ANSWERS, accuracy_metrics
from distill.evaluate.compare import compare
from distill.evaluate.fidelity import FIDELITY, RowFidelity, fidelity_metrics
from distill.evaluate.questions import held_out_tasks
from distill.recipe.generate import CodeJob, InstructionJob, PreferenceJob, TaskPrompts
from distill.recipe.quantize import Awq, Gptq, Int8, Nf4
from distill.recipe.schema import Evaluate, Recipe
from distill.recipe.teacher import EmbeddedTeacher, Student
from distill.recipe.train import DpoEntry, KdEntry, SftEntry
from distill.records import write_parquet
from distill.runs import Run

SKILL = {
    "teacher": 0.955,
    "student-base": 0.11,
    "sft": 0.80,
    "kd": 0.89,
    "dpo": 0.885,
    "nf4": 0.87,
    "int8": 0.885,
    "gptq": 0.875,
    "awq": 0.80,
}
WEIGHTS = {"teacher": 14.7e6, "student-base": 7.2e6, "nf4": 2.7e6, "int8": 4.2e6, "gptq": 2.4e6, "awq": 2.5e6}
SPEED = {"teacher": 410.0, "nf4": 300.0, "int8": 260.0, "gptq": 520.0, "awq": 505.0}


def recipe_of(folder: Path) -> Recipe:
    tasks = TaskPrompts(source="tasks", count=4000, kinds=("instruction",))
    return Recipe(
        name="demo",
        output_dir=str(folder),
        teacher=EmbeddedTeacher(model=str(folder / "teacher")),
        student=Student(model="data/student-base"),
        generate=(
            InstructionJob(name="instruct", kind="instruction", prompts=tasks),
            CodeJob(name="code", kind="code", prompts=TaskPrompts(source="tasks", count=2500, kinds=("code",))),
            PreferenceJob(name="prefer", kind="preference", prompts=tasks),
        ),
        train=(
            SftEntry(name="sft", objective="sft", data=("instruct", "code"), init="student"),
            KdEntry(name="kd", objective="kd", data=("instruct", "code"), init="student"),
            DpoEntry(name="dpo", objective="dpo", data=("prefer",)),
        ),
        quantize=(
            Nf4(name="nf4", method="nf4"),
            Int8(name="int8", method="int8"),
            Gptq(name="gptq", method="gptq"),
            Awq(name="awq", method="awq"),
        ),
        evaluate=Evaluate(rows=500),
    )


def make_run(folder: Path, rows: int = 500) -> tuple[Recipe, Run]:
    """The recipe and its folder with every stage finished."""
    recipe = recipe_of(folder)
    recipe = recipe.model_copy(update={"evaluate": Evaluate(rows=rows)})
    run = Run(recipe)
    _generate(recipe, run)
    _train(recipe, run)
    for quantizer in recipe.quantize:
        stage = run.stage("quantize", quantizer.name)
        stage.begin({})
        stage.finish(recipe, {}, metrics={"weight_bytes": WEIGHTS[quantizer.name], "bits_per_weight": 4.3})
    for name in SKILL:
        _serve(recipe, run, name)
    assert recipe.evaluate is not None
    tasks = held_out_tasks(recipe.evaluate)
    difficulty = random.Random(7)
    hardness = [difficulty.random() for _ in tasks]
    for name, skill in SKILL.items():
        _evaluate(recipe, run, name, skill, tasks, hardness)
    compare(recipe, run, list(SKILL))
    return recipe, run


def _generate(recipe: Recipe, run: Run) -> None:
    counts = {"instruct": (4000, 3842), "code": (2500, 2391), "prefer": (600, 288)}
    dropped = {
        "instruct": {"wrong_answer": 131, "truncated": 27},
        "code": {"failed_tests": 96, "duplicate_answer": 13},
        "prefer": {"all_right": 280, "all_wrong": 32},
    }
    for job in recipe.generate:
        stage = run.stage("generate", job.name)
        stage.begin({})
        prompts, kept = counts[job.name]
        metrics = {
            "prompts": prompts,
            "answers": prompts * job.samples,
            "rows": kept,
            "dropped": dropped[job.name],
            "prompt_tokens": prompts * 48,
            "completion_tokens": prompts * 70 * job.samples,
        }
        stage.finish(recipe, {}, metrics=metrics, cost_usd=0.0)


def _train(recipe: Recipe, run: Run) -> None:
    stage = run.stage("train", "student-base")
    stage.begin({})
    stage.finish(recipe, {}, metrics={})
    rng = random.Random(3)
    for entry, start, end in zip(recipe.train, (1.6, 0.9, 0.69), (0.19, 0.06, 0.61), strict=True):
        stage = run.stage("train", entry.name)
        stage.begin({})
        lines = [
            {
                "step": step,
                "loss": end + (start - end) * math.exp(-step / 40) * rng.uniform(0.9, 1.1),
                "learning_rate": 1e-3,
            }
            for step in range(5, 205, 5)
        ]
        (stage.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        stage.finish(
            recipe, {}, metrics={"loss": lines[-1]["loss"], "tokens": 1_200_000, "tokens_per_second": 14_300.0}
        )


def _serve(recipe: Recipe, run: Run, name: str) -> None:
    stage = run.stage("serve", name)
    stage.begin({})
    metrics = {
        "weight_bytes": WEIGHTS.get(name, WEIGHTS["student-base"]),
        "kv_bytes_per_token": 16384 if name == "teacher" else 2048,
        "decode_tokens_per_second": SPEED.get(name, 760.0),
        "prefill_tokens_per_second": SPEED.get(name, 760.0) * 14,
        "batch": 16,
        "by_batch": {"1": {"decode_tokens_per_second": SPEED.get(name, 760.0) / 6}},
    }
    stage.finish(recipe, {}, metrics=metrics)


def _evaluate(recipe: Recipe, run: Run, name: str, skill: float, tasks: list[Any], hardness: list[float]) -> None:
    stage = run.stage("evaluate", name)
    stage.begin({"model": name})
    rng = random.Random(name)
    rows = []
    for task, hard in zip(tasks, hardness, strict=True):
        ok = 0.85 * hard + 0.15 * rng.random() < skill
        wrong = task.answer[: max(4, len(task.answer) // 2)] + "…<b>&"
        rows.append(
            {
                "id": task.id,
                "family": task.family,
                "kind": task.kind,
                "split": task.split,
                "phrasing": task.phrasing,
                "prompt": task.prompt,
                "reference": task.answer,
                "text": task.answer if ok else wrong,
                "ok": ok,
                "reason": "exact match" if ok else "expected something else",
                "tokens": 40,
                "finish": "stop",
            }
        )
    write_parquet(stage.path / "answers.parquet", rows, ANSWERS)
    kl = 0.0 if name == "teacher" else 0.4 * (1 - skill) * 0.5
    fidelity = [
        RowFidelity(
            task.id,
            50,
            50 * (0.05 + kl) * rng.uniform(0.7, 1.3),
            50 * kl * rng.uniform(0.7, 1.3),
            50 if name == "teacher" else 44 + rng.randrange(6),
        )
        for task in tasks[:60]
    ]
    write_parquet(stage.path / "fidelity.parquet", [asdict(row) for row in fidelity], FIDELITY)
    parameters = 7_340_000 if name == "teacher" else 3_460_000
    metrics = {
        "rows": len(rows),
        "tensor_elements": parameters,
        "tensor_bytes": 2 * parameters,
        **accuracy_metrics(rows),
        **fidelity_metrics(fidelity),
        "fidelity_skipped": None,
    }
    if name not in ("teacher", "awq"):
        metrics |= {"accept_length": 1 + 3 * skill, "accept_length_draft_tokens": 4}
    stage.finish(recipe, {"model": name}, metrics=metrics)
