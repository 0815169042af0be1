"""SIGKILL at random points of a job: what is sent again, lost or doubled."""

from __future__ import annotations

import random

from benchmarks.common import Row
from benchmarks.generate_lab import CONCURRENCY, Lab

_ROWS = 400


def kill_points(lab: Lab, count: int, seed: int = 0) -> list[Row]:
    """The worst of `count` kills, each of a fresh job at a random answer."""
    rng = random.Random(seed)
    again = lost = doubled = 0
    for _ in range(count):
        killed = lab.kill_and_resume(_ROWS, at=rng.randrange(_ROWS), behaviour={"latency": 0.05})
        again, lost, doubled = max(again, killed.again), lost + killed.lost, doubled + killed.doubled
    return [
        Row(f"{count} kills: most requests sent again", again, "", None, None, None, CONCURRENCY, again <= CONCURRENCY),
        Row(f"{count} kills: rows lost", lost, "rows", None, None, None, 0, lost == 0),
        Row(f"{count} kills: rows doubled", doubled, "rows", None, None, None, 0, doubled == 0),
    ]
