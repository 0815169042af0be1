"""A look at a job before it is paid for: a few rows, and what the whole is likely to take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from rich.console import Console
from rich.table import Table

from distill.generate.job import AnyJob, Finished
from distill.generate.multi_turn import asked_and_said
from distill.generate.outcome import Outcome, Row
from distill.generate.projection import project
from distill.recipe.filters import EducationalSample
from distill.recipe.generate import CodeJob
from distill.recipe.teacher import Teacher
from distill.teacher.panel import Panel

_LONGEST_TEXT = 600


def show(console: Console, job: AnyJob, finished: Finished, outcomes: Sequence[Outcome], panel: Panel) -> None:
    """Print the rows with what the filters say of each, what was dropped, and the projection."""
    table = Table(title=f"{job.name}: first {finished.funnel.prompts} prompts", show_lines=True, expand=True)
    columns = ("prompt", "chosen", "rejected") if job.kind == "preference" else ("prompt", "answer", "verdict")
    for column in (*columns, "filters"):
        if column in ("verdict", "filters"):
            table.add_column(column, min_width=len(column), max_width=20, overflow="fold")
        else:
            table.add_column(column, ratio=1, overflow="fold")
    for outcome in outcomes:
        for row, fate in _fates(outcome):
            table.add_row(*(_short(text) for text in (*_cells(row), fate)))
    console.print(table)
    dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(finished.funnel.dropped.items()))
    console.print(f"kept {finished.funnel.rows} rows" + (f"; dropped: {dropped}" if dropped else ""), highlight=False)
    for line in filtered(finished, outcomes):
        console.print(line, highlight=False)
    console.print(projection(job, finished, outcomes, panel), highlight=False)


def filtered(finished: Finished, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """How many rows the filters let through, and what each reason takes here and in the whole job."""
    removed = [[one.reason for one in outcome.rejected if one.row is not None] for outcome in outcomes]
    kept = sum(len(outcome.rows) for outcome in outcomes)
    made = kept + sum(map(len, removed))
    if made == kept:
        return
    yield f"filters keep {kept} of {made} rows and remove {made - kept}:"
    for reason, count in sorted(Counter(chain.from_iterable(removed)).items()):
        whole = ""
        if finished.total_prompts is not None:
            about = project([each.count(reason) for each in removed], finished.total_prompts)
            whole = f", about {about.shown(',.0f')} of all prompts' rows"
        yield f"  {reason} {count}{whole}"


def _fates(outcome: Outcome) -> Iterator[tuple[Row, str]]:
    """Every finished row and what becomes of it."""
    for row in outcome.rows:
        yield row, "kept"
    for one in outcome.rejected:
        if one.row is not None:
            yield one.row, f"{one.reason} ({one.detail})" if one.detail else one.reason


def projection(job: AnyJob, finished: Finished, outcomes: Sequence[Outcome], panel: Panel) -> str:
    """Rows, tokens, dollars and time of the whole job from these prompts, each with its interval."""
    total, seen = finished.total_prompts, len(outcomes)
    if total is None or not seen:
        return f"{job.name}: nothing to project from"
    lines = [
        f"{job.name}, all {total:,} prompts (95% t-interval over {seen}):",
        *_lines(job, finished, outcomes, panel, total),
    ]
    return "\n".join(lines)


def _lines(job: AnyJob, finished: Finished, outcomes: Sequence[Outcome], panel: Panel, total: int) -> Iterator[str]:
    written = finished.written  # what it took to have the prompts written grows with their number
    scale = max(total, len(outcomes)) / len(outcomes)
    labels = _labels(job, finished, scale, panel)
    answers = [outcome.answers for outcome in outcomes]
    most = 1 if job.kind == "preference" else job.samples
    yield f"  rows    about {project([len(outcome.rows) for outcome in outcomes], total, most=most).shown(',.0f')}"
    per_prompt = [float(sum(one.prompt_tokens + one.completion_tokens for one in each)) for each in answers]
    tokens = project(per_prompt, total, fixed=written.tokens * scale + labels.tokens)
    yield f"  tokens  about {tokens.shown(',.0f')}"
    costs = [[panel.usual_cost_usd(one) for one in each] for each in answers]
    if written.cost_usd is None or labels.cost_usd is None or any(cost is None for each in costs for cost in each):
        yield "  cost    unknown: set teacher.price"
    else:
        paid = [math.fsum(cost for cost in each if cost is not None) for each in costs]
        yield f"  cost    about ${project(paid, total, fixed=written.cost_usd * scale + labels.cost_usd).shown(',.4f')}"
    if any(client.in_batch_mode for client in panel.clients):
        yield "  time    within a day for each batch, and for each round of questions"
        return
    parallel = min(sum(client.teacher.max_concurrency for client in panel.clients), total)
    seconds = project([math.fsum(one.latency_seconds for one in each) for each in answers], total)
    yield f"  time    at least {seconds.scaled(1 / parallel).shown(',.1f')} s at {parallel} in flight"
    requests = project([float(len(each)) for each in answers], total).total
    limits = [
        limit for client, share in panel.shares() for limit in _limits(client.teacher, requests, tokens.total, share)
    ]
    if limits:
        yield f"          and at least {max(limits):,.0f} s at the declared rates"


@dataclass(frozen=True)
class _Labels:
    """What the labels of the whole job's sample take; `cost_usd` is None where a price is unknown."""

    tokens: float = 0.0
    cost_usd: float | None = 0.0


def _labels(job: AnyJob, finished: Finished, scale: float, panel: Panel) -> _Labels:
    """A preview labels every row, the whole job a sample."""
    if not (finished.labels and isinstance(job, CodeJob) and isinstance(job.educational, EducationalSample)):
        return _Labels()
    seen = len(finished.labels)
    times = min(job.educational.sample, seen * scale) / seen
    tokens = sum(one.prompt_tokens + one.completion_tokens for one in finished.labels)
    costs = [panel.usual_cost_usd(one) for one in finished.labels]
    known = [cost for cost in costs if cost is not None]
    return _Labels(times * tokens, times * math.fsum(known) if len(known) == len(costs) else None)


def _limits(teacher: Teacher, requests: float, tokens: float, share: float) -> Iterator[float]:
    """Seconds that the teacher's part takes at its declared rates."""
    if teacher.requests_per_minute is not None:
        yield 60 * share * requests / teacher.requests_per_minute
    if teacher.tokens_per_minute is not None:
        yield 60 * share * tokens / teacher.tokens_per_minute


def _cells(row: Row) -> list[str]:
    if "chosen" in row:
        return [row["prompt"][-1]["content"], row["chosen"][-1]["content"], row["rejected"][-1]["content"]]
    return [*asked_and_said(row["messages"]), row["verdict"]]


def _short(text: str) -> str:
    text = text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " ..."
    return text.replace("[", r"\[")
