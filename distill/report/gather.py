"""What a run says of itself: manifests, metrics and answers, as values for the page. A missing stage is None."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.recipe.schema import Recipe
from distill.records import read_parquet
from distill.runs import MANIFEST, Manifest, Run, StageFolder

Role = Literal["teacher", "base", "trained", "quantized"]


@dataclass(frozen=True)
class Variant:
    """One model of the run with all that was measured of it; None where it was not."""

    name: str
    role: Role
    method: str
    of: str | None
    evaluation: dict[str, Any] | None
    serving: dict[str, Any] | None
    parameters: int | None
    weight_bytes: float | None
    flag: dict[str, Any] | None

    @property
    def accuracy(self) -> dict[str, Any] | None:
        """correct, count, value, low, high."""
        return self.evaluation["accuracy"] if self.evaluation is not None else None

    @property
    def flagged(self) -> bool:
        return self.flag is not None and bool(self.flag["flagged"])

    @property
    def decode_alone(self) -> float | None:
        """Decode tokens/s of a single sequence."""
        single = (self.serving or {}).get("by_batch", {}).get("1")
        return number(single, "decode_tokens_per_second") if single else None

    def served(self, key: str) -> float | None:
        """A number of the serve stage."""
        return None if self.serving is None else number(self.serving, key)

    def evaluated(self, key: str) -> float | None:
        """A number of the evaluate stage."""
        return None if self.evaluation is None else number(self.evaluation, key)


@dataclass(frozen=True)
class Curve:
    """The loss of a train entry by step."""

    name: str
    objective: str
    steps: tuple[float, ...]
    losses: tuple[float, ...]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A finished generate job."""

    name: str
    kind: str
    metrics: dict[str, Any]
    cost_usd: float | None
    seconds: float


@dataclass(frozen=True)
class StageTime:
    """How long a stage took, in seconds, when it last ran."""

    stage: str
    name: str
    seconds: float


@dataclass(frozen=True)
class Gathered:
    """Everything the report shows."""

    recipe: Recipe
    variants: tuple[Variant, ...]
    curves: tuple[Curve, ...]
    jobs: tuple[Job, ...]
    times: tuple[StageTime, ...]
    pairs: dict[str, dict[str, dict[str, Any]]]
    answers: dict[str, dict[str, dict[str, Any]]]  # variant -> task id -> row
    notes: tuple[str, ...]
    manifest: Manifest | None  # the newest, for versions and revision

    def variant(self, name: str) -> Variant | None:
        return next((variant for variant in self.variants if variant.name == name), None)

    @property
    def teacher(self) -> Variant | None:
        return self.variant("teacher")

    @property
    def student(self) -> Variant | None:
        """The last trained entry that was evaluated, else the last trained one."""
        trained = [variant for variant in self.variants if variant.role == "trained"]
        return next((v for v in reversed(trained) if v.accuracy is not None), trained[-1] if trained else None)

    def paired(self, mine: str, other: str, what: str) -> dict[str, Any] | None:
        """Paired difference `mine - other` of "accuracy" or "kl" where both were evaluated."""
        return self.pairs.get(mine, {}).get(other, {}).get(what)


def gather(recipe: Recipe, run: Run) -> Gathered:
    """Read the run folder."""
    finished = {folder.name: manifest for folder in stage_folders(recipe, run) if (manifest := folder.manifest())}
    comparison = run.stage("evaluate").manifest()
    flags = comparison.metrics.get("flags", {}) if comparison else {}
    variants = tuple(_variants(recipe, run, finished, flags))
    notes = [f"{name}: {note}" for name, manifest in finished.items() for note in manifest.notes]
    return Gathered(
        recipe=recipe,
        variants=variants,
        curves=tuple(_curves(recipe, run, finished)),
        jobs=tuple(_jobs(recipe, finished)),
        times=tuple(StageTime(m.stage, m.variant or m.stage, m.seconds) for m in finished.values()),
        pairs=comparison.metrics.get("pairs", {}) if comparison else {},
        answers={variant.name: _answers(run, variant) for variant in variants if variant.evaluation is not None},
        notes=tuple(notes),
        manifest=max(finished.values(), key=lambda manifest: manifest.started_at, default=None),
    )


