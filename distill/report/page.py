"""The page: everything gathered, formatted, and put into the template."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from distill.report import charts
from distill.report.charts import Bar, FamilyRow, Point
from distill.report.findings import findings, kept_share
from distill.report.format import bytes_text, dollars, duration, percent, quantity, signed
from distill.report.gather import Gathered, Job, Variant, number
from distill.report.samples import choose_samples, outcome_shares

TEMPLATE = Path(__file__).with_name("template.html")
_CSS = {"teacher": "teacher", "base": "base", "trained": "trained", "quantized": "quantized"}


@dataclass(frozen=True)
class Tile:
    """A headline number: what it is, the number, and a line of context."""

    label: str
    value: str
    context: str


def render_page(run: Gathered) -> str:
    """The whole report as one HTML text without a reference to anything outside it."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": bytes_text,
        "dollars": dollars,
        "duration": duration,
        "percent": percent,
        "quantity": quantity,
        "signed": signed,
    }
    kinds = list(dict.fromkeys(kind for v in run.variants if v.evaluation for kind in v.evaluation["by_kind"]))
    cells = list(dict.fromkeys(cell for v in run.variants if v.evaluation for cell in v.evaluation["by_kind_split"]))
    return environment.get_template(TEMPLATE.name).render(
        run=run,
        title=run.recipe.report.title or f"Distillation report: {run.recipe.name}",
        headline=headline(run),
        tiles=tiles(run),
        findings=findings(run),
        kinds=kinds,
        batch=next((int(v.serving["batch"]) for v in run.variants if v.serving and "batch" in v.serving), None),
        cells=cells,
        accept_tokens=next((int(n) for v in run.variants if (n := v.evaluated("accept_length_draft_tokens"))), None),
        bytes_plot=bytes_plot(run),
        speed_plot=speed_plot(run),
        curves=[(curve, charts.training_curve(curve.name, curve.steps, curve.losses)) for curve in run.curves],
        families=family_panels(run),
        samples=choose_samples(run, run.recipe.report.samples),
        shares=outcome_shares(run),
        funnels=[funnel(job) for job in run.jobs],
        total_cost=total_cost(run.jobs),
        times=time_chart(run),
        seconds=sum(stage.seconds for stage in run.times),
        recipe_json=json.dumps(run.recipe.model_dump(mode="json", exclude_defaults=True), indent=2, ensure_ascii=False),
        written=time.strftime("%d %B %Y, %H:%M", time.localtime()),
    )


def headline(run: Gathered) -> str:
    """One sentence: what the student keeps, and what it costs less."""
    student, teacher, kept = run.student, run.teacher, kept_share(run)
    if student is None:
        return "No student was trained in this run."
    if teacher is None or kept is None:
        accuracy = percent(student.accuracy["value"]) if student.accuracy else "an accuracy that was not measured"
        return f"{student.name} reaches {accuracy} on held-out tasks; there is no teacher to compare it with."
    parts = []
    if share := _share(student.parameters, teacher.parameters):
        parts.append(f"{share} of its parameters")
    if share := _share(student.served("kv_bytes_per_token"), teacher.served("kv_bytes_per_token")):
        parts.append(f"{share} of its KV cache")
    rest = f" with {' and '.join(parts)}" if parts else ""
    return f"The student keeps {percent(kept)} of the teacher's accuracy{rest}."


def tiles(run: Gathered) -> list[Tile]:
    """The numbers that a reader looks for first."""
    student, teacher, kept = run.student, run.teacher, kept_share(run)
    found = []
    if student is not None and student.accuracy is not None:
        mine = f"{percent(student.accuracy['value'])} of {student.accuracy['count']:,} held-out tasks"
        against = f", teacher {percent(teacher.accuracy['value'])}" if teacher and teacher.accuracy else ""
        found.append(Tile("accuracy kept", percent(kept) if kept is not None else "–", mine + against))
    if student is not None and teacher is not None:
        found.append(_smaller("parameters", teacher.parameters, student.parameters, quantity))
        key = "kv_bytes_per_token"
        found.append(_smaller("KV cache a token", teacher.served(key), student.served(key), bytes_text))
    best = smallest_sound(run)
    if best is not None and best.accuracy is not None:
        context = f"{best.name}, {percent(best.accuracy['value'])} accuracy"
        found.append(Tile("smallest sound variant", bytes_text(best.weight_bytes), context))
    if run.times:
        cost = f"teacher's tokens: {dollars(total_cost(run.jobs))}" if run.jobs else "no data was generated"
        found.append(Tile("time in all", duration(sum(stage.seconds for stage in run.times)), cost))
    return found


def smallest_sound(run: Gathered) -> Variant | None:
    """The smallest quantized variant that is not flagged."""
    sound = [v for v in run.variants if v.role == "quantized" and v.flag is not None and not v.flagged]
    return min(sound, key=lambda v: v.weight_bytes or float("inf"), default=None)


