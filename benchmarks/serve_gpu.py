"""The engine on a GPU against transformers' own generate(), on models of real shapes with random weights.

    python -m benchmarks.serve_gpu [--models qwen2.5-0.5b,qwen2.5-7b] [--loads 1,8,64,256] [--quick] [--alone]
        [--compiled] [--json PATH] [--profile FOLDER]

--compiled: at batch 1 also beside transformers with a static cache and torch.compile, where that compiles in a minute.
Greedy, no EOS; generated tokens per second of wall time, prompts included. Weights are made on the GPU. Every part is
tried for itself, and the JSON is written anew after each. The bars are those of an H100 (3.35 TB/s of memory); what is
measured elsewhere is compared with them as they are, and scaled by this GPU's bandwidth. Warm-up is not counted.
"""

from __future__ import annotations

import argparse
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers as hf

from benchmarks.common import Row, envelope, write_json
from benchmarks.gpu_agreement import agreement
from benchmarks.gpu_compiled import compiled_speed
from benchmarks.gpu_models import H100_BYTES_PER_SECOND, MODELS, PACKED, copy_speed, make_model, peak_speed
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams

UNIT = "tokens/s"
ALL = "1,8,64,256"


@dataclass(frozen=True)
class Load:
    """Prompts, and how many tokens each gets."""

    name: str
    prompts: list[list[int]]
    new: int

    @property
    def tokens(self) -> int:
        return self.new * len(self.prompts)


def loads(*, quick: bool) -> list[Load]:
    """Batch 1, 8 and 64 of 128 + 128 tokens, and 256 requests of 100 to 1,024 + 256."""
    rng, new = random.Random(0), 32 if quick else 128
    ragged = [rng.randint(100, 1024) for _ in range(256)]
    equal = [Load(f"{n} x 128+{new}", _prompts([128] * n), new) for n in (1, 8, 64)]
    return [*equal, Load(f"256 x 100..1024+{2 * new}", _prompts(ragged), 2 * new)]


def _prompts(lengths: list[int]) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(1000, 150_000) for _ in range(length)] for length in lengths]


# what was promised, by model and load: the bar and the goal, on an H100
BARS: dict[tuple[str, int], tuple[float, float]] = {
    ("qwen2.5-0.5b", 1): (760, 1600),
    ("qwen2.5-0.5b", 64): (22_000, 32_000),
    ("qwen2.5-0.5b", 256): (31_000, 45_000),
    ("qwen2.5-7b", 1): (161, 190),
    ("qwen2.5-7b", 64): (6_500, 8_200),
    ("qwen2.5-7b", 256): (8_700, 11_500),
    ("qwen2.5-7b-w4a16", 1): (240, 450),
    ("qwen2.5-7b-w4a16", 8): (1_600, 1_600),
    ("qwen2.5-7b-w4a16", 64): (7_800, 7_800),
    ("qwen2.5-7b-w4a16", 256): (8_700, 8_700),
}


def make_engine(model: hf.PreTrainedModel, *, max_batch: int = 256, **more: object) -> Engine:
    """With room for all requests at once."""
    config = EngineConfig(
        max_batch=max_batch, kv_bytes=24 << 30, prefill_tokens=8192, max_model_len=2048, prefix_cache=False, probe=False
    )
    return Engine(model, None, replace(config, **more))  # type: ignore[arg-type]


def timed(engine: Engine, load: Load, repeats: int) -> tuple[float, list[tuple[int, ...]], dict[str, float]]:
    """The best speed of a few runs, the tokens, and where its time went."""
    best, tokens, parts = 0.0, [], {}
    for _ in range(repeats):
        before = engine.stats.prefill_seconds, engine.stats.decode_seconds, engine.stats.steps
        torch.cuda.synchronize()
        started = time.perf_counter()
        found = engine.generate(load.prompts, SamplingParams(max_tokens=load.new, ignore_eos=True))
        seconds = time.perf_counter() - started
        if load.tokens / seconds > best:
            best, tokens = load.tokens / seconds, [completion.token_ids for completion in found]
            stats = engine.stats
            after = stats.prefill_seconds, stats.decode_seconds, stats.steps
            names = ("prefill seconds", "decode seconds", "steps")
            parts = {name: b - a for name, a, b in zip(names, before, after, strict=True)}
    return best, tokens, parts


