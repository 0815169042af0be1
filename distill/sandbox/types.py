"""What goes into the sandbox and what comes out."""

from dataclasses import dataclass
from typing import Literal

from distill.errors import DistillError

Isolation = Literal["bubblewrap", "none"]


class SandboxError(DistillError):
    """The sandbox itself does not work on this machine; never a verdict on a candidate."""


@dataclass(frozen=True)
class Limits:
    """What one candidate may use up, all its tests together."""

    cpu_seconds: int = 2
    wall_seconds: float = 4.0
    memory_bytes: int = 256 * 2**20  # address space
    processes: int = 16  # threads, as new processes are forbidden
    file_bytes: int = 2**20  # size of any file it writes
    output_bytes: int = 2**18  # of its results; what it prints goes nowhere


@dataclass(frozen=True)
class Job:
    """A candidate and the tests it has to pass."""

    code: str
    tests: tuple[str, ...]
    entry_point: str | None = None


@dataclass(frozen=True)
class SandboxVerdict:
    """The outcome of one job.

    `reason` is "passed", "failed" (wrong values), "no function", "no tests", "timeout", "memory", "output",
    "forbidden", or "error: ..." with the candidate's exception.
    """

    ok: bool
    passed: int
    total: int
    reason: str
    seconds: float
