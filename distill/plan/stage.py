"""`distill plan`: what a recipe will cost, before it costs anything. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from distill.plan import show
from distill.plan.cost import (
    JobCost,
    job_cost,
    minutes_at_limits,
    optimizer_steps,
    token_counter,
    tokens_per_step,
    training_rows,
)
from distill.plan.memory import (
    DTYPE_BYTES,
    kv_bytes,
    kv_bytes_per_token,
    memory_split,
    quantized_weight_bytes,
    serving_workspace,
    training_memory,
)
from distill.plan.roofline import (
    Gpu,
    decode_model,
    decode_step,
    find_gpu,
    gpus,
    prefill_seconds,
    roofline_batch,
    roofline_batch_with_kv,
)
from distill.plan.shapes import ModelShape, ModelSize, pruned, read_size, scratch_shape
from distill.recipe.generate import Job
from distill.recipe.quantize import Qat
from distill.recipe.schema import Recipe
from distill.recipe.teacher import OpenAITeacher, Teacher
from distill.recipe.train import Entry, KdEntry, OnPolicyEntry
from distill.runs import Run, digest_of
from distill.teacher.pricing import Rates, blended, rates_of

_MODEL_FLOP_UTILISATION = 0.4  # what a well-run dense training reaches of a card's peak


def run(recipe: Recipe, run: Run, *, console: Console) -> dict[str, Any]:
    """Print the plan's tables, write `plan/manifest.json`, and return its metrics."""
    gpu = find_gpu(recipe.plan.gpu)
    notes: list[str] = []
    teacher = _size(recipe.teacher_weights(), "teacher", notes)
    student = _student(recipe, notes)
    costs = _generation(recipe, notes)
    plan = {
        "gpu": asdict(gpu),
        "generate": [asdict(cost) for cost in costs],
        "train": _training(recipe, gpu, student, teacher, {cost.name: cost for cost in costs}, notes),
        "serve": _serving(recipe, gpu, student, teacher),
    }
    show.print_plan(plan, recipe, notes, console=console)
    folder = run.stage("plan")
    inputs = {"recipe": digest_of(recipe.model_dump(mode="json"))}
    folder.begin(inputs)
    folder.finish(recipe, inputs, metrics=plan, notes=notes)
    return plan


def print_gpus(console: Console) -> None:
    """List the cards that `plan.gpu` may name."""
    show.print_gpus(gpus(), console=console)


def _size(model: str | None, what: str, notes: list[str]) -> ModelSize | None:
    if model is None:
        return None
    size = read_size(model)
    if size is None:
        notes.append(
            f"{what}: the sizes of {model} are unknown: its files are not on this machine and it is not in the table of"
            " public models; give a local folder to plan its memory"
        )
    return size


def _student(recipe: Recipe, notes: list[str]) -> ModelSize | None:
    if recipe.student is None:
        return None
    student = recipe.student
    if student.scratch is not None:
        shape = scratch_shape(student.scratch)
        return ModelSize("scratch", shape, shape.parameters, None, "the recipe")
    size = _size(student.model, "student", notes)
    if size is None or not student.cuts:
        return size
    shape = pruned(size.shape, student)
    return ModelSize(size.name, shape, shape.parameters, None, size.source)


def _generation(recipe: Recipe, notes: list[str]) -> list[JobCost]:
    if not recipe.generate:
        return []
    count_tokens, way = token_counter(Path(recipe.teacher_weights() or ".") / "tokenizer.json")
    costs = [
        job_cost(job, plan=recipe.plan, rates=_rates(recipe, job), count_tokens=count_tokens) for job in recipe.generate
    ]
    notes.append(f"generate: prompts counted by {way}; answers are plan.completion_tokens, else half of max_tokens")
    if any(cost.dollars is None and cost.requests is not None for cost in costs):
        notes.append("generate: the teacher's price is unknown, so is the cost; set teacher.price.input and .output")
    known = [cost.dollars for cost in costs if cost.dollars is not None]
    budget = recipe.teacher.budget_usd
    if budget is not None and sum(known) > budget:
        notes.append(f"generate: the estimate exceeds teacher.budget_usd of ${budget:,.2f}; the rest will not be asked")
    minutes = minutes_at_limits(
        costs,
        requests_per_minute=recipe.teacher.requests_per_minute,
        tokens_per_minute=recipe.teacher.tokens_per_minute,
    )
    if minutes is not None:
        notes.append(f"generate: at least {minutes:,.1f} minutes at the teacher's rate limits")
    return costs


def _rates(recipe: Recipe, job: Job) -> Rates | None:
    """The teacher's, or the mean of those who answer the job."""
    if job.teachers is None:
        return _rates_of(recipe.teacher)
    known, names = recipe.teachers_by_label(), job.teachers.names
    weights = job.teachers.weights or (1.0,) * len(names)
    return blended(
        [(_rates_of(known[name]), weight / sum(weights)) for name, weight in zip(names, weights, strict=True)]
    )


