"""The matrix products of a decoder layer at a few rows: launches of the fused products against cuBLAS's own.

    python -m benchmarks.gemv [--models qwen2.5-0.5b,qwen2.5-7b] [--sweep] [--json PATH]

A chain of layers as the engine computes it, attention left out: norm and QKV, output projection onto the residual, norm
and gated SiLU, down projection onto the residual; captured as one CUDA graph, with more weights than the L2 holds.
Microseconds a layer. --sweep times each product alone in many launches, with the norm left out, and then the chain with
the norms apart and the best of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import Row, envelope, write_json
from benchmarks.gpu_models import copy_speed, peak_speed
from benchmarks.gpu_timing import seconds_each
from distill.kernels.fused import rms_norm, silu_mul
from distill.kernels.gemv import Launch, gated_gemv, gemv, plan

# hidden size, outputs of QKV, intermediate size, layers of the chain
SHAPES = {"qwen2.5-0.5b": (896, 1152, 4864, 24), "qwen2.5-7b": (3584, 4608, 18944, 6)}
PRODUCTS = ("qkv", "output", "gated", "down")
PROCESSES = 12
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


def by_gemv_apart(hidden: Tensor, weights: Weights, launches: dict[str, Launch]) -> None:
    """The same with norms in launches of their own."""
    norm, qkv, bias, output, gate_up, down = weights
    mixed = gemv(rms_norm(hidden, norm, EPS), qkv, bias, launch=launches["qkv"])
    gemv(mixed[:, : hidden.shape[1]], output, out=hidden, launch=launches["output"])
    both = gated_gemv(rms_norm(hidden, norm, EPS), gate_up, launch=launches["gated"])
    gemv(both, down, out=hidden, launch=launches["down"])


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


def chain(one: Callable[[Tensor, Weights], None], start: Tensor, layers: list[Weights]) -> float:
    """Microseconds a layer."""
    hidden = start.clone()
    return 1e6 * seconds(lambda: [one(hidden, w) for w in layers] and None) / len(layers)


def single(name: str, weights: Weights, launch: Launch | None) -> Callable[[], Tensor]:
    """One product of a layer at one row, by cuBLAS without a launch."""
    _, qkv, bias, output, gate_up, down = weights
    weight = {"qkv": qkv, "output": output, "gated": gate_up, "down": down}[name]
    x = torch.zeros(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
    target = torch.zeros(1, len(weight), dtype=weight.dtype, device=weight.device)
    if name == "gated":
        return lambda: gated_gemv(x, weight, launch=launch) if launch else silu_mul(*(x @ weight.t()).chunk(2, -1))
    if name == "qkv":
        return lambda: gemv(x, weight, bias, launch=launch) if launch else torch.nn.functional.linear(x, weight, bias)
    return lambda: gemv(x, weight, out=target, launch=launch) if launch else target.addmm_(x, weight.t())


def candidates() -> list[Launch]:
    """Launches that keep at most 64 numbers of a thread under way."""
    sizes = product((1, 2, 4, 8), (512, 1024, 2048), (4, 8))
    found = [Launch(outputs, inputs, warps, True) for outputs, inputs, warps in sizes if inputs >= 128 * warps]
    return [one for one in found if one.outputs * one.inputs <= 64 * 32 * one.warps]


def compile_some(job: tuple[str, int]) -> None:
    """Fills Triton's cache on disk with a part of the kernels, before anything is timed."""
    model, part = job
    (weights,) = make_layers((*SHAPES[model][:3], 1))
    for name, launch in list(product(PRODUCTS, candidates()))[part::PROCESSES]:
        single(name, weights, launch)()


def sweep(model: str, layers: list[Weights]) -> tuple[dict[str, Launch], dict[str, object]]:
    """The best launch of each product at one row, and the microseconds of all, cuBLAS's first."""
    best, found = {}, {}
    for name in PRODUCTS:
        timed = []
        for launch in candidates():
            taken = seconds_each([single(name, weights, launch) for weights in layers])
            timed.append((taken * 1e6, launch))
        timed.sort(key=lambda pair: pair[0])
        peer = seconds_each([single(name, weights, None) for weights in layers]) * 1e6
        best[name] = timed[0][1]
        found[f"{model} {name}"] = [("cuBLAS", peer), *((str(how), taken) for taken, how in timed)]
        print(f"{model} {name}: cuBLAS {peer:.2f} us;", *(f"\n    {t:.2f} {how}" for t, how in timed[:4]), flush=True)
    return best, found


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compile", choices=("first", "only", "not"), default="first", help="of all that is timed")
    options = parser.parse_args()
    models = options.models.split(",")
    rows: list[Row] = []
    details: dict[str, object] = {"bandwidth: of the data sheet, of a copy": [peak_speed(), copy_speed()]}
    began = time.perf_counter()
    if options.sweep and options.compile != "not":
        with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
            list(pool.map(compile_some, product(models, range(PROCESSES))))
        print(f"compiled after {time.perf_counter() - began:.0f} s", flush=True)
        if options.compile == "only":
            return 0
    command = f"python -m benchmarks.gemv --models {options.models}" + " --sweep" * options.sweep
    for name in models:
        shape = SHAPES[name]
        layers = make_layers(shape)
        floor = 1e6 * sum(w.numel() * w.element_size() for w in layers[0]) / peak_speed()
        for count in (1, 2, 4):
            start = torch.randn(count, shape[0], dtype=torch.bfloat16, device="cuda")
            peer = chain(by_cublas, start, layers)
            hidden, mixed, inner = shape[:3]
            sizes = ((hidden, mixed), (hidden, inner), (inner, hidden))
            own = tuple(plan(count, width, outputs, start.device) for width, outputs in sizes)
            value = chain(lambda h, w, own=own: by_gemv(h, w, own), start, layers)
            rows.append(Row(f"{name}, {count} rows", value, "us/layer", peer, peer / value, floor))
            print(f"{name}, {count} rows: {value:.2f} us a layer, cuBLAS {peer:.2f}, floor {floor:.2f}", flush=True)
        if options.sweep:
            best, found = sweep(name, layers)
            details.update(found)
            for count in (1, 2):
                start = torch.randn(count, shape[0], dtype=torch.bfloat16, device="cuda")
                peer = chain(by_cublas, start, layers)
                value = chain(lambda h, w, best=best: by_gemv_apart(h, w, best), start, layers)
                rows.append(Row(f"{name}, {count} rows, norms apart", value, "us/layer", peer, peer / value, floor))
                print(f"{name}, {count} rows, norms apart: {value:.2f} us a layer, cuBLAS {peer:.2f}", flush=True)
        if options.json is not None:
            result = envelope(what="products of a few rows", command=command, rows=rows, details=details)
            write_json(options.json, result)
    print(f"done after {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
