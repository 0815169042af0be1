"""FSDP2 or ZeRO-3 through accelerate on several GPUs: shares, losses, memory, going on after SIGTERM, beside one GPU.

    python -m benchmarks.sharded [--way fsdp2|deepspeed_zero3] [--processes 2] [--bf16] [--quick] [--json PATH]

Student (by `recipes/accelerate/<way>.yaml`), teacher and head (by `signal.shard`) are cut over the processes; sft and
kd have the losses of one process with whole models; a run ended by SIGTERM goes on to the uninterrupted run's weights.
On a CPU accelerate makes DDP of FSDP2: the rows that say so are missed there. ZeRO-3 runs there by `tests.train.zero3`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from benchmarks.common import Row, envelope, write_json
from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.track import read_metrics
from tests.train import tiny, zero3

ROOT = Path(__file__).parents[1]
STEPS, STOP_AT = 6, 4
WAYS = ("fsdp2", "deepspeed_zero3")
NOTHING_SEEN: dict[str, Any] = {"whole": {}, "shares": {}, "kept": {}, "processes": 0}
LOSS_BAR = 1e-4  # relative: float32 sums in another order, over six optimizer steps
BF16_BAR = 2**-8  # one rounding of a product


def main() -> int:
    """Print and write the result; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=WAYS, default=WAYS[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16, with a bar for their rounding")
    parser.add_argument("--quick", action="store_true", help="models of a few thousand parameters")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=3, metavar=("RECIPE", "REPORT", "STOP_AT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(Path(options.worker[0]), Path(options.worker[1]), int(options.worker[2]))
        return 0
    with tempfile.TemporaryDirectory() as name:
        rows, details = measure(Path(name), options.way, options.processes, bf16=options.bf16, quick=options.quick)
    for row in rows:
        print(f"{row.name:72} {row.value:10.4g} {row.unit}" + ("" if row.ok is None else f"  {row.ok}"))
    if options.json is not None:
        command = " ".join(["python -m benchmarks.sharded", *sys.argv[1:]])
        what = "sharded" if options.way == WAYS[0] else f"sharded-{options.way}"
        write_json(options.json, envelope(what=what, command=command, rows=rows, details=details))
    return 0 if all(row.ok is not False for row in rows) else 1


def measure(folder: Path, way: str, processes: int, *, bf16: bool, quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """The same entries on one GPU and on several; then one of them with a stop in the middle."""
    width = 64 if quick else 1024
    tiny.save_model(folder / "teacher", layers=8, width=width, heads=8, kv_heads=8)
    tiny.save_data(folder)
    common = {"max_steps": STEPS, "micro_batch_size": 8 // processes, "init": "student"}
    if bf16:
        common["mixed_precision"] = "bf16"
    kd = {**common, "objective": "kd", "learning_rate": 1e-4}
    sft = {**common, "objective": "sft", "learning_rate": 1e-4}
    student = {"model": str(folder / "teacher"), "layers": 4, "dtype": "float32"}
    shares = {"signal": {"kind": "live", "shard": True}}
    recipes = {
        "one": tiny.recipe(folder, sft, kd, name="one", student=student),
        "shares": tiny.recipe(folder, sft, {**kd, **shares}, name="shares", student=student),
        "stopped": tiny.recipe(folder, {**kd, **shares}, name="stopped", student=student),
    }
    reports = {
        "one": start(folder, recipes["one"], "one", processes=1),
        "shares": start(folder, recipes["shares"], "shares", way=way, processes=processes),
        "stopped": start(folder, recipes["stopped"], "stopped", way=way, processes=processes, stop_at=STOP_AT),
        "again": start(folder, recipes["stopped"], "again", way=way, processes=processes),
    }
    goes_on = f"kd: going on from step {STOP_AT}\n" in reports["again"]["said"]
    rows = [
        *curves(recipes["one"], recipes["shares"], BF16_BAR if bf16 else LOSS_BAR),
        *[
            Row(f"{what}: parameters that are not in shares", count, "tensors", bar=0, ok=count == 0)
            for what, count in reports["shares"]["whole"].items()
        ],
        *[
            Row(f"{what} tensors in shares on rank 0", count, "tensors", ok=count > 0)
            for what, count in reports["shares"]["shares"].items()
        ],
        *[
            Row(f"{what} tensors of these that are small, and kept whole beside their shares", count, "tensors")
            for what, count in reports["shares"]["kept"].items()
        ],
        Row(
            "processes that trained",
            reports["shares"]["processes"],
            "processes",
            bar=processes,
            ok=reports["shares"]["processes"] == processes,
        ),
        memory(reports["one"], reports["shares"]),
        Row(
            "exit code after SIGTERM", reports["stopped"]["code"], "code", bar=143, ok=reports["stopped"]["code"] == 143
        ),
        Row(
            "goes on from the step of the stop",
            int(goes_on),
            "of 1",
            bar=1,
            ok=goes_on,
        ),
        difference(recipes["shares"], recipes["stopped"]),
    ]
    seen = ("whole", "shares", "kept", "processes", "peak_mib", "code")
    return rows, {name: {key: report[key] for key in seen if key in report} for name, report in reports.items()}


def start(
    folder: Path, recipe: Recipe, name: str, *, way: str = "", processes: int, stop_at: int = 0
) -> dict[str, Any]:
    """Train in new processes; what they said, their exit code, and what rank 0 saw of shares and memory."""
    path, report = folder / f"{name}.json", folder / f"{name}.report"
    path.write_text(json.dumps(recipe.model_dump(mode="json")))
    worker = ["-m", "benchmarks.sharded", "--worker", str(path), str(report), str(stop_at)]
    command = [sys.executable, *worker]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    if processes > 1:
        del environment["CUDA_VISIBLE_DEVICES"]
        config = str(ROOT / f"recipes/accelerate/{way}.yaml")
        command = [sys.executable, "-m", "distill.launch", "--config_file", config]
        command += ["--num_processes", str(processes), "--main_process_port", "0", *worker]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    print(f"--- {name}: exit code {done.returncode}\n{done.stdout}{done.stderr[-3000:]}", flush=True)
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else dict(NOTHING_SEEN)
    return {**found, "code": done.returncode, "said": done.stdout, "errors": done.stderr[-3000:]}


def curves(one: Recipe, shares: Recipe, bar: float) -> list[Row]:
    """The largest relative difference between the losses of one process and of several."""
    rows = []
    for name, key in (("sft", "cross_entropy"), ("kd", "divergence")):
        found = [_curve(recipe, name, key) for recipe in (one, shares)]
        same = len(found[0]) == len(found[1]) == STEPS
        worst = max(abs(b / a - 1) for a, b in zip(*found, strict=True)) if same else float("nan")
        rows.append(
            Row(
                f"{name}: losses beside one process, largest difference",
                worst,
                "share",
                bar=bar,
                ok=worst < bar,
            )
        )
    return rows


def _curve(recipe: Recipe, name: str, key: str) -> list[float]:
    path = Run(recipe).stage("train", name).path / "metrics.jsonl"
    return [line[key] for line in read_metrics(path)] if path.exists() else []


def memory(one: dict[str, Any], shares: dict[str, Any]) -> Row:
    """Peak of a process's GPU memory beside that of one process with all of it."""
    ours, peer = shares.get("peak_mib", float("nan")), one.get("peak_mib", float("nan"))
    return Row("peak GPU memory of a process", ours, "MiB", peer=peer, ratio=ours / peer if peer else None)


def difference(whole: Recipe, stopped: Recipe) -> Row:
    """The largest difference between two students' weights."""
    paths = [Run(recipe).stage("train", "kd").path / "model/model.safetensors" for recipe in (whole, stopped)]
    if not all(path.exists() for path in paths):
        return Row("weights after stop and resume beside uninterrupted", float("nan"), "largest", bar=0, ok=False)
    ours, theirs = (load_file(path) for path in paths)
    worst = max((ours[name] - theirs[name]).abs().max().item() for name in theirs)
    return Row("weights after stop and resume beside uninterrupted", worst, "largest difference", bar=0, ok=worst == 0)


def work(path: Path, report: Path, stop_at: int) -> None:
    """One process of a run: trains, and counts which parameters are in shares when they are used."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and not torch.cuda.is_available():
        zero3.allow_cpu()
    from torch.distributed.tensor import DTensor

    from distill.train import stage
    from distill.train.callbacks import Watch
    from distill.train.kd import KDTrainer
    from distill.train.live import LiveTeacher

    seen: dict[str, Any] = {name: {} if value == {} else value for name, value in NOTHING_SEEN.items()}
    compute, ask, step_end = KDTrainer.compute_loss, LiveTeacher.__call__, Watch.on_step_end

    def count(what: str, tensors: list[torch.Tensor]) -> None:
        cut = sum(isinstance(t, DTensor) and t.to_local().numel() < t.numel() for t in tensors)
        cut += sum(zero3.is_cut(t) for t in tensors)
        seen["shares"][what], seen["whole"][what] = cut, len(tensors) - cut
        kept = sum(zero3.is_cut(t) and t.numel() > 0 for t in tensors)
        if kept:
            seen["kept"][what] = kept

    def loss(self: KDTrainer, model: torch.nn.Module, *rest: Any, **named: Any) -> Any:
        count("student", list(model.parameters()))
        seen["processes"] = self.accelerator.num_processes
        return compute(self, model, *rest, **named)

    def teacher(self: LiveTeacher, batch: Any) -> Any:
        count("teacher", list(self.model.parameters()))
        count("teacher's head", [self.model.get_output_embeddings().weight])
        return ask(self, batch)

    def end(self: Watch, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == stop_at and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        step_end(self, args, state, control, **rest)

    KDTrainer.compute_loss, LiveTeacher.__call__, Watch.on_step_end = loss, teacher, end  # type: ignore[method-assign,assignment]
    recipe = Recipe.model_validate_json(path.read_text())
    try:
        stage.run(recipe, Run(recipe), console=Console(file=sys.stdout, width=200))
    finally:
        if os.environ.get("RANK", "0") == "0":
            peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
            report.write_text(json.dumps({**seen, "peak_mib": peak}))


if __name__ == "__main__":
    sys.exit(main())
