"""The sandbox: what a verdict costs, beside a fresh bubblewrap and a plain interpreter for each candidate, and what
hostile programs get done in it, with and without the system call filter.

    python -m benchmarks.sandbox [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import Row, envelope, write_json
from distill.sandbox import host
from distill.sandbox.checks import parse_tests
from distill.sandbox.host import Guest
from distill.sandbox.run import run_many
from distill.sandbox.types import Job, Limits
from tests.sandbox.corpus import FORGED_TESTS, World, payloads, world

CODE = "def f(x):\n    return x + 1\n# {}"
LITERALS = ("assert f(1) == 2", "assert f(2) == 3", "assert f(-1) == 0")
OTHERS = ("assert abs(f(1) - 2) < 1e-9", "assert f(2) > f(1)", "y = f(-1)\nassert y == 0")
OVERHEAD_MS, VERDICTS_A_SECOND = 25.0, 60.0
QUICK = Limits(cpu_seconds=1, wall_seconds=0.5)


def milliseconds(act: Callable[[int], object], count: int) -> list[float]:
    """How long each call took, in order of size."""
    taken = []
    for number in range(count):
        start = time.perf_counter()
        act(number)
        taken.append((time.perf_counter() - start) * 1e3)
    return sorted(taken)


def costs(count: int) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Milliseconds a verdict on a trivial candidate, which are all overhead: ours, and the ways we did not take."""
    python = [os.path.realpath(sys.executable), "-I", "-S", "-E", "-c"]
    arguments = host.command("bubblewrap")
    fresh = arguments[: arguments.index("-c") + 1]
    program = CODE + "\nassert f(1) == 2 and f(2) == 3 and f(-1) == 0"

    def run_program(prefix: list[str]) -> Callable[[int], object]:
        return lambda number: subprocess.run([*prefix, program.format(number)], check=True, env={})

    with Guest("bubblewrap") as guest:
        guest.start()

        def run_guest(tests: tuple[str, ...]) -> Callable[[int], object]:
            def act(number: int) -> None:
                assert guest.run(CODE.format(number), parse_tests(tests, "f"), "f", Limits()).ok

            return act

        measured = {
            "warm guest, literal tests": milliseconds(run_guest(LITERALS), count),
            "warm guest, other tests": milliseconds(run_guest(OTHERS), count),
        }
    measured["python -I -S for each, no sandbox, exit code believed"] = milliseconds(run_program(python), count // 4)
    measured["bwrap + python -I -S for each, exit code believed"] = milliseconds(run_program(fresh), count // 4)
    measured["start of a guest"] = milliseconds(_start_guest, count // 8)
    table = {
        name: {"p50": statistics.median(taken), "p95": taken[int(len(taken) * 0.95)]}
        for name, taken in measured.items()
    }
    peer = table["bwrap + python -I -S for each, exit code believed"]["p50"]
    rows = [
        Row(
            name=f"{name}: p95 of a verdict",
            value=table[name]["p95"],
            unit="ms",
            peer=peer,
            ratio=table[name]["p95"] / peer,
            bar=OVERHEAD_MS,
            ok=table[name]["p95"] <= OVERHEAD_MS,
        )
        for name in ("warm guest, literal tests", "warm guest, other tests")
    ]
    return rows, table


def _start_guest(_number: int) -> None:
    with Guest("bubblewrap") as guest:
        guest.start()


def rates(count: int) -> list[Row]:
    """Verdicts a second of a pool with 2 workers, its start included."""
    rows = []
    for name, tests in (("literal tests", LITERALS), ("other tests", OTHERS)):
        jobs = [Job(CODE.format(number), tests, "f") for number in range(count)]
        start = time.perf_counter()
        assert all(verdict.ok for verdict in run_many(jobs, workers=2))
        rate = count / (time.perf_counter() - start)
        bar = VERDICTS_A_SECOND
        rows.append(Row(name=f"pool of 2, {name}", value=rate, unit="verdicts/s", bar=bar, ok=rate >= bar))
    return rows


@dataclass
class Attack:
    """What the corpus got done."""

    programs: int = 0
    runs: int = 0
    escapes: list[str] | None = None
    forged: list[str] | None = None


def attack(target: World) -> Attack:
    """All hostile programs, forgers against every form of test. An escape or a forgery is named."""
    found = Attack(escapes=[], forged=[])
    assert found.escapes is not None and found.forged is not None
    with Guest("bubblewrap") as guest:
        for payload in payloads():
            found.programs += 1
            forms = FORGED_TESTS if payload.kind == "forge" else {"evidence": target.evidence()}
            bad = []
            for form, tests in forms.items():
                found.runs += 1
                verdict = guest.run(target.aim(payload.code), parse_tests(tests, "f"), "f", QUICK)
                bad += [form] if verdict.passed else []
            if payload.kind == "forge" and bad:
                found.forged.append(f"{payload.name} ({', '.join(bad)})")
            elif bad or target.harm():
                found.escapes.append(payload.name)
    return found


@contextmanager
def without_filter() -> Iterator[None]:
    """The sandbox less its seccomp filter, from a copy of the guest."""
    kept = host.GUEST
    with tempfile.TemporaryDirectory() as folder:
        host.GUEST = Path(shutil.copytree(kept, Path(folder) / "guest"))
        confine = host.GUEST / "confine.py"
        text = confine.read_text()
        assert text.count("    _filter_syscalls(library)\n") == 1
        confine.write_text(text.replace("    _filter_syscalls(library)\n", ""))
        try:
            yield
        finally:
            host.GUEST = kept


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows, table = costs(80 if options.quick else 400)
    rows += rates(100 if options.quick else 600)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, world(Path(folder)) as target:
        found = attack(target)
        with without_filter():
            bare = attack(target)
    rows.append(Row(name="hostile programs", value=found.programs, unit="programs", bar=40, ok=found.programs >= 40))
    rows.append(Row(name="escapes", value=len(found.escapes or ()), unit="programs", bar=0, ok=not found.escapes))
    rows.append(Row(name="forged passes", value=len(found.forged or ()), unit="programs", bar=0, ok=not found.forged))
    for name, value in table.items():
        print(f"{name:60} p50 {value['p50']:7.1f} ms   p95 {value['p95']:7.1f} ms")
    for row in rows:
        print(f"{row.name:60} {row.value:9.1f} {row.unit}  bar {row.bar}  {'ok' if row.ok else 'NOT MET'}")
    print(f"without the system call filter: escapes {bare.escapes}; forged {bare.forged}")
    if options.json:
        details = {
            "milliseconds": table,
            "runs": found.runs,
            "escapes": found.escapes,
            "forged": found.forged,
            "without_filter": {"escapes": bare.escapes, "forged": bare.forged},
            "ran_as_root": os.getuid() == 0,
        }
        command = "python -m benchmarks.sandbox"
        write_json(options.json, envelope(what="sandbox", command=command, rows=rows, details=details))


if __name__ == "__main__":
    main()
