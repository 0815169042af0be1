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
    """Kernels of a few decode steps at batch 1 and 64, and the host functions of a run at batch 64."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = len(engine.cache.keys) if engine.cache is not None else 1
    for rows in (1, 64):
        kernels, times = _kernels(engine, rows)
        launches = sum(kernels.values()) / _STEPS
        seconds = sum(times.values()) / _STEPS / 1e6
        report.details[f"{name}: kernels of a decode step at batch {rows}, a layer, ms in them"] = [
            launches,
            launches / layers,
            seconds * 1e3,
        ]
        print(f"{name} batch {rows}: {launches:.0f} kernels a step, {seconds * 1e3:.3f} ms in them", flush=True)
        _write(folder / f"{name}-kernels-{rows}.txt", kernels, times, _STEPS)
    kernels, times = _prefill_kernels(engine)
    report.details[f"{name}: kernels of a prefill step of 16 x 512 tokens, ms in them"] = [
        sum(kernels.values()),
        sum(times.values()) / 1e3,
    ]
    _write(folder / f"{name}-kernels-prefill.txt", kernels, times, 1)
    host = cProfile.Profile()
    prompts = [[i + 1000] * 16 for i in range(64)]
    host.runcall(engine.generate, prompts, SamplingParams(max_tokens=64, ignore_eos=True))
    text = io.StringIO()
    pstats.Stats(host, stream=text).sort_stats("tottime").print_stats(30)
    (folder / f"{name}-host-64.txt").write_text(text.getvalue(), encoding="utf-8")


def _write(path: Path, counts: Counter[str], times: Counter[str], steps: int) -> None:
    longest = [kernel for kernel, _ in times.most_common(40)]
    lines = [f"{times[k] / steps:10.1f} us {counts[k] / steps:7.1f} x {k[:150]}" for k in longest]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _prefill_kernels(engine: Engine) -> tuple[Counter[str], Counter[str]]:
    """The same of one step that computes 16 prompts of 512 tokens."""
    for _ in range(2):  # the first compiles
        for row in range(16):
            engine.add(f"profile-{row}", [1000 + row] * 512, SamplingParams(max_tokens=1, ignore_eos=True))
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            while engine.has_work:
                engine.step()
            torch.cuda.synchronize()
    return _sums(found)


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
    return _sums(found)


def _sums(found: profile) -> tuple[Counter[str], Counter[str]]:
    counts: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            counts[event.name] += 1
            times[event.name] += event.device_time
    return counts, times