def _rates_of(teacher: Teacher) -> Rates | None:
    """As the teacher is asked: online, or in batches."""
    rates = rates_of(teacher)
    in_batches = isinstance(teacher, OpenAITeacher) and teacher.mode == "batch"
    return rates.in_batch() if rates is not None and in_batches else rates


def _training(
    recipe: Recipe,
    gpu: Gpu,
    student: ModelSize | None,
    teacher: ModelSize | None,
    costs: dict[str, JobCost],
    notes: list[str],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for entry in recipe.train:
        count = training_rows(entry, costs)
        steps = optimizer_steps(entry, count)
        row: dict[str, Any] = {"name": entry.name, "objective": entry.objective, "rows": count, "steps": steps}
        if student is not None and recipe.student is not None:
            scoring = _scoring(recipe, entry, teacher, notes)
            memory = training_memory(
                student.shape,
                entry,
                weights_dtype=recipe.student.dtype,
                teachers=[one.shape for one in scoring],
            )
            row |= asdict(memory) | {"total": memory.total, "fits": memory.total <= gpu.memory}
            tokens = steps * tokens_per_step(entry) if steps is not None else None
            row["tokens_at_most"] = tokens
            if tokens is not None:
                beside = (
                    isinstance(entry, KdEntry | OnPolicyEntry) and entry.signal.kind != "stored"
                )  # a stored signal costs it once
                kd_teacher = 2 * sum(one.parameters for one in scoring) if beside else 0
                if isinstance(entry, KdEntry | OnPolicyEntry) and entry.teachers and entry.teachers.route != "mixture":
                    kd_teacher //= max(1, len(scoring))  # a row is one teacher's
                flop = (6 * student.parameters + kd_teacher) * tokens
                row["gpu_hours_at_most"] = flop / (_MODEL_FLOP_UTILISATION * gpu.flops) / 3600
        rows.append(row)
    return rows


def _scoring(recipe: Recipe, entry: Entry, teacher: ModelSize | None, notes: list[str]) -> list[ModelSize]:
    """The teachers of an entry, as far as their sizes are known."""
    if not isinstance(entry, KdEntry | OnPolicyEntry) or entry.teachers is None:
        return [] if teacher is None else [teacher]
    sizes = [_size(weights, name, notes) for name, weights in recipe.scoring_weights(entry).items()]
    return [size for size in sizes if size is not None]


def _serving(recipe: Recipe, gpu: Gpu, student: ModelSize | None, teacher: ModelSize | None) -> list[dict[str, Any]]:
    """One row a variant that differs in bytes: the teacher, the student, and each quantized student."""
    value_bytes = DTYPE_BYTES[recipe.serve.dtype]
    rows = []
    if teacher is not None:
        rows.append(_served("teacher", teacher.shape, teacher.parameters * value_bytes, value_bytes, recipe, gpu))
    if student is not None:
        rows.append(_served("student", student.shape, student.parameters * value_bytes, value_bytes, recipe, gpu))
        for quantizer in recipe.quantize:
            trained = recipe.trained_grid(quantizer.of or recipe.train[-1].name)
            scheme = trained if isinstance(quantizer, Qat) else quantizer
            assert scheme is not None, "the recipe refuses qat of a student that was trained on no grid"
            weights = quantized_weight_bytes(student.shape, scheme)
            rows.append(_served(quantizer.name, student.shape, weights, value_bytes, recipe, gpu))
    return rows


def _served(name: str, shape: ModelShape, weights: float, value_bytes: int, recipe: Recipe, gpu: Gpu) -> dict[str, Any]:
    context = recipe.plan.context_tokens
    workspace = serving_workspace(
        shape, prefill_tokens=recipe.serve.prefill_tokens, batch=recipe.serve.max_batch, bytes_per_value=value_bytes
    )
    split = memory_split(
        memory=gpu.memory,
        weights=weights,
        workspace=workspace,
        kv_per_sequence=kv_bytes(shape, tokens=context, bytes_per_value=value_bytes),
    )
    cost = decode_model(shape, weight_bytes=weights, context_tokens=context, kv_bytes_per_value=value_bytes)
    balance = roofline_batch_with_kv(gpu, cost)
    batches = sorted({1, 16, split.max_batch} - {0}) if split.max_batch else []
    return {
        "name": name,
        "parameters": shape.parameters,
        "kv_bytes_per_token": kv_bytes_per_token(shape, value_bytes),
        **asdict(split),
        "kv": split.kv,
        "rest": split.rest,
        "roofline_batch": roofline_batch(gpu, weights / shape.parameters),
        "roofline_batch_with_kv": balance,
        "prefill_seconds": prefill_seconds(gpu, shape, context, weight_bytes=weights),
        "decode": [asdict(decode_step(gpu, cost, batch)) for batch in batches if batch <= split.max_batch],
    }