def by_generate(model: hf.PreTrainedModel, load: Load, new: int) -> tuple[float, list[tuple[int, ...]]]:
    """transformers' own loop over one padded batch, after a warm-up of two tokens."""
    width = max(map(len, load.prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in load.prompts], device="cuda")
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in load.prompts], device="cuda")
    out, started = ids, 0.0
    for count in (2, new):
        torch.cuda.synchronize()
        started = time.perf_counter()
        out = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return new * len(load.prompts) / seconds, [tuple(row[width:].tolist()) for row in out]


class Report:
    """Rows and details as they come; whatever fails is a detail too."""

    def __init__(self, path: Path | None, command: str) -> None:
        self._path = path
        self._command = command
        self.rows: list[Row] = []
        self.details: dict[str, object] = {}

    def part(self, name: str, make: Callable[[], None]) -> None:
        started = time.perf_counter()
        try:
            make()
        except Exception as error:  # one part is not to lose the others
            traceback.print_exc()
            self.details[f"{name}: failed"] = f"{type(error).__name__}: {error}"[:500]
        print(f"[{name}: {time.perf_counter() - started:.1f} s]", flush=True)
        if self._path is not None:
            found = envelope(what="engine on a GPU", command=self._command, rows=self.rows, details=self.details)
            write_json(self._path, found)

    def row(self, row: Row) -> None:
        self.rows.append(row)
        peer = "" if row.ratio is None else f", peer {row.peer:.4g}, ratio {row.ratio:.3g}"
        floor = "" if row.floor is None else f", floor {row.floor:.4g}"
        bar = "" if row.bar is None else f" (bar {row.bar:.6g}: {row.ok})"
        print(f"{row.name}: {row.value:.5g} {row.unit}{peer}{floor}{bar}", flush=True)