def _smaller(label: str, before: float | None, after: float | None, text: Any) -> Tile:
    share = _share(after, before)
    if share is None:
        return Tile(label, "–", "not measured")
    return Tile(label, share, f"{text(before)} → {text(after)}")


def _share(part: float | None, whole: float | None) -> str | None:
    return percent(part / whole, 1 if part / whole < 0.2 else 0) if part is not None and whole else None


def bytes_plot(run: Gathered) -> Markup | None:
    """Quality against weight bytes."""
    points = [point for v in run.variants if (point := _point(v, v.weight_bytes)) is not None]
    if len(points) < 2:
        return None
    title = "Accuracy against the bytes of the weights"
    return charts.scatter(points, title=title, x_label="bytes of the weights", x_text=bytes_text, better_left=True)


def speed_plot(run: Gathered) -> Markup | None:
    """Quality against decode speed."""
    points = [point for v in run.variants if (point := _point(v, v.served("decode_tokens_per_second"))) is not None]
    if len(points) < 2:
        return None
    title = "Accuracy against decode speed"
    batches = {v.serving["batch"] for v in run.variants if v.serving and "batch" in v.serving}
    batch = f", {batches.pop()} sequences together" if len(batches) == 1 else ""
    return charts.scatter(points, title=title, x_label=f"decode tokens/s{batch}", x_text=quantity, better_left=False)


def _point(variant: Variant, x: float | None) -> Point | None:
    accuracy = variant.accuracy
    if accuracy is None or not x:
        return None
    css = "flagged" if variant.flagged else _CSS[variant.role]
    return Point(variant.name, x, accuracy["value"], accuracy["low"], accuracy["high"], css)


@dataclass(frozen=True)
class FamilyPanel:
    """The families of one kind on which teacher or student make mistakes, and how many are without any."""

    kind: str
    drawing: Markup | None
    perfect: int


def family_panels(run: Gathered) -> list[FamilyPanel]:
    """One panel a kind: teacher against final student by family, the largest losses first."""
    student, teacher = run.student, run.teacher
    if student is None or student.evaluation is None:
        return []
    mine = student.evaluation["by_family"]
    theirs = teacher.evaluation["by_family"] if teacher is not None and teacher.evaluation is not None else {}
    kind_of = {row["family"]: row["kind"] for row in run.answers.get(student.name, {}).values()}
    by_kind: dict[str, list[FamilyRow]] = {}
    for family, found in mine.items():
        reference = theirs[family]["value"] if family in theirs else None
        row = FamilyRow(family, reference, found["value"], found["count"])
        by_kind.setdefault(kind_of.get(family, "tasks"), []).append(row)
    panels = []
    for kind, rows in by_kind.items():
        shown = [row for row in rows if row.student != 1.0 or row.teacher not in (None, 1.0)]
        shown.sort(key=lambda row: ((row.student or 0.0) - (row.teacher or 0.0), row.student or 0.0, row.name))
        drawing = charts.family_chart(shown, title=f"Accuracy by family, {kind}") if shown else None
        panels.append(FamilyPanel(kind, drawing, len(rows) - len(shown)))
    return panels


@dataclass(frozen=True)
class Funnel:
    """A generate job in numbers; counts are None where the job did not say."""

    job: Job
    prompts: float | None
    answers: float | None
    rows: float | None
    dropped: tuple[tuple[str, int], ...]
    tokens: float | None


def funnel(job: Job) -> Funnel:
    """Prompts, answers, kept rows, and why the others were dropped."""
    metrics = job.metrics
    dropped = metrics.get("dropped", {})
    spoken, read = number(metrics, "completion_tokens"), number(metrics, "prompt_tokens")
    return Funnel(
        job=job,
        prompts=number(metrics, "prompts"),
        answers=number(metrics, "answers"),
        rows=number(metrics, "rows"),
        dropped=tuple(sorted(((str(k), int(v)) for k, v in dropped.items() if v), key=lambda item: -item[1])),
        tokens=spoken + read if spoken is not None and read is not None else None,
    )


def total_cost(jobs: Sequence[Job]) -> float | None:
    """Dollars of all jobs; None as soon as one is unknown."""
    costs = [job.cost_usd for job in jobs]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


def time_chart(run: Gathered) -> Markup | None:
    """Seconds of every stage, in the order in which they ran."""
    if not run.times:
        return None
    bars = [
        Bar(
            stage.name if stage.stage == stage.name else f"{stage.stage} {stage.name}",
            stage.seconds,
            duration(stage.seconds),
            stage.stage,
        )
        for stage in run.times
    ]
    return charts.bar_chart(bars, title="Time by stage")
