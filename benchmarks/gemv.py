"""The matrix products of a decoder layer at a few rows: launches of the fused products against cuBLAS's own.

    python -m benchmarks.gemv [--json PATH] [--seconds N]

A chain of layers as the engine computes it, attention left out: norm and QKV, output projection onto the residual, norm
and gated SiLU, down projection onto the residual; captured as one CUDA graph, with more weights than the L2 holds.
Microseconds a layer, and the bandwidth at which weights are read.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import Row, envelope, write_json
from benchmarks.gpu_models import copy_speed, peak_speed
from distill.kernels.fused import rms_norm, silu_mul
from distill.kernels.gemv import Launch, gated_gemv, gemv, plan

# hidden size, outputs of QKV, intermediate size, layers of the chain
SHAPES = {"qwen2.5-0.5b": (896, 1152, 4864, 24), "qwen2.5-7b": (3584, 4608, 18944, 6)}
EPS = 1e-6
Weights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # norm, QKV, bias, output, gate and up, down


def make_layers(shape: tuple[int, int, int, int]) -> list[Weights]:
    hidden, qkv, inner, count = shape

    def rand(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.bfloat16, device="cuda") * 0.02

    return [
        (rand(hidden), rand(qkv, hidden), rand(qkv), rand(hidden, hidden), rand(2 * inner, hidden), rand(hidden, inner))
        for _ in range(count)
    ]


def by_cublas(hidden: Tensor, weights: Weights) -> None:
    norm, qkv, bias, output, gate_up, down = weights
    mixed = torch.nn.functional.linear(rms_norm(hidden, norm, EPS), qkv, bias)
    hidden.addmm_(mixed[:, : hidden.shape[1]], output.t())
    both = torch.nn.functional.linear(rms_norm(hidden, norm, EPS), gate_up)
    hidden.addmm_(silu_mul(*both.chunk(2, -1)), down.t())


def by_gemv(hidden: Tensor, weights: Weights, launches: tuple[Launch, Launch, Launch]) -> None:
    norm, qkv, bias, output, gate_up, down = weights
    first, gated, last = launches
    mixed = gemv(hidden, qkv, bias, norm=(norm, EPS), launch=first)
    gemv(mixed[:, : hidden.shape[1]], output, out=hidden, launch=first)
    gemv(gated_gemv(hidden, gate_up, norm=(norm, EPS), launch=gated), down, out=hidden, launch=last)


def seconds(work: Callable[[], None], repeats: int = 20) -> float:
    """Of one replay of the work as a CUDA graph: the least of a few runs of many."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()
        graph.replay()
        best = float("inf")
        for _ in range(3):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats):
                graph.replay()
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end) / repeats / 1e3)
    return best


def candidates(rows: int, hidden: int, inner: int) -> list[tuple[Launch, Launch, Launch]]:
    """One launch for all three kinds at a time, varied in each respect."""
    found = []
    for outputs, inputs, warps, early in product((1, 2, 4), (512, 1024, 2048), (4, 8), (False, True)):
        if inputs * outputs * rows <= 8192 and inputs >= 128 * warps:
            sizes = [min(inputs, 1 << (width - 1).bit_length()) for width in (hidden, hidden, inner)]
            found.append(tuple(Launch(outputs, size, warps, early) for size in sizes))
    return found  # type: ignore[return-value]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=40.0, help="of the sweep, over all shapes")
    options = parser.parse_args()
    rows: list[Row] = []
    details: dict[str, object] = {"bandwidth: of the data sheet, of a copy": [peak_speed(), copy_speed()]}
    began = time.perf_counter()
    for part, (name, shape) in enumerate(SHAPES.items(), 1):
        layers = make_layers(shape)
        floor = 1e6 * sum(w.numel() * w.element_size() for w in layers[0]) / peak_speed()
        for count in (1, 2, 4):
            start = torch.randn(count, shape[0], dtype=torch.bfloat16, device="cuda")

            def chain(one: Callable[[Tensor, Weights], None], start: Tensor = start, layers: list = layers) -> float:
                hidden = start.clone()
                return 1e6 * seconds(lambda: [one(hidden, w) for w in layers] and None) / len(layers)

            peer = chain(by_cublas)
            own = (
                plan(count, shape[0], start.device),
                plan(count, shape[0], start.device),
                plan(count, shape[2], start.device),
            )
            value = chain(lambda h, w, own=own: by_gemv(h, w, own))
            rows.append(Row(f"{name}, {count} rows", value, "us/layer", peer, peer / value, floor, None, None))
            print(f"{name}, {count} rows: {value:.2f} us a layer, cuBLAS {peer:.2f}, floor {floor:.2f}", flush=True)
            sweep = []
            for launches in candidates(count, shape[0], shape[2]):
                if time.perf_counter() - began > options.seconds * part / len(SHAPES):
                    break
                try:
                    sweep.append((chain(lambda h, w, own=launches: by_gemv(h, w, own)), str(launches[0])))
                except Exception as error:  # a launch that does not fit
                    sweep.append((float("inf"), f"{launches[0]}: {error}"[:200]))
            details[f"{name}, {count} rows: sweep"] = sorted(sweep)[:12] + sorted(sweep)[-2:]
            for line in sorted(sweep)[:6]:
                print("   ", line, flush=True)
            if options.json is not None:
                write_json(
                    options.json,
                    envelope(
                        what="products of a few rows", command="python -m benchmarks.gemv", rows=rows, details=details
                    ),
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
