"""Which launch of the packed product is fastest, by shape and rows: what `launch_for` chooses from.

    python -m benchmarks.w4a16_sweep --json PATH

Every launch is timed in a CUDA graph over copies of the weight that no cache holds together. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch
import triton

from benchmarks.common import write_json
from benchmarks.gpu_models import copy_speed
from benchmarks.gpu_timing import copies_for, seconds_each
from distill.kernels.w4a16_product import Form, Launch, counters, launch_for, launch_product

SHAPES = ((4096, 4096), (14336, 4096), (3584, 3584), (512, 3584), (18944, 3584), (3584, 18944))
ROWS = (1, 16, 32, 64, 128, 256)
GROUP = 128
SMALL = [(4, 4), (8, 8), (8, 4), (2, 2), (2, 1), (1, 1), (16, 8)]  # slabs, warps
WIDE = {32: [(4, 4), (8, 4), (8, 8)], 64: [(4, 4), (8, 4), (8, 8), (16, 8)], 128: [(4, 4), (8, 8)]}
PROGRAMS = (1, 2, 3, 4, 6, 8)  # a multiprocessor


def launches(rows: int, form: Form, processors: int) -> Iterator[Launch]:
    """Every candidate: its splits bring about as many programs as PROGRAMS say, and are no more than the tiles."""
    wide = max(16, min(128, triton.next_power_of_2(rows)))
    for slabs, warps in SMALL if wide == 16 else WIDE[wide]:
        blocks = triton.cdiv(form.slabs, slabs) * triton.cdiv(rows, wide)
        splits = {max(1, min(32, form.tiles, round(n * processors / blocks))) for n in PROGRAMS}
        for stages in (3, 4, 6) if wide <= 32 else (3, 4) if wide == 64 else (2, 3):
            for number in sorted(splits):
                yield Launch(slabs, wide, number, warps, stages)


def weights(form: Form, copies: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Random words, one scale for all."""
    words = torch.randint(
        -(2**31), 2**31 - 1, (copies, 1, form.slabs, form.tiles, 256), dtype=torch.int32, device="cuda"
    )
    cell = torch.tensor([0.004], dtype=torch.bfloat16).view(torch.int16).item()
    grid = torch.full((form.inputs // form.group_size, form.slabs * 16), cell, dtype=torch.int32, device="cuda")
    return [(words[i], grid.clone(), counters(form, words.device)) for i in range(copies)]


def compile_all(how: list[Launch]) -> None:
    """Fills Triton's cache on disk: in several processes at once before anything is timed."""
    form = Form(512, 4096, 4, GROUP, False, False)
    (own,) = weights(form, 1)
    x = torch.zeros(how[0].rows, form.inputs, dtype=torch.bfloat16, device="cuda")
    for launch in how:
        try:
            launch_product(x, *own, form, None, torch.bfloat16, launch)
        except Exception as error:  # too much shared memory, say: seen again and reported when it is timed
            print(launch, type(error).__name__, flush=True)


def variants(processors: int) -> list[list[Launch]]:
    """One launch a kernel to be compiled, in as many lists as there are processes."""
    found: dict[tuple[int, ...], Launch] = {}
    for rows in ROWS:
        for out, width in SHAPES:
            for how in launches(rows, Form(out, width, 4, GROUP, False, False), processors):
                found[(how.slabs, how.rows, how.splits > 1, how.warps, how.stages)] = how
    return [list(found.values())[i::14] for i in range(14)]


def sweep(rows: int, out: int, width: int, processors: int) -> list[dict[str, object]]:
    """Seconds of every launch, fastest first, and of the one that `launch_for` takes."""
    form = Form(out, width, 4, GROUP, False, False)
    num_bytes = out * width // 2 + out * width // GROUP * 4
    sets = weights(form, copies_for(num_bytes))
    x = torch.randn(rows, width, dtype=torch.bfloat16, device="cuda")
    found = []
    chosen = launch_for(rows, form)
    for how in dict.fromkeys([*launches(rows, form, processors), chosen]):
        try:
            calls = [lambda own=own, how=how: launch_product(x, *own, form, None, torch.bfloat16, how) for own in sets]
            seconds = seconds_each(calls, rounds=3)
        except Exception as error:
            found.append({**asdict(how), "error": f"{type(error).__name__}: {str(error)[:80]}", "microseconds": 1e9})
            torch.cuda.synchronize()
            continue
        found.append({**asdict(how), "microseconds": seconds * 1e6, "TB/s": num_bytes / seconds / 1e12,
                      "chosen": how == chosen})  # fmt: skip
    return sorted(found, key=lambda row: row["microseconds"])  # type: ignore[arg-type, return-value]


def main() -> None:
    """Compile, time, print the best; all of it as JSON after every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120.0, help="begin no shape after this time")
    options = parser.parse_args()
    started = time.perf_counter()
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    with ProcessPoolExecutor(14, mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_all, variants(processors)))
    print(f"compiled after {time.perf_counter() - started:.0f} s", flush=True)
    result: dict[str, object] = {"gpu": torch.cuda.get_device_name(), "copy_speed": copy_speed()}
    print(json.dumps(result))
    for rows in ROWS:
        for out, width in SHAPES:
            if time.perf_counter() - started > options.seconds:
                print("out of time")
                return
            name = f"{out} x {width}, {rows} rows"
            result[name] = ranked = sweep(rows, out, width, processors)
            print(name, json.dumps(ranked[:2]), [row for row in ranked if row.get("chosen")][:1], flush=True)
            write_json(options.json, result)
    print(f"done after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
