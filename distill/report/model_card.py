"""A model card (README.md with YAML front matter) for the final student."""

from __future__ import annotations

import json
from collections.abc import Iterator

from distill.report.findings import findings, kept_share
from distill.report.format import bytes_text, percent, quantity
from distill.report.gather import Gathered, Variant


def model_card(run: Gathered) -> str:
    """The card's Markdown: what the model is, how it was made, how it was measured, and its limits."""
    student = run.student
    name = student.name if student is not None else run.recipe.name
    lines = [*_front_matter(run), f"# {run.recipe.name}/{name}", ""]
    kept = kept_share(run)
    if kept is not None:
        lines += [f"A distilled language model that keeps {percent(kept)} of its teacher's accuracy.", ""]
    lines += ["## How it was made", "", *_steps(run), "", "## Results", "", *_table(run), ""]
    lines += [
        "Accuracy: held-out tasks, greedy decoding, 95% Wilson intervals. KL(teacher || student): nats a token.",
        "",
        "## What to know",
        "",
        *(f"- {finding.text}" for finding in findings(run)),
        "",
    ]
    return "\n".join(lines)


def _front_matter(run: Gathered) -> Iterator[str]:
    """YAML, every value quoted as JSON, which is YAML."""
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    yield "tags: [distillation]"
    if run.recipe.student is not None and run.recipe.student.model is not None:
        yield f"base_model: {json.dumps(run.recipe.student.model)}"
    student = run.student
    if student is not None and student.accuracy is not None:
        yield "model-index:"
        yield f"  - name: {json.dumps(run.recipe.name + '/' + student.name)}"
        yield "    results:"
        yield "      - task: {type: text-generation}"
        yield "        dataset: {name: held-out tasks, type: distill-tasks}"
        yield f"        metrics: [{{type: accuracy, value: {student.accuracy['value']:.4f}}}]"
    yield "---"
    yield ""


def _steps(run: Gathered) -> Iterator[str]:
    teacher = run.recipe.teacher
    yield f"- Teacher: `{teacher.model}`"
    if run.recipe.student is not None:
        cut = [f"{size:,} {what}" for what, size in run.recipe.student.cuts.items()]
        start = run.recipe.student.model or "random weights"
        yield f"- Student: `{start}`" + (f", cut to {', '.join(cut)}" if cut else "")
    for job in run.jobs:
        rows = job.metrics.get("rows")
        yield f"- Data: {job.name} ({job.kind}), {quantity(rows) if rows is not None else 'unknown'} rows"
    for entry in run.recipe.train:
        yield f"- Trained: {entry.name} ({entry.objective})"
    if run.manifest is not None and run.manifest.git_revision:
        yield f"- Made with distill at revision {run.manifest.git_revision}"


def _table(run: Gathered) -> Iterator[str]:
    yield "| variant | parameters | weights | accuracy | perplexity | KL |"
    yield "|---|---:|---:|---:|---:|---:|"
    for variant in run.variants:
        yield "| " + " | ".join(_cells(variant)) + " |"


def _cells(variant: Variant) -> Iterator[str]:
    yield variant.name + (" (flagged)" if variant.flagged else "")
    yield quantity(variant.parameters)
    yield bytes_text(variant.weight_bytes)
    accuracy = variant.accuracy
    interval = (
        f"{percent(accuracy['value'])} [{percent(accuracy['low'])}, {percent(accuracy['high'])}]" if accuracy else ""
    )
    yield interval or "not measured"
    for key in ("perplexity", "kl"):
        value = variant.evaluated(key)
        yield f"{value:.3g}" if value is not None else "not measured"