def measure_model(report: Report, name: str, options: argparse.Namespace) -> None:
    """All loads of one model."""
    torch.cuda.reset_peak_memory_stats()
    model = make_model(name)
    weight_bytes = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    # tied embeddings are read once, as the head; the others are looked up a row a token
    head = model.get_output_embeddings().weight
    inputs = model.get_input_embeddings().weight
    read = weight_bytes - (0 if head is inputs else inputs.numel() * inputs.element_size())
    floor = peak_speed() / read
    report.details[f"{name}: bytes of weights, read a step, floor tokens/s at batch 1"] = [weight_bytes, read, floor]
    report.details[f"{name}: the same floor by a measured copy"] = copy_speed() / read
    engine = make_engine(model)
    wanted = [int(count) for count in options.loads.split(",")]
    has_peer = not options.alone and not name.endswith(PACKED)  # transformers has no products with packed weights

    def warm_up() -> None:
        started = time.perf_counter()
        engine.generate(_prompts([128]), SamplingParams(max_tokens=2, ignore_eos=True))
        if engine.graphs is not None:
            engine.graphs.capture(None if options.loads == ALL else wanted)
            report.details[f"{name}: graphs, seconds to capture, failure"] = [
                engine.graphs.num_captured,
                engine.graphs.capture_seconds,
                engine.graphs.failure,
            ]
        report.details[f"{name}: warm-up seconds"] = time.perf_counter() - started

    def one(load: Load) -> None:
        count = len(load.prompts)
        for _ in range(2):  # steps of short prompts are captured when they come again
            prompts = load.prompts if count <= 8 else [p[:64] for p in load.prompts]
            engine.generate(prompts, SamplingParams(max_tokens=2, ignore_eos=True))
        speed, tokens, parts = timed(engine, load, 1 if count > 8 and weight_bytes > 4 << 30 else 2)
        bar, goal = BARS.get((name, count), (None, None)) if not options.quick else (None, None)
        peer, own = None, None
        if has_peer and count in (1, 64):
            peer, own = by_generate(model, load, 16)
        ratio = None if peer is None else speed / peer
        ok = None if bar is None else speed >= bar
        report.row(Row(f"{name} {load.name}", speed, UNIT, peer, ratio, floor if count == 1 else None, bar, ok))
        scale = peak_speed() / H100_BYTES_PER_SECOND
        report.details[f"{name} {load.name}"] = {
            **parts,
            "bar x bandwidth ratio": None if bar is None else bar * scale,
            "goal": goal,
            "goal x bandwidth ratio": None if goal is None else goal * scale,
            "first 16 tokens as transformers": None
            if own is None
            else sum(a[:16] == b for a, b in zip(tokens, own, strict=True)) / count,
        }
        print(report.details[f"{name} {load.name}"], flush=True)

    report.part(f"{name} warm-up", warm_up)

    def compiled() -> None:
        new = 32 if options.quick else 128
        found = compiled_speed(name, new=new)
        report.details[f"{name}: transformers, static cache and torch.compile, 1 x 128+{new}"] = found
        print(f"{name}: transformers compiled {found}", flush=True)

    for load in loads(quick=options.quick):
        if len(load.prompts) in wanted:
            report.part(f"{name} {load.name}", lambda load=load: one(load))
    if engine.graphs is not None:
        prompts = engine.graphs.prompts
        found = [prompts.num_captured, prompts.capture_seconds, prompts.failure]
        report.details[f"{name}: graphs of prompts, seconds to capture, failure"] = found
        print(f"graphs of prompts, seconds to capture, failure: {found}", flush=True)
    if options.compiled and not name.endswith(PACKED):
        report.part(f"{name} compiled", compiled)

    def agree() -> None:
        large = weight_bytes > 4 << 30
        found = agreement(engine, model, 100 if options.quick else 1000, 64 if large or options.quick else 1000)
        report.details[f"{name}: greedy tokens in {str(model.dtype).removeprefix('torch.')}"] = found
        print(found, flush=True)

    cache = engine.cache
    assert cache is not None
    report.details[f"{name}: KV bytes a token, of the cache, peak memory"] = [
        cache.bytes_per_token,
        cache.total_bytes,
        torch.cuda.max_memory_allocated(),
    ]
    if has_peer:
        report.part(f"{name} agreement", agree)
    if options.profile is not None:
        from benchmarks.gpu_profile import profile_engine

        report.part(f"{name} profile", lambda: profile_engine(engine, report, name, options.profile))


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join([*MODELS, "qwen2.5-7b" + PACKED]))
    parser.add_argument("--loads", default=ALL, help="numbers of requests")
    parser.add_argument("--compiled", action="store_true", help="transformers compiled at batch 1 too")
    parser.add_argument("--quick", action="store_true", help="a quarter of the tokens, no bars")
    parser.add_argument("--alone", action="store_true", help="without transformers")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", type=Path, help="a folder for tables of kernels and of host functions")
    options = parser.parse_args()
    hf.logging.set_verbosity_error()
    flags = " --quick" * options.quick + " --alone" * options.alone + " --compiled" * options.compiled
    flags += "" if options.loads == ALL else f" --loads {options.loads}"
    report = Report(options.json, f"python -m benchmarks.serve_gpu --models {options.models}{flags}")
    report.details["memory bandwidth: of the GPU's data sheet, of a copy"] = [peak_speed(), copy_speed()]
    for name in options.models.split(","):
        report.part(name, lambda name=name: measure_model(report, name, options))
        torch.cuda.empty_cache()
    return 0 if all(row.ok is not False for row in report.rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