def stage_folders(recipe: Recipe, run: Run) -> Iterator[StageFolder]:
    """Folders of all stages of the recipe in their order, whether they exist or not."""
    for job in recipe.generate:
        yield run.stage("generate", job.name)
    if recipe.train:
        yield run.stage("train", "student-base")
    for entry in recipe.train:
        yield run.stage("train", entry.name)
    for quantizer in recipe.quantize:
        yield run.stage("quantize", quantizer.name)
    for stage in ("serve", "evaluate"):
        for name in run.variants():
            yield run.stage(stage, name)


def manifest_digests(recipe: Recipe, run: Run) -> dict[str, str]:
    """What the report depends on: the digest of every finished stage."""
    folders = [*stage_folders(recipe, run), run.stage("evaluate")]
    return {folder.name: found.digest for folder in folders if (found := folder.manifest())}


def number(metrics: dict[str, Any], key: str) -> float | None:
    """A finite number among metrics, or None."""
    value = metrics.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _variants(
    recipe: Recipe, run: Run, finished: dict[str, Manifest], flags: dict[str, dict[str, Any]]
) -> Iterator[Variant]:
    entries = {entry.name: entry for entry in recipe.train}
    quantizers = {quantizer.name: quantizer for quantizer in recipe.quantize}
    parameters: dict[str, int | None] = {}
    for name, path in run.variants().items():
        role: Role = "base"
        method, of = "before training", None
        if name == "teacher":
            role, method = "teacher", ""
        elif name in entries:
            role, method = "trained", entries[name].objective
            start = recipe.init_of(name)
            of = "student-base" if start == "student" else start
        elif name in quantizers:
            role, method = "quantized", quantizers[name].method
            of = quantizers[name].of or recipe.train[-1].name
        evaluated, served = finished.get(f"evaluate-{name}"), finished.get(f"serve-{name}")
        quantized = finished.get(f"quantize-{name}")
        evaluation = evaluated.metrics if evaluated else None
        serving = served.metrics if served else None
        own = number(evaluation, "tensor_elements") if evaluation and role != "quantized" else None
        # A packed checkpoint counts words: a quantized model has the parameters of the model it was made from.
        parameters[name] = parameters.get(of) if role == "quantized" and of else int(own) if own is not None else None
        sources = (serving, quantized.metrics if quantized else None)
        weights = next((found for s in sources if s and (found := number(s, "weight_bytes")) is not None), None)
        yield Variant(
            name=name,
            role=role,
            method=method,
            of=of,
            evaluation=evaluation,
            serving=serving,
            parameters=parameters[name],
            weight_bytes=weights if weights is not None else _files_bytes(path),
            flag=flags.get(name),
        )


def _files_bytes(folder: Path) -> float | None:
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")] if folder.is_dir() else []
    return float(sum(sizes)) if sizes else None


def _curves(recipe: Recipe, run: Run, finished: dict[str, Manifest]) -> Iterator[Curve]:
    for entry in recipe.train:
        path = run.stage("train", entry.name).path / "metrics.jsonl"
        points: dict[float, float] = {}
        for row in _json_lines(path):
            step, loss = number(row, "step"), number(row, "loss")
            if step is not None and loss is not None:
                points[step] = loss  # a resumed run writes some steps again: the later one stands
        if points:
            steps = sorted(points)
            manifest = finished.get(f"train-{entry.name}")
            yield Curve(
                name=entry.name,
                objective=entry.objective,
                steps=tuple(steps),
                losses=tuple(points[step] for step in steps),
                metrics=manifest.metrics if manifest else {},
            )


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a killed process
        if isinstance(row, dict):
            yield row


def _jobs(recipe: Recipe, finished: dict[str, Manifest]) -> Iterator[Job]:
    for job in recipe.generate:
        manifest = finished.get(f"generate-{job.name}")
        if manifest is not None:
            yield Job(job.name, job.kind, manifest.metrics, manifest.cost_usd, manifest.seconds)


def _answers(run: Run, variant: Variant) -> dict[str, dict[str, Any]]:
    path = run.stage("evaluate", variant.name).path / "answers.parquet"
    if not path.with_name(MANIFEST).is_file() or not path.is_file():
        return {}
    columns = ("id", "family", "kind", "split", "prompt", "reference", "text", "ok", "reason")
    return {row["id"]: row for row in read_parquet(path, columns=columns)}
