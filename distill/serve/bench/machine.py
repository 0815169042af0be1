"""What this machine can do at best, measured: bytes read from memory and floating-point operations, per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import linear

_REPEATS = 7
_READ_VALUES = {"cpu": 1 << 26, "cuda": 1 << 28}  # fp32: 256 MiB and 1 GiB, more than any cache holds
_SIDE = {"cpu": 512, "cuda": 8192}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """Measured ceilings of one device at one dtype; `threads` are torch's."""

    device: str
    dtype: str
    threads: int
    bytes_per_second: float
    flop_per_second: float


def measure_machine(device: str, dtype: str) -> Machine:
    """Read a large tensor, multiply square ones; the best of a few repeats, as other work only slows down. Where fp32
    is faster than the model's dtype (processors without instructions for it), that is the ceiling."""
    values = torch.ones(_READ_VALUES[device], device=device)
    read = values.nbytes / _best(values.sum, device)
    del values
    flop = max(_multiply(device, kind) for kind in {_DTYPES[dtype], torch.float32})
    return Machine(device, dtype, torch.get_num_threads(), read, flop)


def best_of(machine: Machine, again: Machine | None) -> Machine:
    """The higher ceilings of one machine, measured twice: before a benchmark and after it, as other work that comes
    and goes may have slowed one of them down for longer than all repeats take."""
    if again is None:
        return machine
    read = max(machine.bytes_per_second, again.bytes_per_second)
    return replace(machine, bytes_per_second=read, flop_per_second=max(machine.flop_per_second, again.flop_per_second))


def _multiply(device: str, kind: torch.dtype) -> float:
    """FLOP/s of a linear map between square matrices."""
    side = _SIDE[device]
    rows, weight = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return 2 * side**3 / _best(lambda: linear(rows, weight), device)


def _best(work: Callable[[], object], device: str) -> float:
    """Seconds of the fastest repeat."""
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
