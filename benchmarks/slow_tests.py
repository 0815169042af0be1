"""The slow tests as a dated result: how many passed, failed and were skipped and why, and how long each took.

    python -m benchmarks.slow_tests [PATH ...] [--markers EXPRESSION] [--json PATH]

Runs pytest in a process of its own over the paths (default: all tests) with `-m "slow and not gpu"`, as `make
test-slow` does. Ends with 1 where a test failed, and where none was run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.common import Row, envelope, write_json

MARKERS = "slow and not gpu"
_WHOLE = (0, 1, 5)  # all passed, some failed, none found; others are of runs that were interrupted or never began


@dataclass(frozen=True)
class Outcome:
    """One test: `passed`, `failed`, `error` (outside the test itself) or `skipped`; the reason is its first line."""

    name: str
    outcome: str
    seconds: float
    reason: str = ""


def read_report(report: str) -> list[Outcome]:
    """The tests of a JUnit XML report, slowest first; one that failed and was then not cleaned up comes twice."""
    found = [_outcome(case) for case in ElementTree.fromstring(report).iter("testcase")]
    return sorted(found, key=lambda test: -test.seconds)


def rows_of(tests: Sequence[Outcome], seconds: float) -> list[Row]:
    """Counts by outcome; none may have failed, and some must have passed."""
    count = {name: sum(test.outcome == name for test in tests) for name in ("passed", "failed", "error", "skipped")}
    return [
        Row("passed", count["passed"], "tests", bar=1, ok=count["passed"] >= 1),
        *(Row(name, count[name], "tests", bar=0, ok=count[name] == 0) for name in ("failed", "error")),
        Row("skipped", count["skipped"], "tests"),
        Row("time", seconds, "s"),
    ]


def run_tests(paths: Sequence[str], markers: str) -> tuple[list[Outcome], float]:
    """Run them, their output as it comes; also the whole's seconds. Raises RuntimeError where the run is not whole."""
    with tempfile.TemporaryDirectory(prefix="distill-slow-tests-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", markers, f"--junitxml={report}", *paths]
        code = subprocess.run(command, check=False).returncode
        if code not in _WHOLE or not report.exists():
            raise RuntimeError(f"pytest ended with {code}: its run is not whole")
        text = report.read_text(encoding="utf-8")
    seconds = sum(float(suite.get("time", "0")) for suite in ElementTree.fromstring(text).iter("testsuite"))
    return read_report(text), seconds


def _outcome(case: ElementTree.Element) -> Outcome:
    """A `testcase` element without a child that says otherwise has passed."""
    name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
    seconds = float(case.get("time", "0"))
    for tag, outcome in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
        child = case.find(tag)
        if child is not None:
            return Outcome(name, outcome, seconds, child.get("message", "").partition("\n")[0])
    return Outcome(name, "passed", seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files or folders of tests")
    parser.add_argument("--markers", default=MARKERS, help=f"pytest's marker expression; default: {MARKERS}")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    tests, seconds = run_tests(options.paths, options.markers)
    rows = rows_of(tests, seconds)
    for row in rows:
        print(f"{row.name:<10} {row.value:>8g} {row.unit}{'  MISSED' if row.ok is False else ''}")
    if options.json is not None:
        command = " ".join(["python -m benchmarks.slow_tests", *options.paths])
        details = {"markers": options.markers, "tests": [asdict(test) for test in tests]}
        write_json(options.json, envelope(what="slow tests", command=command, rows=rows, details=details))
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
