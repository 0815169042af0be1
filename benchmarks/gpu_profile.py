"""What a decode step on a GPU consists of: kernels by count and time, and the host's share by function."""

from __future__ import annotations

import cProfile
import io
import pstats
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

from distill.engine.runner import Engine
from distill.engine.types import SamplingParams

if TYPE_CHECKING:
    from benchmarks.serve_gpu import Report

_STEPS = 8


def profile_engine(engine: Engine, report: Report, name: str, folder: Path) -> None:
    """Kernels of a few decode steps at batch 1, 64 and 256, and the host functions of a run at batch 64."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = len(engine.cache.keys) if engine.cache is not None else 1
    for rows in (1, 64, 256):
        kernels, times = _kernels(engine, rows)
        launches = sum(kernels.values()) / _STEPS
        seconds = sum(times.values()) / _STEPS / 1e6
        report.details[f"{name}: kernels of a decode step at batch {rows}, a layer, ms in them"] = [
            launches,
            launches / layers,
            seconds * 1e3,
        ]
        print(f"{name} batch {rows}: {launches:.0f} kernels a step, {seconds * 1e3:.3f} ms in them", flush=True)
        lines = [
            f"{times[k] / _STEPS:10.1f} us {kernels[k] / _STEPS:7.1f} x {k[:150]}" for k, _ in times.most_common(40)
        ]
        (folder / f"{name}-kernels-{rows}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    host = cProfile.Profile()
    prompts = [[i + 1000] * 16 for i in range(64)]
    host.runcall(engine.generate, prompts, SamplingParams(max_tokens=64, ignore_eos=True))
    text = io.StringIO()
    pstats.Stats(host, stream=text).sort_stats("tottime").print_stats(30)
    (folder / f"{name}-host-64.txt").write_text(text.getvalue(), encoding="utf-8")


def _kernels(engine: Engine, rows: int) -> tuple[Counter[str], Counter[str]]:
    """Count and microseconds by name, of `_STEPS` decode steps."""
    for row in range(rows):
        engine.add(f"profile-{row}", [1000 + row] * 128, SamplingParams(max_tokens=200, ignore_eos=True))
    for _ in range(8):
        engine.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(_STEPS):
            engine.step()
        torch.cuda.synchronize()
    for row in range(rows):
        engine.abort(f"profile-{row}")
    counts: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            counts[event.name] += 1
            times[event.name] += event.device_time
    return counts, times
