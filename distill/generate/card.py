"""The dataset card: what came in and what stayed, the filters, the models, the prompts, the cost, examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.generate.funnel import Funnel
from distill.generate.inputs import AnyJob, files_of
from distill.generate.output import DATA, REJECTED
from distill.generate.templates import hashes_of
from distill.recipe.filters import Filters
from distill.recipe.generate import CodeJob, FilePrompts, TaskPrompts
from distill.recipe.prompts import MagpiePrompts, OssInstructPrompts
from distill.runs import path_digest, write_atomically

CARD = "README.md"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SHOWN = ("messages", "prompt", "chosen", "rejected", "chosen_score", "rejected_score", "tests", "verdict")
# Each filter's reasons in rejected.parquet.
_REASONS = {
    "length": ("answer_too_short", "answer_too_long"),
    "languages": ("other_language",),
    "refusals": ("refusal",),
    "boilerplate": ("boilerplate",),
    "personal_data": ("personal_data",),
    "decontaminate": ("contaminated_13gram", "contaminated_8gram", "contaminated_ast"),
    "duplicates": ("exact_duplicate", "near_duplicate", "same_meaning"),
}
_EDUCATIONAL = ("not_educational", "educational_unclear", "seed_not_educational")


def write_card(
    folder: Path,
    job: AnyJob,
    funnel: Funnel,
    *,
    teacher: str,
    prompts_digest: str,
    examples: Sequence[dict[str, Any]],
    sifted: Mapping[str, Any],
) -> None:
    """README.md in the dataset card's form. Nothing in it depends on when or in how many sessions the job ran."""
    lines = [
        *_front(job, funnel),
        f"# {job.name}: {job.kind} data",
        "",
        f"Written by the teacher `{teacher}`. {_source(job)} Columns are TRL's standard format plus provenance.",
        "",
        *_funnel(funnel),
        *_filters(job, funnel, sifted),
        *_models(funnel),
        *_prompts(job, prompts_digest),
        "## Licence",
        "",
        "The teacher's licence and terms of use decide what this data may be used for, and whether a model may be "
        "trained on it that competes with the teacher; so do the licences of the files that prompts came from. Whoever "
        "publishes it names them here.",
        "",
        "## Job",
        "",
        "```json",
        json.dumps(job.model_dump(mode="json", exclude={"executor"}), indent=1, ensure_ascii=False),
        "```",
        "",
        "## Examples",
        "",
    ]
    for example in examples:
        shown = {name: value for name, value in example.items() if name in _SHOWN and value is not None}
        lines += ["```json", json.dumps(shown, indent=1, ensure_ascii=False), "```", ""]
    write_atomically(folder / CARD, "\n".join(lines))


def _front(job: AnyJob, funnel: Funnel) -> list[str]:
    """The YAML that a hub reads."""
    size = next((name for limit, name in _SIZES if funnel.rows < limit), "n>1M")
    tags = ["synthetic", "distillation", *(["dpo", "preference"] if job.kind == "preference" else [])]
    return [
        "---",
        f"pretty_name: {job.name}",
        "license: other",
        "license_name: see-the-card",
        "task_categories: [text-generation]",
        f"size_categories: [{size}]",
        "configs:",
        "- config_name: default",
        f"  data_files: {DATA}",
        f"tags: [{', '.join(tags)}]",
        "---",
    ]


def _funnel(funnel: Funnel) -> list[str]:
    cost = "unknown (no price for this teacher)" if funnel.cost_usd is None else f"${funnel.cost_usd:.4f}"
    rows = [
        ("prompts", f"{funnel.prompts:,}"),
        ("answers", f"{funnel.answers:,}"),
        *((f"dropped: {reason}", f"{count:,}") for reason, count in sorted(funnel.dropped.items())),
        ("rows kept", f"{funnel.rows:,}"),
        *((name.replace("_", " "), f"{count:,}") for name, count in sorted(funnel.counts.items())),
        *((name.replace("_", " "), f"{rate:.1%}") for name, rate in funnel.rates().items()),
        ("prompt tokens", f"{funnel.prompt_tokens:,}"),
        ("completion tokens", f"{funnel.completion_tokens:,}"),
        ("cost", cost),
    ]
    note = f"What was dropped is in `{REJECTED}` with its reason. Tokens and cost are of all requests, judges' too."
    return ["## Funnel", "", *_table(("", ""), rows), "", note, ""]


def _filters(job: AnyJob, funnel: Funnel, sifted: Mapping[str, Any]) -> list[str]:
    """What each filter is set to and how many rows it removed, in the order in which they look."""
    rows = []
    for name, reasons in _REASONS.items():
        setting = _setting(job.filters, name)
        removed = sum(funnel.dropped[reason] for reason in reasons)
        rows.append((name.replace("_", " "), "off" if setting is None else f"`{setting}`", f"{removed:,}"))
    if sifted or (isinstance(job, CodeJob) and job.educational):
        removed = sum(funnel.dropped[reason] for reason in _EDUCATIONAL)
        rows.append(("educational value", sifted.get("features", "the teacher is asked about each"), f"{removed:,}"))
    lines = ["## Filters", "", *_table(("filter", "setting", "removed"), rows), ""]
    if sifted:
        lines += [
            f"The teacher labelled {sifted['labelled']:,} programs and affirmed {sifted['affirmed']:,}; a random "
            f"forest extends that to {sifted['kept'] + sifted['removed']:,}. On {sifted['held_out']:,} labels held out "
            f"its area under the ROC curve is {sifted['auc']:.3f}, its accuracy {sifted['accuracy']:.1%}.",
            "",
        ]
    return lines


def _setting(filters: Filters, name: str) -> str | None:
    """A filter's settings in one line; None where it is off."""
    value = filters.model_dump(mode="json")[name]
    if not value:
        return None
    return "on" if value is True else json.dumps(value, ensure_ascii=False)


def _models(funnel: Funnel) -> list[str]:
    rows = [
        (f"`{name}`", f"{used.answers:,}", f"{used.prompt_tokens:,}", f"{used.completion_tokens:,}", used.dollars())
        for name, used in sorted(funnel.models.items())
    ]
    return [
        "## Models",
        "",
        *_table(("model", "answers", "prompt tokens", "completion tokens", "cost"), rows),
        "",
    ]


def _prompts(job: AnyJob, prompts_digest: str) -> list[str]:
    """SHA-256 of all that was asked from: the prompts themselves, the files, and our own templates."""
    rows = [("the prompts of this job, in order", f"`{prompts_digest}`")]
    rows += [(f"file: {name}", f"`{path_digest(path)}`") for name, path in files_of(job).items()]
    rows += [(f"template: {name}", f"`{digest}`") for name, digest in hashes_of(job).items()]
    if job.system is not None:
        rows.append(("system message", f"`{json.dumps(job.system, ensure_ascii=False)}`"))
    return ["## Prompts", "", *_table(("what", "SHA-256, first 16 digits"), rows), ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown; bars inside cells would end them."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *(line(row) for row in rows)]


def _source(job: AnyJob) -> str:
    prompts = job.prompts
    if isinstance(prompts, FilePrompts):
        return f"Prompts from `{Path(prompts.path).name}`."
    if isinstance(prompts, MagpiePrompts):
        return "Prompts by the source `magpie`."
    if isinstance(prompts, TaskPrompts):
        return f"Prompts from the verifiable task families ({', '.join(prompts.kinds)}), training split."
    what = "seeds in" if isinstance(prompts, OssInstructPrompts) else "what is in"
    return f"Prompts by the source `{prompts.source}` from {what} `{Path(prompts.path).name}`."
