"""What a training step of the lab's models consists of: wall time, the GPU's busy time, kernels, waits, host functions.

    python -m benchmarks.train_profile [--ways sft kd kd-triton kd-torch] [--steps N] [--plain] [--quick] [--json PATH]

A student of 12.6 M and a bfloat16 teacher of 61.3 M parameters (`benchmarks/lab`) with random weights, V = 8,192, 16
rows of 512 random tokens a step. After warm-up, N steps each: undisturbed for the wall time, under torch's profiler for
kernels, and under cProfile for host functions; the profilers slow steps down, so only the first is a time. `--quick`,
and any CPU: tiny models, to see that it runs.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from benchmarks import train_step_ways as ways
from benchmarks.common import Row, envelope, write_json
from benchmarks.lab.cases import LARGE, SMALL, TINY
from benchmarks.lab.models import Shape

WAYS = {  # name -> (the trainer, whether our kernel computes the loss, whether passes are replayed)
    "sft": (ways.ours_sft, True, True),
    "kd": (ways.ours_off_policy, True, True),
    "sft-triton": (ways.ours_sft, True, False),
    "kd-triton": (ways.ours_off_policy, True, False),
    "sft-torch": (ways.ours_sft, False, False),
    "kd-torch": (ways.ours_off_policy, False, False),
}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpyAsync", "cudaMemcpy")
TOP = 25


@dataclass
class Phases(TrainerCallback):  # type: ignore[misc]
    """Three stretches of `steps` steps after `warm_up`: plain, torch's profiler, cProfile."""

    warm_up: int
    steps: int
    plain: bool = False  # no profilers, one stretch
    seconds: float = 0.0
    trace: profile | None = None
    host: cProfile.Profile = field(default_factory=cProfile.Profile)
    _started: float = 0.0

    @property
    def total(self) -> int:
        """Steps to train."""
        return self.warm_up + (1 if self.plain else 3) * self.steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        done = state.global_step - self.warm_up
        if done % self.steps or done < 0:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if done == 0:
            self._started = now
        elif done == self.steps:
            self.seconds = now - self._started
            if self.plain:
                return
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self.trace = profile(activities=activities, acc_events=True)
            self.trace.__enter__()
        elif done == 2 * self.steps:
            assert self.trace is not None
            self.trace.__exit__(None, None, None)
            self.host.enable()
        else:
            self.host.disable()


@dataclass(frozen=True)
class Found:
    """A way's step: milliseconds of wall time and of kernels, launches and waits, and the longest by name."""

    wall_ms: float
    tokens_per_second: float
    peak_bytes: int
    host: str
    gpu_ms: float = 0.0
    launches: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)
    kernels: list[tuple[float, float, str]] = field(default_factory=list)
    operators: list[tuple[float, float, str]] = field(default_factory=list)


def measure(name: str, student: Shape, teacher: Shape, *, vocab: int, rows: int, tokens: int, phases: Phases) -> Found:
    """Train, and sum up what the profilers saw, each number by step."""
    make, triton, graphs = WAYS[name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ours, theirs = (_model(shape, vocab, tokens, device) for shape in (student, teacher))
    setting = ways.Setting(
        student=ours,
        teacher=theirs.to(torch.bfloat16) if device == "cuda" else theirs,
        rows=_rows(phases.total * rows, vocab, tokens),
        steps=phases.total,
        batch=rows,
        micro_batch=rows,
        max_new_tokens=0,
        bfloat16=device == "cuda",
        triton=triton and device == "cuda",
        cuda_graphs=graphs,
    )
    trainer = make(setting)
    trainer.add_callback(phases)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    text = io.StringIO()
    if phases.trace is not None:
        pstats.Stats(phases.host, stream=text).sort_stats("tottime").print_stats(TOP + 10)
        pstats.Stats(phases.host, stream=text).sort_stats("cumtime").print_stats(3 * TOP)
    return Found(
        wall_ms=phases.seconds / phases.steps * 1e3,
        tokens_per_second=rows * tokens * phases.steps / phases.seconds,
        peak_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else 0,
        host=text.getvalue(),
        **({} if phases.trace is None else _sums(phases.trace, phases.steps)),
    )


def _sums(trace: profile, steps: int) -> dict[str, Any]:
    """Kernels, launches and waits of the trace, by step."""
    counts: Counter[str] = Counter()
    times: Counter[str] = Counter()
    launches, waits = 0, Counter[str]()
    for event in trace.events() or ():
        if event.device_type == DeviceType.CUDA:
            counts[event.name] += 1
            times[event.name] += event.device_time
        elif "Launch" in event.name and event.name.startswith("cu"):
            launches += 1
        elif event.name in WAITS:
            waits[event.name] += 1
    by_self = sorted(trace.key_averages(), key=lambda event: -event.self_cpu_time_total)[:TOP]
    return {
        "gpu_ms": sum(times.values()) / steps / 1e3,
        "launches": launches / steps,
        "waits": {name: count / steps for name, count in waits.items()},
        "kernels": [(times[k] / steps, counts[k] / steps, k[:120]) for k, _ in times.most_common(TOP)],
        "operators": [(e.self_cpu_time_total / steps, e.count / steps, e.key[:80]) for e in by_self],
    }


def _model(shape: Shape, vocab: int, tokens: int, device: str) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=2 * tokens,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config)


def _rows(count: int, vocab: int, tokens: int) -> list[ways.Row]:
    rng = random.Random(0)
    return [ways.Row([3], [rng.randrange(4, vocab) for _ in range(tokens - 1)]) for _ in range(count)]


def show(name: str, found: Found) -> None:
    """Print what was found."""
    print(
        f"== {name}: {found.wall_ms:.2f} ms a step ({found.tokens_per_second:,.0f} tokens/s), kernels"
        f" {found.gpu_ms:.2f} ms, {found.launches:.0f} launches, waits {found.waits},"
        f" peak {found.peak_bytes / 2**30:.2f} GiB",
        flush=True,
    )
    if not found.kernels and not found.operators:
        return
    for title, lines in (("kernels, us and count a step", found.kernels), ("operators, self us", found.operators)):
        print(f"-- {title}")
        print("\n".join(f"{time:9.1f} {count:7.1f} x {what}" for time, count, what in lines))
    print(found.host, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Measure each way in turn, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["sft", "kd"])
    parser.add_argument("--steps", type=int, default=20, help="of each stretch")
    parser.add_argument("--warm-up", type=int, default=20)
    parser.add_argument("--plain", action="store_true", help="only the wall time")
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    real = torch.cuda.is_available() and not options.quick
    sizes = {"vocab": 8192, "rows": 16, "tokens": 512} if real else {"vocab": 300, "rows": 4, "tokens": 32}
    student, teacher = (SMALL, LARGE) if real else (TINY, TINY)
    rows, details = [], {}
    for name in options.ways:
        phases = Phases(options.warm_up, options.steps, options.plain)
        found = measure(name, student, teacher, **sizes, phases=phases)
        show(name, found)
        rows += [
            Row(f"{name}, a step", found.wall_ms, "ms"),
            Row(f"{name}, kernels of a step", found.gpu_ms, "ms"),
            Row(f"{name}, launches of a step", found.launches, ""),
            Row(f"{name}, tokens/s", found.tokens_per_second, "tokens/s"),
        ]
        details[name] = {key: value for key, value in asdict(found).items() if key != "host"}
        if options.json is not None:
            command = " ".join(["python -m benchmarks.train_profile", *arguments])
            write_json(
                options.json, envelope(what="training step, profiled", command=command, rows=rows, details=details)
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
