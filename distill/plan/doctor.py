"""`distill doctor`: is this machine fit for the work, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.plan.endpoint import check_teacher
from distill.plan.finding import Finding, failed, fine, warned
from distill.plan.show import size
from distill.recipe.generate import CodeJob
from distill.recipe.schema import Recipe
from distill.recipe.train import KdEntry, OnPolicyEntry
from distill.sandbox.run import check_available
from distill.sandbox.types import SandboxError

_GIB = 1 << 30
_DISK_LEAST = 2 * _GIB
_DISK_GOOD = 20 * _GIB
_MEMORY_LEAST = 4 * _GIB
_PYTHONS = ((3, 11), (3, 12))
# Asked in a process of its own: a torch that is broken or whose driver hangs must not take the doctor with it.
_ASK_TORCH = """
import json, torch
from distill.model.precision import has_fast_bfloat16
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({
    "version": torch.__version__, "built_for": torch.version.cuda, "threads": torch.get_num_threads(),
    "devices": [[p.name, p.total_memory, p.major, p.minor] for p in names],
    "fast_bfloat16": has_fast_bfloat16("cpu"),
}))
"""


@dataclass(frozen=True)
class _Torch:
    version: str
    built_for: str | None
    threads: int
    devices: list[tuple[str, int, int, int]]
    fast_bfloat16: bool


def examine(recipe: Recipe | None, *, console: Console) -> bool:
    """Print every finding with its remedy; True where nothing required fails."""
    findings = list(find(recipe))
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    styles: dict[str, tuple[Literal["ok", "warn", "FAIL"], str]] = {
        "ok": ("ok", "green"),
        "warn": ("warn", "yellow"),
        "fail": ("FAIL", "bold red"),
    }
    for finding in findings:
        word, style = styles[finding.status]
        table.add_row(Text(word, style=style), finding.name, Text(finding.detail))
        if finding.remedy:
            table.add_row("", "", Text(f"-> {finding.remedy}", style="bold"))
    console.print(table)
    failures = sum(finding.status == "fail" for finding in findings)
    console.print(f"{failures} required check(s) failed" if failures else "nothing required is missing")
    return failures == 0


def find(recipe: Recipe | None) -> Iterator[Finding]:
    """Every check in turn; those of the teacher and the models only with a recipe."""
    yield _python()
    yield from _packages()
    yield from _torch()
    yield _memory()
    yield _disk(Path(recipe.output_dir) if recipe else Path("."))
    yield _bubblewrap(required=recipe is not None and _wants_bubblewrap(recipe))
    if recipe is not None:
        for teacher in (recipe.teacher, *recipe.teachers):
            yield check_teacher(teacher, os.environ)
        yield from _models(recipe)
        yield from _wandb(recipe)


def _python() -> Finding:
    if sys.version_info[:2] in _PYTHONS:
        return fine("Python", platform.python_version())
    return failed("Python", platform.python_version(), "use Python 3.11 or 3.12, e.g. `uv venv --python 3.12`")


def _packages() -> Iterator[Finding]:
    """Installed versions against the ranges that the project declares."""
    try:
        declared = importlib.metadata.requires("distill") or []
    except importlib.metadata.PackageNotFoundError:
        yield warned("packages", "distill itself is not installed, its ranges are unknown", "pip install -e .")
        return
    wrong, right = [], 0
    for line in declared:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            right += 1
        else:
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        yield failed("packages", "; ".join(wrong), "pip install -e . -c constraints.txt")
    else:
        yield fine("packages", f"{right} dependencies, all within their ranges")


def _torch() -> Iterator[Finding]:
    asked = _ask_torch()
    if isinstance(asked, str):
        yield failed("torch", f"does not import: {asked}", "pip install -e . -c constraints.txt")
        return
    yield fine("torch", f"{asked.version}, built for {'CUDA ' + asked.built_for if asked.built_for else 'CPU'}")
    for name, memory, major, minor in asked.devices:
        yield fine("device", f"{name}, {size(memory)}, compute capability {major}.{minor}")
    if not asked.devices:
        driver = shutil.which("nvidia-smi") is not None
        if driver:
            yield warned(
                "device",
                "an NVIDIA driver is installed but torch sees no GPU",
                "run `nvidia-smi`; install a CUDA build of torch that the driver supports",
            )
        else:
            yield fine("device", "CPU only: right for the demo, slow for anything of a billion parameters")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    detail = f"torch uses {asked.threads} of {cores} cores"
    if asked.threads > cores:
        yield warned("threads", detail, f"set OMP_NUM_THREADS={cores}: more threads than cores slow each other down")
    else:
        yield fine("threads", detail)
    if not asked.devices and not asked.fast_bfloat16:
        yield fine("bfloat16", "far slower than float32 on this CPU; `auto` takes float32")


def _ask_torch() -> _Torch | str:
    """What torch says of itself, or the last line of its failure."""
    command = [sys.executable, "-c", _ASK_TORCH]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "no answer within 120 s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    devices = [(name, memory, major, minor) for name, memory, major, minor in said["devices"]]
    return _Torch(said["version"], said["built_for"], said["threads"], devices, said["fast_bfloat16"])


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total < _MEMORY_LEAST:
        return warned("memory", size(total), "4 GiB is the least that the demo runs well in")
    return fine("memory", size(total))


def _disk(folder: Path) -> Finding:
    """Free room where the runs go (the nearest folder that exists)."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{size(free)} free at {folder}"
    if not os.access(place, os.W_OK):
        return failed("disk", f"{folder} cannot be written", "set output_dir to a folder of yours")
    if free < _DISK_LEAST:
        return failed("disk", detail, "free some room, or set output_dir to another disk")
    if free < _DISK_GOOD:
        return warned("disk", detail, "enough for the demo; checkpoints of a 7B model take 15 GB each")
    return fine("disk", detail)


