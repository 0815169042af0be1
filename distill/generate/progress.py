"""The progress bar of a job: rows a second, tokens, dollars, requests in flight."""

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
from distill.teacher.client import TeacherClient
from distill.track import Number

_REFRESH_SECONDS = 0.25


@dataclass
class Done:
    """Prompts finished so far, also those whose rows still wait for an earlier one."""

    prompts: int = 0


@asynccontextmanager
async def shown(
    console: Console, name: str, total: int | None, client: TeacherClient, funnel: Funnel, done: Done
) -> AsyncIterator[None]:
    """Show the bar while the block runs; it is redrawn a few times a second, however many rows come."""
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
            seconds = time.monotonic() - started_at
            progress.update(bar, completed=done.prompts, status=_status(client, funnel, seconds))
            progress.refresh()
            await asyncio.sleep(_REFRESH_SECONDS)

    with progress:
        drawing = asyncio.create_task(redraw())
        try:
            yield
        finally:
            drawing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await drawing


def load(client: TeacherClient, funnel: Funnel, seconds: float) -> dict[str, Number]:
    """The state of a job after so many seconds of this session. `spent_usd` is of the run; absent: price unknown."""
    usage = client.usage
    return {
        "rows": funnel.rows,
        "prompts": funnel.prompts,
        "rows_per_second": funnel.rows / max(1e-6, seconds),
        "tokens": usage.prompt_tokens + usage.completion_tokens,
        "requests_sent": usage.sent,
        "in_flight": client.limits.in_flight,
        "rate_limited": usage.refusals,  # 429 and 503
        "failed": usage.failed,
        **({} if client.rates is None else {"spent_usd": client.spent_usd()}),
    }


def _status(client: TeacherClient, funnel: Funnel, seconds: float) -> str:
    now = load(client, funnel, seconds)
    parts = [f"{now['rows_per_second']:.1f} rows/s", f"{now['tokens']:,} tokens"]
    parts += [dollars(now.get("spent_usd"), client), f"{now['in_flight']} in flight"]
    if now["rate_limited"]:
        parts.append(f"{now['rate_limited']} refused")
    return ", ".join(parts)


def dollars(amount: float | None, client: TeacherClient) -> str:
    """An amount, or that the teacher's price is unknown."""
    return "cost unknown" if client.rates is None or amount is None else f"${amount:.4f}"
