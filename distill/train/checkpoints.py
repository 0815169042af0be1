"""Checkpoints to resume from: written beside their place, flushed, sealed with sizes and SHA-256, and renamed last."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from distill.runs import canonical_json, write_atomically

CHECKPOINTS, LM_CHECKPOINT = "checkpoints", "lm.pt"  # in an entry's folder
SEAL = "seal.json"
# The older of the two is for the case that the newer is damaged on the disk.
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d+)")
_PARTIAL, _REMOVED = ".partial-", ".removed-"
_HASHING_THREADS = 4


class FileRecord(TypedDict):
    """What the seal says of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint, how many processes wrote it, and what was passed over with its reason."""

    path: Path | None
    step: int
    processes: int
    skipped: tuple[str, ...]


def write_checkpoint(
    folder: Path,
    step: int,
    write: Callable[[Path], None],
    *,
    processes: int = 1,
    is_first: bool = True,
    wait: Callable[[], None] = lambda: None,
) -> Path:
    """Make `folder/checkpoint-<step>`, whole or not at all, and remove all but the newest `KEPT`.

    Every process calls `write` with a folder in which it makes its files of `checkpoint-<step>/`; `wait` holds each
    until all are there. The first process flushes and seals what they wrote, and renames it.
    """
    place = folder / f"checkpoint-{step}"
    partial = folder / f"{_PARTIAL}{place.name}"
    if is_first:
        clear(folder)
        partial.mkdir(parents=True)
    wait()
    write(partial)
    wait()
    if is_first:
        seal(partial / place.name, processes=processes)
        if place.exists():
            _remove(place)
        (partial / place.name).rename(place)
        flush(folder)
        for path in _checkpoints(folder)[KEPT:]:
            _remove(path)
        clear(folder)
    wait()
    return place


def seal(checkpoint: Path, *, processes: int = 1) -> None:
    """Flush every file to the disk and record its size and SHA-256; a folder without this record is not whole."""
    flush_tree(checkpoint)
    files = {
        name: {"bytes": (checkpoint / name).stat().st_size, "sha256": digest}
        for name, digest in _digests(checkpoint, _files(checkpoint)).items()
    }
    record = {"processes": processes, "files": files}
    write_atomically(checkpoint / SEAL, json.dumps({**record, "sha256": _digest_of(record)}, indent=1))


def problem_of(checkpoint: Path) -> str | None:
    """Why a checkpoint is not whole, by the name of the file; None where it is."""
    try:
        record = json.loads((checkpoint / SEAL).read_bytes())
        sealed = record.pop("sha256") == _digest_of(record)
    except FileNotFoundError:
        return "it was cut off while being written"
    except (ValueError, KeyError, AttributeError, TypeError):
        sealed = False
    except OSError as error:
        return f"{SEAL} cannot be read: {error.strerror}"
    if not sealed:
        return f"{SEAL} is damaged"
    files: dict[str, FileRecord] = record["files"]
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} of {expected['bytes']} bytes"
    try:
        digests = _digests(checkpoint, list(files))
    except OSError as error:
        return f"{error.filename or 'a file'} cannot be read: {error.strerror}"
    damaged = [name for name, expected in files.items() if digests[name] != expected["sha256"]]
    return f"{', '.join(damaged)} is damaged" if damaged else None


def newest_whole(folder: Path) -> Found:
    """The checkpoint to resume from; damaged and unfinished ones that are newer are passed over by name."""
    found, step, processes = None, 0, 1
    skipped: list[tuple[int, str]] = []
    for path in _checkpoints(folder):
        problem = problem_of(path)
        if problem is None:
            found, step = path, step_of(path)
            processes = json.loads((path / SEAL).read_bytes())["processes"]
            break
        skipped.append((step_of(path), f"{path.name}: {problem}"))
    for partial in folder.glob(f"{_PARTIAL}checkpoint-*"):
        name = partial.name.removeprefix(_PARTIAL)
        if _NAME.fullmatch(name) and step_of(Path(name)) > step:
            skipped.append((step_of(Path(name)), f"{name}: it was cut off while being written"))
    return Found(found, step, processes, tuple(reason for _, reason in sorted(skipped, reverse=True)))


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done at a checkpoint, from its folder's name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def remove_after(folder: Path, step: int) -> None:
    """Remove checkpoints newer than `step`, which training writes again, and what kills left unfinished."""
    for path in _checkpoints(folder):
        if step_of(path) > step:
            _remove(path)
    clear(folder)


def clear(folder: Path) -> None:
    """Remove what was being written or removed when a process was killed."""
    for prefix in (_PARTIAL, _REMOVED):
        for path in folder.glob(f"{prefix}*"):
            shutil.rmtree(path)


def flush_tree(folder: Path) -> None:
    """Have every file of a folder, and the names in it, on the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def flush(path: Path) -> None:
    """Have one file, or the names in one folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Renamed first: a checkpoint of which a kill leaves a part has no checkpoint's name."""
    gone = path.with_name(f"{_REMOVED}{path.name}")
    if gone.exists():
        shutil.rmtree(gone)
    path.rename(gone)
    shutil.rmtree(gone)


def _checkpoints(folder: Path) -> list[Path]:
    """All that have a checkpoint's name, the newest first."""
    return sorted((p for p in folder.glob("checkpoint-*") if _NAME.fullmatch(p.name)), key=step_of, reverse=True)


def _files(checkpoint: Path) -> list[str]:
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL)
    return [str(path.relative_to(checkpoint)) for path in paths]


def _digests(checkpoint: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of whole files, several at a time: hashing gives up the interpreter's lock."""

    def digest(name: str) -> str:
        with open(checkpoint / name, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def _digest_of(record: object) -> str:
    return hashlib.sha256(canonical_json(record).encode()).hexdigest()