def _wants_bubblewrap(recipe: Recipe) -> bool:
    jobs = any(
        isinstance(job, CodeJob) and job.verdict == "tests" and job.isolation == "bubblewrap" for job in recipe.generate
    )
    evaluate = recipe.evaluate
    return jobs or (evaluate is not None and "code" in evaluate.kinds and evaluate.isolation == "bubblewrap")


def _bubblewrap(*, required: bool) -> Finding:
    """Whether the sandbox is there, and whether this kernel lets it start a guest."""
    try:
        check_available("bubblewrap")
    except SandboxError as error:
        remedy = error.remedy or "apt-get install bubblewrap, or `isolation: none` to run code unprotected"
        return (failed if required else warned)("bubblewrap", f"generated code cannot be run: {error.message}", remedy)
    return fine("bubblewrap", "a sandbox starts and answers")


def _models(recipe: Recipe) -> Iterator[Finding]:
    """Folders of weights that the recipe names; a hub id is not looked up."""
    named = {"teacher weights": recipe.teacher_weights(), "student": recipe.student.model if recipe.student else None}
    for entry in recipe.train:
        if isinstance(entry, KdEntry | OnPolicyEntry):
            named |= {f"weights of {name}": path for name, path in recipe.scoring_weights(entry).items()}
    for what, model in named.items():
        if model is None:
            continue
        folder = Path(model)
        if not folder.is_dir():
            looks_local = model.startswith((".", "/", "~")) or model.count("/") != 1 or folder.parent.is_dir()
            if looks_local:
                yield failed(what, f"no folder {model}", "mend the path in the recipe")
            else:
                yield fine(what, f"{model} (a hub id, fetched when needed)")
            continue
        missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
        if not list(folder.glob("*.safetensors")):
            missing.append("*.safetensors")
        if missing:
            yield failed(what, f"{model} has no {', '.join(missing)}", "copy the whole model folder")
        else:
            yield fine(what, model)


def _wandb(recipe: Recipe) -> Iterator[Finding]:
    if recipe.track.wandb != "online":
        return
    netrc = Path.home() / ".netrc"
    known = "WANDB_API_KEY" in os.environ or (netrc.is_file() and "api.wandb.ai" in netrc.read_text())
    if known:
        yield fine("Weights & Biases", "online, a login is there")
    else:
        yield failed("Weights & Biases", "online, but nobody is logged in", "`wandb login`, or track.wandb: offline")
