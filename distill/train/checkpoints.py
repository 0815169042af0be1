"""Checkpoints to resume from: whole iff their seal, written last, matches every file."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from distill.runs import file_digest, write_atomically

SEAL = "seal.json"
_PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint, and what was passed over with its reason."""

    path: Path | None
    step: int
    skipped: tuple[str, ...]


def seal(checkpoint: Path) -> None:
    """Flush every file to the disk and record its size and digest; a folder without this record is not whole."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL)
    record = {}
    for path in files:
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
        record[str(path.relative_to(checkpoint))] = {"bytes": path.stat().st_size, "digest": file_digest(path)}
    write_atomically(checkpoint / SEAL, json.dumps(record, indent=1))


def problem_of(checkpoint: Path) -> str | None:
    """Why a checkpoint is not whole, by the name of the file; None where it is."""
    try:
        record = json.loads((checkpoint / SEAL).read_text())
    except FileNotFoundError:
        return "it was cut off while being written"
    except json.JSONDecodeError:
        return f"{SEAL} is damaged"
    for name, expected in record.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} of {expected['bytes']} bytes"
        if file_digest(path) != expected["digest"]:
            return f"{name} is damaged"
    return None


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done at a checkpoint, from its folder's name."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def newest_whole(folder: Path) -> Found:
    """The checkpoint to resume from."""
    candidates = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    skipped: list[str] = []
    for path in sorted(candidates, key=step_of, reverse=True):
        problem = problem_of(path)
        if problem is None:
            return Found(path, step_of(path), tuple(skipped))
        skipped.append(f"{path.name}: {problem}")
    return Found(None, 0, tuple(skipped))


def remove_after(folder: Path, step: int) -> None:
    """Remove checkpoints newer than `step`: they are torn, and training writes them again."""
    for path in folder.glob(f"{_PREFIX}*"):
        if path.name.removeprefix(_PREFIX).isdigit() and step_of(path) > step:
            shutil.rmtree(path)
