"""How products with packed weights are launched: written by `python -m benchmarks.w4a16_sweep --write`, which compared
them on the GPU named here, over the layers of Qwen2.5-7B and two more."""

from __future__ import annotations

from dataclasses import dataclass

GPU = "not measured"
PROCESSORS = 132


@dataclass(frozen=True)
class Kind:
    """Slabs of 16 outputs of a program, warps, loads under way, whether scales meet the weights (and not the sums of a
    group), and how many programs a multiprocessor shall have."""

    slabs: int
    warps: int
    stages: int
    scaled: bool
    programs: int


KINDS = {
    16: Kind(slabs=4, warps=4, stages=4, scaled=False, programs=3),
    32: Kind(slabs=4, warps=4, stages=4, scaled=False, programs=3),
    64: Kind(slabs=8, warps=8, stages=3, scaled=True, programs=1),
    128: Kind(slabs=8, warps=8, stages=3, scaled=True, programs=1),
}
"""By the rows of x that a program has; more rows are more programs."""
