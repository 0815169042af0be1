"""The JSON envelope that every benchmark writes: what was measured, on what, and whether it meets its bar."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from distill.runs import git_revision, versions, write_atomically


@dataclass(frozen=True)
class Row:
    """One measured number. `peer` is the same number of another implementation, `ratio` ours over the peer's, `floor`
    what physics allows, `bar` what was promised and `ok` whether it is met; None where there is no such thing."""

    name: str
    value: float
    unit: str
    peer: float | None = None
    ratio: float | None = None
    floor: float | None = None
    bar: float | None = None
    ok: bool | None = None


def at_least(name: str, value: float, bar: float, unit: str = "share") -> Row:
    """A row whose bar is a lower bound."""
    return Row(name=name, value=value, unit=unit, bar=bar, ok=value >= bar)


def hardware() -> dict[str, Any]:
    """Processor, cores and threads, and the GPU where torch sees one."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def envelope(*, what: str, command: str, rows: Sequence[Row], details: Mapping[str, Any]) -> dict[str, Any]:
    """Rows with the place they come from; `details` is the benchmark's own."""
    return {
        "what": what,
        "command": command,
        "hardware": hardware(),
        "versions": versions(),
        "commit": git_revision(),
        "rows": [asdict(row) for row in rows],
        "details": dict(details),
    }


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Readable, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
