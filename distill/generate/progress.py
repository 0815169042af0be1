"""The progress of a job: rows a second, dollars now and in the end, requests in flight; a bar, or lines in a log."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distill.generate.funnel import Funnel
from distill.generate.outcome import Outcome
from distill.teacher.panel import Panel
from distill.track import Number

_REFRESH_SECONDS = 0.25
_SECONDS_A_LINE = 60.0  # where the output is no terminal


@dataclass
class Done:
    """Prompts finished so far, also those whose rows still wait for an earlier one, and what their answers cost.

    `cost_usd` is None where a price is unknown; `written_usd` is what it took to have the prompts written.
    """

    prompts: int = 0
    cost_usd: float | None = 0.0
    written_usd: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one prompt."""
        self.prompts += 1
        for answer in outcome.answers:
            if self.cost_usd is not None:
                self.cost_usd = None if answer.cost_usd is None else self.cost_usd + answer.cost_usd

    def dollars(self, total: int | None) -> str:
        """What the job costs so far, and in the end by the mean of the prompts that are done."""
        if self.cost_usd is None:
            return "cost unknown"
        now = f"${self.written_usd + self.cost_usd:.4f}"
        if total is None or not 0 < self.prompts < total:
            return now
        return f"{now} of about ${self.written_usd + self.cost_usd * total / self.prompts:.4f}"


@asynccontextmanager
async def shown(
    console: Console, name: str, total: int | None, panel: Panel, funnel: Funnel, done: Done
) -> AsyncIterator[None]:
    """Show the progress while the block runs; it is redrawn a few times a second, however many rows come."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    bar = progress.add_task(name, total=total, status="")
    started_at = time.monotonic()

    async def redraw() -> None:
        while True:
            status = status_of(panel, funnel, done, total, max(1e-6, time.monotonic() - started_at))
            progress.update(bar, completed=done.prompts, status=status)
            progress.refresh()
            await asyncio.sleep(_REFRESH_SECONDS)

    async def log() -> None:
        before = 0
        while True:
            await asyncio.sleep(_SECONDS_A_LINE)
            status = status_of(panel, funnel, done, total, time.monotonic() - started_at)
            left = None if total is None else total - done.prompts
            time_left = remaining(left, (done.prompts - before) / _SECONDS_A_LINE)
            console.print(f"{name}: {done.prompts:,} prompts, {status}, {time_left}", highlight=False)
            before = done.prompts

    with progress:
        drawing = asyncio.create_task(redraw() if console.is_terminal else log())
        try:
            yield
        finally:
            drawing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await drawing


def load(panel: Panel, funnel: Funnel, seconds: float) -> dict[str, Number]:
    """The state of a job after so many seconds of this session. `spent_usd` is of the run; absent: price unknown."""
    usage = panel.usage
    return {
        "rows": funnel.rows,
        "prompts": funnel.prompts,
        "rows_per_second": funnel.rows / max(1e-6, seconds),
        "tokens": usage.prompt_tokens + usage.completion_tokens,
        "requests_sent": usage.sent,
        "in_flight": panel.in_flight,
        "in_batches": panel.in_batches,
        "rate_limited": usage.refusals,  # 429 and 503
        "failed": usage.failed,
        **({"spent_usd": sum(client.spent_usd() for client in panel.clients)} if panel.priced else {}),
    }


def status_of(panel: Panel, funnel: Funnel, done: Done, total: int | None, seconds: float) -> str:
    """What the bar says behind its numbers."""
    usage = panel.usage
    tokens = usage.prompt_tokens + usage.completion_tokens
    parts = [f"{funnel.rows / seconds:.1f} rows/s", f"{tokens:,} tokens", done.dollars(total)]
    parts += [
        f"${client.spent_usd():.4f} of {client.label}'s budget of ${client.teacher.budget_usd:g}"
        for client in panel.clients
        if client.teacher.budget_usd is not None
    ]
    parts.append(f"{panel.in_flight} in flight")
    if panel.in_batches:
        parts.append(f"{panel.in_batches:,} in batches")
    if usage.refusals:
        parts.append(f"{usage.refusals} refused")
    return ", ".join(parts)


def remaining(prompts: int | None, prompts_per_second: float) -> str:
    """The time left at this pace, which is the last minute's: what the ledger answers goes by at once."""
    if prompts is None or prompts_per_second <= 0:
        return "time left unknown"
    left = round(prompts / prompts_per_second)
    return f"about {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
