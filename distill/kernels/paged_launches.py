"""How paged decode is launched. `python -m benchmarks.paged_sweep --write` writes the table anew, for the GPU that it
runs on; this one is of `benchmarks/results/paged-sweep_h200_2026-11-29.json`."""

from __future__ import annotations

from dataclasses import dataclass

GPU = "NVIDIA H200"


@dataclass(frozen=True)
class DecodeLaunch:
    """How decode is cut up: keys of a step, warps and stages of a program, `programs` that it is split into where a
    batch has fewer (sequence, KV head) pairs, and `tokens` that one of them reads at least."""

    tile: int
    warps: int
    stages: int
    programs: int
    tokens: int


LAUNCHES = {
    64: DecodeLaunch(tile=128, warps=4, stages=2, programs=132, tokens=256),
    128: DecodeLaunch(tile=128, warps=4, stages=2, programs=264, tokens=128),
}
"""By the numbers of a head, up to so many; the last for larger ones too."""
