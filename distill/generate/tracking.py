"""What a job did over time: a line every few seconds in metrics.jsonl and in W&B, and a table of samples at the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from distill.generate.funnel import Funnel
from distill.generate.multi_turn import asked_and_said
from distill.generate.outcome import Row
from distill.generate.progress import load
from distill.teacher.panel import Panel
from distill.track import Tracker, read_metrics

_SECONDS = 5.0


@asynccontextmanager
async def tracked(tracker: Tracker, panel: Panel, funnel: Funnel) -> AsyncIterator[None]:
    """Log the load of the block while it runs, and once more at its end, however it ends."""
    first = len(read_metrics(tracker.path))  # earlier sessions of the job
    started_at = time.monotonic()
    step = first

    def log() -> None:
        nonlocal step
        tracker.log(load(panel, funnel, time.monotonic() - started_at), step=step)
        step += 1

    async def repeat() -> None:
        while True:
            await asyncio.sleep(_SECONDS)
            log()

    logging = asyncio.create_task(repeat())
    try:
        yield
    finally:
        logging.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await logging
        log()


def sample_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells: prompt and answer, or prompt and both answers with their scores."""
    if rows and "chosen" in rows[0]:
        columns = ["prompt", "chosen", "rejected", "chosen_score", "rejected_score"]
        return columns, [
            [
                row["prompt"][-1]["content"],
                row["chosen"][-1]["content"],
                row["rejected"][-1]["content"],
                f"{row['chosen_score']:.2f}",
                f"{row['rejected_score']:.2f}",
            ]
            for row in rows
        ]
    return ["prompt", "answer", "verdict"], [[*asked_and_said(row["messages"]), row["verdict"]] for row in rows]
