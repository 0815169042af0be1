"""The sandbox: what a verdict costs beside the same code in plain Python, how many verdicts a pool keeps up, and what
hostile programs get done in it, with and without the system call filter.

    python -m benchmarks.sandbox [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.common import Row, at_least, envelope, write_json
from distill.sandbox import host
from distill.sandbox.checks import parse_tests
from distill.sandbox.host import Guest
from distill.sandbox.run import run_code, run_many
from distill.sandbox.types import Job, Limits
from tests.sandbox.corpus import FORGED_TESTS, World, payloads, world

CODE = "def f(x):\n    return x + 1\n# {}"
LITERALS = ("assert f(1) == 2", "assert f(2) == 3", "assert f(-1) == 0")
OTHERS = ("assert abs(f(1) - 2) < 1e-9", "assert f(2) > f(1)", "y = f(-1)\nassert y == 0")
# What a teacher sends: seven right programs of ten, and the ways in which the others are wrong.
MIXED = (
    *("def f(x):\n    return x + 1",) * 3,
    "f = lambda x: -~x",
    "import math\ndef f(x):\n    return math.floor(x) + 1",
    "from collections import Counter\ndef f(x):\n    return sum(Counter({'a': x, 'b': 1}).values())",
    "import functools\n@functools.lru_cache\ndef f(x):\n    return sum(range(x, x + 2)) - x",
    "def f(x):\n    return x + 2",
    "def f(x):\n    return unknown",
    "def g(x):\n    return x +",
)
ENDLESS = "def f(x):\n    while True:\n        x += 1"
OVERHEAD_MS, VERDICTS_A_SECOND = 25.0, 60.0
QUICK = Limits(cpu_seconds=1, wall_seconds=0.5)
ALONE = "a run in a sandbox of its own, which no stage does"
FRESH_PYTHON, FRESH_BWRAP = "python -I -S for each, no sandbox", "bwrap + python -I -S for each, exit code believed"


def milliseconds(act: Callable[[int], object], count: int) -> dict[str, float]:
    """Median and 95th percentile of how long a call takes."""
    taken = []
    for number in range(count):
        start = time.perf_counter()
        act(number)
        taken.append((time.perf_counter() - start) * 1e3)
    return {"p50": statistics.median(taken), "p95": sorted(taken)[int(count * 0.95)]}


def costs(count: int) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Milliseconds a verdict on a trivial candidate, in a sandbox that runs and in one of its own, and of the same code
    in plain Python: in this process (to a running sandbox all else is overhead), and in an interpreter of its own."""
    python = [os.path.realpath(sys.executable), "-I", "-S", "-E", "-c"]
    arguments = host.command("bubblewrap")
    fresh = arguments[: arguments.index("-c") + 1]

    def run_program(prefix: list[str]) -> Callable[[int], object]:
        program = "\n".join((CODE, *LITERALS))
        return lambda number: subprocess.run([*prefix, program.format(number)], check=True, env={})

    def run_alone(number: int) -> None:
        assert run_code(CODE.format(number), LITERALS, entry_point="f").ok

    table = {}
    with Guest("bubblewrap") as guest:
        guest.start()

        def run_guest(tests: tuple[str, ...]) -> Callable[[int], object]:
            def act(number: int) -> None:
                assert guest.run(CODE.format(number), parse_tests(tests, "f"), "f", Limits()).ok

            return act

        for name, tests in (("literal tests", LITERALS), ("other tests", OTHERS)):
            table[name] = milliseconds(run_guest(tests), count)
            table[f"{name}, plain Python"] = milliseconds(_run_here(tests), count)
    table[ALONE] = milliseconds(run_alone, count // 4)
    table[FRESH_PYTHON] = milliseconds(run_program(python), count // 4)
    table[FRESH_BWRAP] = milliseconds(run_program(fresh), count // 4)
    names = ("literal tests", "other tests")
    rows = [_overhead(table, name, quantile) for name in names for quantile in ("p50", "p95")]
    alone, python_alone, bwrap_alone = (table[name]["p50"] for name in (ALONE, FRESH_PYTHON, FRESH_BWRAP))
    value, peer = alone - python_alone, bwrap_alone - python_alone
    rows.append(Row(name=f"overhead of {ALONE}, p50", value=value, unit="ms", peer=peer, ratio=value / peer))
    return rows, table


def _overhead(table: dict[str, dict[str, float]], name: str, quantile: str) -> Row:
    """A verdict's milliseconds beyond those of plain Python; the peer is a fresh bubblewrap for each."""
    value = table[name][quantile] - table[f"{name}, plain Python"][quantile]
    peer = table[FRESH_BWRAP][quantile]
    what = f"overhead of a run, {name}, {quantile}"
    ok = value <= OVERHEAD_MS
    return Row(name=what, value=value, unit="ms", peer=peer, ratio=value / peer, bar=OVERHEAD_MS, ok=ok)


def _run_here(tests: tuple[str, ...]) -> Callable[[int], object]:
    """The candidate and its tests in this process; only for our own code."""

    def act(number: int) -> None:
        scope: dict[str, object] = {}
        for source in (CODE.format(number), *tests):
            exec(source, scope)

    return act


def rates(count: int) -> list[Row]:
    """Verdicts a second of a pool with 2 workers, its start included."""
    rows = []
    for name, tests, endless in (
        ("literal tests", LITERALS, 0),
        ("other tests", OTHERS, 0),
        ("literal tests, 1% never end", LITERALS, count // 100),
    ):
        codes = [f"{MIXED[number % len(MIXED)]}\n# {number}" for number in range(count - endless)]
        codes += [f"{ENDLESS}\n# {number}" for number in range(endless)]
        random.Random(0).shuffle(codes)
        start = time.perf_counter()
        verdicts = run_many([Job(code, tests, "f") for code in codes], workers=2)
        rate = count / (time.perf_counter() - start)
        assert sum(verdict.ok for verdict in verdicts) == sum(code.startswith(MIXED[:7]) for code in codes)
        assert sum(verdict.reason == "timeout" for verdict in verdicts) == endless
        row = at_least(f"pool of 2, {name}", rate, VERDICTS_A_SECOND, "verdicts/s")
        rows.append(
            replace(row, bar=None, ok=None) if endless else row
        )  # what an endless program may cost is its limit
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
    load = os.getloadavg()[0]
    rows, table = costs(80 if options.quick else 400)
    rows += rates(100 if options.quick else 600)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, world(Path(folder)) as target:
        found = attack(target)
        with without_filter():
            bare = attack(target)
    rows.append(at_least("hostile programs", found.programs, 40, "programs"))
    rows.append(Row(name="escapes", value=len(found.escapes or ()), unit="programs", bar=0, ok=not found.escapes))
    rows.append(Row(name="forged passes", value=len(found.forged or ()), unit="programs", bar=0, ok=not found.forged))
    for name, value in table.items():
        print(f"{name:60} p50 {value['p50']:7.1f} ms   p95 {value['p95']:7.1f} ms")
    for row in rows:
        verdict = "" if row.bar is None else f"bar {row.bar:g}  {'ok' if row.ok else 'NOT MET'}"
        print(f"{row.name:60} {row.value:9.1f} {row.unit}  {verdict}")
    print(f"without the system call filter: escapes {bare.escapes}; forged {bare.forged}")
    if options.json:
        details = {
            "milliseconds": table,
            "runs": found.runs,
            "escapes": found.escapes,
            "forged": found.forged,
            "without_filter": {"escapes": bare.escapes, "forged": bare.forged},
            "ran_as_root": os.getuid() == 0,
            "load_average_before_and_after": [load, os.getloadavg()[0]],
        }
        command = "python -m benchmarks.sandbox"
        write_json(options.json, envelope(what="sandbox", command=command, rows=rows, details=details))


if __name__ == "__main__":
    main()
