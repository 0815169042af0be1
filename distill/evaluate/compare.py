"""Variants against each other, prompt by prompt, from the answers on disk."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from distill.evaluate.statistics import FLAG_POINTS, is_flagged, paired_difference
from distill.recipe.schema import Recipe
from distill.records import read_parquet
from distill.runs import Run


def base_of(recipe: Recipe, name: str) -> str | None:
    """The variant that `name` was made from: a quantized one's original, a train entry's start."""
    for quantizer in recipe.quantize:
        if quantizer.name == name:
            return quantizer.of or recipe.train[-1].name
    if any(entry.name == name for entry in recipe.train):
        start = recipe.init_of(name)
        return "student-base" if start == "student" else start
    return None


def compare(recipe: Recipe, run: Run, variants: list[str]) -> dict[str, Any]:
    """Paired differences of accuracy and of KL between all variants, and the flags, written to `evaluate/`."""
    folder = run.stage("evaluate")
    inputs = {name: run.stage("evaluate", name).require().digest for name in variants}
    finished = folder.manifest()
    if finished is not None and folder.is_done(inputs):
        return finished.metrics
    scores = {name: _scores(run, name) for name in variants}
    pairs: dict[str, dict[str, Any]] = {
        mine: {
            other: {what: _paired(scores[mine][what], scores[other][what]) for what in ("accuracy", "kl")}
            for other in variants
            if other != mine
        }
        for mine in variants
    }
    bases = {name: base_of(recipe, name) for name in variants}
    flags = {q.name: _flag(q.name, bases[q.name], scores) for q in recipe.quantize if bases.get(q.name) in scores}
    folder.begin(inputs)
    metrics = {"pairs": pairs, "bases": bases, "flags": flags}
    folder.finish(recipe, inputs, metrics=metrics)
    return metrics


_Scores = dict[str, dict[str, float]]


def _scores(run: Run, name: str) -> _Scores:
    """Of each task: 1 or 0 for accuracy; and the mean KL of a token where it was measured."""
    path = run.stage("evaluate", name).path
    answers = read_parquet(path / "answers.parquet", columns=("id", "ok"))
    fidelity = read_parquet(path / "fidelity.parquet", columns=("task_id", "tokens", "kl"))
    return {
        "accuracy": {row["id"]: float(row["ok"]) for row in answers},
        "kl": {row["task_id"]: row["kl"] / row["tokens"] for row in fidelity if row["kl"] is not None},
    }


def _paired(mine: dict[str, float], other: dict[str, float]) -> dict[str, Any] | None:
    """Over the tasks that both have; None where there is none."""
    shared = [task for task in mine if task in other]
    return asdict(paired_difference([mine[t] for t in shared], [other[t] for t in shared])) if shared else None


def _flag(name: str, base: str | None, scores: dict[str, _Scores]) -> dict[str, Any]:
    assert base is not None
    mine, other = scores[name]["accuracy"], scores[base]["accuracy"]
    difference = paired_difference([mine[task] for task in mine], [other[task] for task in mine])
    return {
        "of": base,
        "points": 100 * difference.mean,
        "points_se": 100 * difference.standard_error,
        "limit": FLAG_POINTS,
        "flagged": is_flagged(difference),
    }
