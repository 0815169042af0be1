"""How products with packed weights are launched. `python -m benchmarks.w4a16_sweep --write` writes the table anew, for
the GPU that it runs on; this one is of `benchmarks/results/w4a16-sweep_h200_2026-11-29.json`."""

from __future__ import annotations

from dataclasses import dataclass

GPU = "NVIDIA H200"
PROCESSORS = 132


@dataclass(frozen=True)
class Kind:
    """Slabs of 16 outputs of a program, warps, loads under way, whether scales meet the weights (and not the sums of a
    group), how many programs a multiprocessor shall have, and whether the next kernel may begin when the sums are made
    (`early.py`; where the GPU can)."""

    slabs: int
    warps: int
    stages: int
    scaled: bool
    programs: int
    early: bool = False


KINDS = {
    16: Kind(slabs=4, warps=4, stages=4, scaled=False, programs=3, early=True),
    32: Kind(slabs=4, warps=4, stages=4, scaled=False, programs=3, early=False),
    64: Kind(slabs=4, warps=4, stages=3, scaled=False, programs=3, early=True),
    128: Kind(slabs=8, warps=8, stages=3, scaled=True, programs=1, early=False),
}
"""By the rows of x that a program has; more rows are more programs."""
