"""Which launch of the packed product is fastest: writes `distill/kernels/w4a16_launches.py`, from which it is taken.

    python -m benchmarks.w4a16_sweep [--write] [--json PATH]

Every candidate is timed in a CUDA graph over copies of the weight that no cache holds together, for the joined layers
of Qwen2.5-7B and two more; the least sum of times wins, for each number of rows that a program can have. Needs a GPU.
"""

from __future__ import annotations

import argparse
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.common import write_json
from benchmarks.gpu_timing import copies_for, seconds_each
from distill.kernels import w4a16_launches
from distill.kernels.w4a16_launches import Kind
from distill.kernels.w4a16_product import Form, counters, launch_product, num_splits

SHAPES = ((4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944), (4096, 4096), (14336, 4096))
GROUP = 128
ROWS = {16: (1, 16), 32: (32,), 64: (64,), 128: (128, 256)}  # timed, by the rows of a program
CANDIDATES = {  # slabs, warps, stages, scaled
    16: [(4, 4, 4, False), (4, 4, 4, True), (4, 4, 3, True), (8, 8, 4, True), (8, 4, 4, True)],
    32: [(4, 4, 4, False), (4, 4, 4, True), (8, 8, 4, True), (8, 4, 4, True)],
    64: [(4, 4, 3, False), (4, 4, 3, True), (4, 4, 4, True), (8, 8, 3, True), (8, 8, 4, True), (8, 4, 3, True),
         (16, 8, 3, True)],
    128: [(4, 4, 3, False), (4, 4, 3, True), (8, 8, 3, True), (8, 8, 2, True), (16, 8, 3, True), (16, 8, 2, True)],
}  # fmt: skip
EARLY = {16: (False, True), 32: (False, True), 64: (False, True), 128: (False,)}  # may the next kernel begin meanwhile
PROGRAMS = {16: (2, 3), 32: (2, 3), 64: (1, 2, 3), 128: (1, 2)}
PROCESSES = 14
Weight = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def kinds(width: int) -> list[Kind]:
    """The candidates for programs of so many rows."""
    found = product(CANDIDATES[width], PROGRAMS[width], EARLY[width])
    return [Kind(*own, programs, early) for own, programs, early in found]


def weights(form: Form, copies: int) -> list[Weight]:
    """Random words, one scale for all."""
    shape = (copies, 1, form.slabs, form.tiles, 256)
    words = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device="cuda")
    cell = torch.tensor([0.004], dtype=torch.bfloat16).view(torch.int16).item()
    grid = torch.full((form.inputs // form.group_size, form.slabs * 16), cell, dtype=torch.int32, device="cuda")
    return [(words[i], grid.clone(), counters(form, words.device)) for i in range(copies)]


def compile_some(part: int) -> None:
    """Fills Triton's cache on disk with every PROCESSES-th kernel, before anything is timed."""
    wanted = {}
    for width, found in ROWS.items():
        for kind, (out, wide) in product(kinds(width), SHAPES):
            splits = num_splits(max(found), Form(out, wide, 4, GROUP, False, False), width, kind) > 1
            form = (kind.slabs, kind.warps, kind.stages, kind.scaled, kind.early)
            wanted[(width, *form, splits)] = (width, kind, out, wide)
    for width, kind, out, wide in list(wanted.values())[part::PROCESSES]:
        form = Form(out, wide, 4, GROUP, False, False)
        x = torch.zeros(max(ROWS[width]), wide, dtype=torch.bfloat16, device="cuda")
        try:
            launch_product(x, *weights(form, 1)[0], form, None, torch.bfloat16, width, kind)
        except Exception as error:  # seen again, and told, when it is timed
            print(kind, type(error).__name__, flush=True)


def microseconds(width: int, kind: Kind, form: Form, own: list[Weight]) -> list[float]:
    """Of one product at each number of rows."""
    found = []
    for rows in ROWS[width]:
        x = torch.randn(rows, form.inputs, dtype=torch.bfloat16, device="cuda")
        calls = [lambda w=w, x=x: launch_product(x, *w, form, None, torch.bfloat16, width, kind) for w in own]
        found.append(seconds_each(calls, rounds=3) * 1e6)
    return found


def rank(width: int) -> list[dict[str, object]]:
    """Every candidate with its times by shape, best first; one that fails is last."""
    times: dict[Kind, dict[str, list[float]]] = {kind: {} for kind in kinds(width)}
    for out, wide in SHAPES:
        form = Form(out, wide, 4, GROUP, False, False)
        own = weights(form, copies_for(out * wide // 2))
        for kind in list(times):
            try:
                times[kind][f"{out} x {wide}"] = microseconds(width, kind, form, own)
            except Exception as error:
                print(width, kind, type(error).__name__, str(error)[:100], flush=True)
                del times[kind]
                torch.cuda.synchronize()
    rows = [{**asdict(kind), "sum": sum(map(sum, found.values())), "times": found} for kind, found in times.items()]
    return sorted(rows, key=lambda row: float(str(row["sum"])))


def write(best: dict[int, Kind]) -> None:
    """The module of launches with these."""
    path = Path(w4a16_launches.__file__)
    text = re.sub(r'GPU = ".*"', f'GPU = "{torch.cuda.get_device_name()}"', path.read_text())
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    text = re.sub(r"PROCESSORS = \d+", f"PROCESSORS = {processors}", text)
    lines = "".join(f"    {width}: {kind},\n" for width, kind in best.items())
    path.write_text(re.sub(r"KINDS = \{\n.*?\}\n", f"KINDS = {{\n{lines}}}\n", text, flags=re.S))


def main() -> None:
    """Compile, time, print the best three of each, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="the winners into distill/kernels/w4a16_launches.py")
    parser.add_argument("--compile", choices=("first", "only", "not"), default="first", help="of all that is timed")
    options = parser.parse_args()
    started = time.perf_counter()
    if options.compile != "not":
        with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
            list(pool.map(compile_some, range(PROCESSES)))
        print(f"compiled after {time.perf_counter() - started:.0f} s", flush=True)
    if options.compile == "only":
        return
    result: dict[str, object] = {"gpu": torch.cuda.get_device_name(), "group": GROUP, "rows": ROWS}
    best = dict(w4a16_launches.KINDS)
    for width in ROWS:
        ranked = rank(width)
        result[str(width)] = ranked
        best[width] = Kind(**{name: ranked[0][name] for name in asdict(best[width])})  # type: ignore[arg-type]
        for row in ranked[:3]:
            print(width, row, flush=True)
        if options.json:
            write_json(options.json, result)
    if options.write:
        write(best)
    print(f"done after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
