"""One result of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it stands, and what to do where it is not well. `fail` is for what is required."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str | None = None


def fine(name: str, detail: str) -> Finding:
    return Finding(name, "ok", detail)


def warned(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name, "warn", detail, remedy)


def failed(name: str, detail: str, remedy: str) -> Finding:
    return Finding(name, "fail", detail, remedy)
