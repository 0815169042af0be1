"""How paged decode is best cut up, for one sequence alone and for batches.

    python -m benchmarks.paged_sweep [--write] [--json PATH]

Keys of a step, warps, stages, the programs that a launch is made of, and what one of them reads at least, each timed in
a CUDA graph; microseconds of one layer. For each head size the launch wins that is least slower than the best of each
shape, on average; --write puts it into `distill/kernels/paged_launches.py`. Needs a GPU.
"""

from __future__ import annotations

import argparse
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.common import write_json
from benchmarks.gpu_models import peak_speed
from benchmarks.paged_bandwidth import seconds
from distill.kernels import paged_launches
from distill.kernels.paged_attention import paged_decode
from distill.kernels.paged_launches import DecodeLaunch

_BLOCK = 32
_PROGRAMS = (132, 264)
_TOKENS = (128, 256, 512)  # that a program reads at least
_CUTS = {64: [(64, 2, 2), (128, 4, 2)], 128: [(64, 4, 2), (128, 4, 2)]}
_PROCESSES = 11


@dataclass(frozen=True)
class Shape:
    """Query heads, KV heads, head size, sequences, tokens of each, and tokens that their tables have room for."""

    heads: int
    kv_heads: int
    dim: int
    rows: int
    length: int
    room: int


_SHAPES = [
    *(Shape(14, 2, 64, *rest) for rest in ((1, 256, 2048), (1, 8192, 8192), (64, 512, 2048))),
    *(Shape(28, 4, 128, *rest) for rest in ((1, 256, 2048), (8, 512, 2048), (64, 512, 2048))),
    *(Shape(32, 4, 128, *rest) for rest in ((1, 8192, 8192), (1, 32768, 32768), (32, 8192, 8192), (8, 32768, 32768))),
    *(Shape(8, 8, 128, *rest) for rest in ((1, 8192, 8192), (1, 32768, 32768), (16, 8192, 8192), (4, 32768, 32768))),
]


def compile_one(job: tuple[tuple[int, int, int], Shape, int]) -> None:
    """Fills Triton's cache on disk, before anything is timed: for few splits and for many."""
    cut, shape, room = job
    try:
        Decode(replace(shape, rows=1, length=64, room=room), DecodeLaunch(*cut, 1024, 32))()
    except Exception as error:  # seen again, and told, when it is timed
        print(cut, shape, type(error).__name__, flush=True)


class Decode:
    """One call of decode on random numbers, in blocks of random order, again and again."""

    def __init__(self, shape: Shape, how: DecodeLaunch | None = None) -> None:
        blocks = shape.length // _BLOCK
        size = (shape.rows * blocks, shape.kv_heads, _BLOCK, shape.dim)
        self.keys, self.values = (torch.randn(*size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        order = torch.randperm(shape.rows * blocks, device="cuda", dtype=torch.int32).view(shape.rows, blocks)
        self.tables = torch.zeros(shape.rows, shape.room // _BLOCK, device="cuda", dtype=torch.int32)
        self.tables[:, :blocks] = order
        self.lengths = torch.full((shape.rows,), shape.length, device="cuda", dtype=torch.int64)
        self.query = torch.randn(shape.rows, shape.heads, shape.dim, device="cuda", dtype=torch.bfloat16)
        self.arrived = torch.zeros(shape.rows * shape.kv_heads, dtype=torch.int32, device="cuda")
        self.how = how
        self.scale = shape.dim**-0.5

    def __call__(self) -> torch.Tensor:
        return paged_decode(
            self.query,
            self.keys,
            self.values,
            self.tables,
            self.lengths,
            scale=self.scale,
            arrived=self.arrived,
            launch=self.how,
        )


def measure(shape: Shape) -> list[dict[str, object]]:
    """Every way to cut it up with its microseconds, the best first; one that fails is left out."""
    call = Decode(shape)
    call.how = None
    expected = call().float()
    num_bytes = 2 * shape.rows * shape.length * shape.kv_heads * shape.dim * 2
    found = []
    for cut, programs, tokens in product(_CUTS[shape.dim], _PROGRAMS, _TOKENS):
        call.how = DecodeLaunch(*cut, programs, tokens)
        try:
            distance = float((call().float() - expected).abs().max())
            taken = seconds(call)
        except Exception as error:
            print(shape, call.how, type(error).__name__, str(error)[:100], flush=True)
            continue
        found.append(
            {
                "tile, warps, stages, programs, tokens": [*cut, programs, tokens],
                "microseconds": round(taken * 1e6, 2),
                "share of bandwidth": round(num_bytes / taken / peak_speed(), 3),
                "distance": distance,
            }
        )
    return sorted(found, key=lambda row: float(str(row["microseconds"])))


def winner(ranked: list[list[dict[str, object]]]) -> DecodeLaunch:
    """The launch with the least mean ratio to the best of each shape, of those that run everywhere."""
    ratios: dict[tuple[int, int, int, int, int], list[float]] = {}
    for rows in ranked:
        for row in rows:
            how = tuple(row["tile, warps, stages, programs, tokens"])  # type: ignore[arg-type]
            ratios.setdefault(how, []).append(float(str(row["microseconds"])) / float(str(rows[0]["microseconds"])))  # type: ignore[arg-type]
    return DecodeLaunch(*min((sum(found), how) for how, found in ratios.items() if len(found) == len(ranked))[1])


def write(best: dict[int, DecodeLaunch]) -> None:
    """The module of launches with these."""
    path = Path(paged_launches.__file__)
    text = re.sub(r'GPU = ".*"', f'GPU = "{torch.cuda.get_device_name()}"', path.read_text())
    lines = "".join(f"    {dim}: {how},\n" for dim, how in best.items())
    path.write_text(re.sub(r"LAUNCHES = \{\n.*?\}\n", f"LAUNCHES = {{\n{lines}}}\n", text, flags=re.S))


def main() -> None:
    """Compile, time, print the best, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="the winners into distill/kernels/paged_launches.py")
    parser.add_argument("--compile", choices=("first", "only", "not"), default="first", help="of all that is timed")
    options = parser.parse_args()
    started = time.perf_counter()
    kinds = {(shape.heads, shape.kv_heads, shape.dim): shape for shape in _SHAPES}
    jobs = [(cut, shape, room) for shape in kinds.values() for cut in _CUTS[shape.dim] for room in (256, 8192)]
    if options.compile != "not":
        with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("spawn")) as pool:
            list(pool.map(compile_one, jobs))
        print(f"compiled after {time.perf_counter() - started:.0f} s", flush=True)
    if options.compile == "only":
        return
    result: dict[str, object] = {"gpu": torch.cuda.get_device_name(), "command": "python -m benchmarks.paged_sweep"}
    by_dim: dict[int, list[list[dict[str, object]]]] = {dim: [] for dim in _CUTS}
    for shape in _SHAPES:
        ranked = measure(shape)
        by_dim[shape.dim].append(ranked)
        result[str(shape)] = ranked
        print(shape, flush=True)
        for row in ranked[:5]:
            print("   ", row, flush=True)
        if options.json:
            write_json(options.json, result)
        torch.cuda.empty_cache()
    best = {dim: winner(found) for dim, found in by_dim.items()}
    result["best"] = {str(dim): str(how) for dim, how in best.items()}
    print(result["best"])
    if options.json:
        write_json(options.json, result)
    if options.write:
        write(best)
    print(f"done after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
