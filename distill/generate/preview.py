"""A look at a job before it is paid for: a few rows, and what the whole is likely to take."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from distill.generate.job import AnyJob, Finished
from distill.generate.outcome import Row
from distill.generate.progress import dollars
from distill.teacher.client import TeacherClient

_LONGEST_TEXT = 600


def show(console: Console, job: AnyJob, finished: Finished, rows: list[Row], client: TeacherClient) -> None:
    """Print the rows, what was dropped, and the projection."""
    table = Table(title=f"{job.name}: first {finished.funnel.prompts} prompts", show_lines=True, expand=True)
    columns = ("prompt", "chosen", "rejected") if job.kind == "preference" else ("prompt", "answer", "verdict")
    for column in columns:
        if column == "verdict":
            table.add_column(column, min_width=len(column), max_width=20, overflow="fold")
        else:
            table.add_column(column, ratio=1, overflow="fold")
    for row in rows:
        table.add_row(*(_short(text) for text in _cells(row)))
    console.print(table)
    dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(finished.funnel.dropped.items()))
    console.print(f"kept {len(rows)} rows" + (f"; dropped: {dropped}" if dropped else ""), highlight=False)
    console.print(projection(job.name, finished, client), highlight=False)


def projection(name: str, finished: Finished, client: TeacherClient) -> str:
    """Tokens, dollars and time of the whole job by the mean of these prompts, with a 95% interval."""
    funnel = finished.funnel
    if finished.total_prompts is None or not funnel.prompts:
        return f"{name}: nothing to project from"
    scale = finished.total_prompts / funnel.prompts
    error = funnel.relative_error()
    spread = "interval unknown" if math.isinf(error) else f"+-{error:.0%}"
    cost = None if funnel.cost_usd is None else funnel.cost_usd * scale
    parts = [
        f"about {funnel.tokens * scale:,.0f} tokens ({spread})",
        dollars(cost, client),
        f"{funnel.rows * scale:,.0f} rows",
    ]
    if client.usage.sent:
        parallel = min(client.teacher.max_concurrency, finished.total_prompts)
        parts.append(f"at least {_least_seconds(finished, client, parallel):,.0f} s at {parallel} in flight")
    return f"{name}, all {finished.total_prompts:,} prompts: {', '.join(parts)}"


def _least_seconds(finished: Finished, client: TeacherClient, parallel: int) -> float:
    """Requests of the whole job over those in flight, each as long as the mean seen now."""
    assert finished.total_prompts is not None
    requests = finished.funnel.answers * finished.total_prompts / finished.funnel.prompts
    seconds = requests / parallel * client.usage.latency_seconds / max(1, client.usage.answered)
    if client.teacher.requests_per_minute is not None:
        seconds = max(seconds, requests / client.teacher.requests_per_minute * 60)
    return seconds


def _cells(row: Row) -> list[str]:
    if "chosen" in row:
        return [row["prompt"][-1]["content"], row["chosen"][-1]["content"], row["rejected"][-1]["content"]]
    return [row["messages"][-2]["content"], row["messages"][-1]["content"], row["verdict"]]


def _short(text: str) -> str:
    text = text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " ..."
    return text.replace("[", r"\[")
