"""The laboratory of `benchmarks.generate`: the mock on one core, contenders on another, and what both report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.mock_teacher import Behaviour

CONCURRENCY = 100
PEER_SCRIPT = Path(__file__).with_name("generate_peers.py")
_LONGEST_SECONDS = 1800.0


@dataclass(frozen=True)
class Measured:
    """One contender's run of one test: its own report, and the mock's."""

    rows: int
    delivered: int
    cpu_seconds: float
    peak_mib: float
    exit_code: int
    mock: dict[str, Any]


@dataclass(frozen=True)
class Killed:
    """What a kill at half cost: requests sent again, rows lost, rows doubled."""

    again: int
    lost: int
    doubled: int


class Lab:
    """A context manager that holds the mock; `measure` runs a contender on a test."""

    def __init__(self, folder: Path, peers: Path | None) -> None:
        self.folder = folder
        self.peers = peers
        cores = sorted(os.sched_getaffinity(0))
        self._mock_core, self._client_core = cores[0], cores[-1]
        self.there = ["ours", "sdk", *(name for name in ("aiohttp",) if self._python(name))]
        self.there += [name for name in ("curator", "datadesigner", "distilabel") if self._python(name)]

    def __enter__(self) -> Lab:
        port_file = self.folder / "port"
        command = [sys.executable, "-m", "benchmarks.mock_teacher", "--port-file", str(port_file)]
        self._mock = subprocess.Popen(command)
        os.sched_setaffinity(self._mock.pid, {self._mock_core})
        while not port_file.exists():
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{port_file.read_text()}"
        return self

    def __exit__(self, *_: object) -> None:
        self._mock.kill()
        self._mock.wait()

    def configure(self, behaviour: dict[str, Any]) -> None:
        """Start afresh."""
        body = json.dumps(asdict(Behaviour(**behaviour))).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/configure", data=body), timeout=10).read()

    def stats(self) -> dict[str, Any]:
        """What the mock saw since it was configured."""
        with urllib.request.urlopen(f"{self.url}/stats", timeout=10) as reply:
            found: dict[str, Any] = json.load(reply)
        return found

    def measure(
        self, who: str, name: str, prompts: list[str], behaviour: dict[str, Any], *, rpm: float | None = None
    ) -> Measured:
        """Run a contender on these prompts, from nothing."""
        if who == "ours":
            return self.ours(name, prompts, behaviour, rpm=rpm)
        work = self.folder / f"{who}-{name}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        settings = {"url": f"{self.url}/v1", "prompts": prompts, "concurrency": CONCURRENCY, "rpm": rpm}
        (work / "settings.json").write_text(json.dumps(settings))
        self.configure(behaviour)
        command = [str(self._python(who)), str(PEER_SCRIPT), who, str(work / "settings.json")]
        report = self._run(command, work, environment={"HOME": str(work)})
        return self._measured(report, len(prompts), int(report["delivered"]))

    def ours(
        self,
        name: str,
        prompts: list[str],
        behaviour: dict[str, Any],
        *,
        rpm: float | None = None,
        fresh: bool = True,
    ) -> Measured:
        """Run our stage on these prompts; `fresh=False` goes on with what an earlier run of this name left."""
        work = self.folder / f"ours-{name}"
        if fresh:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(exist_ok=True)
        settings = self.recipe(work, prompts, rpm=rpm)
        self.configure(behaviour)
        report = self._run([sys.executable, "-m", "benchmarks.generate_ours", str(settings)], Path.cwd())
        return self._measured(report, len(prompts), len(self.answers(work)))

    def recipe(
        self, work: Path, prompts: Iterable[str], *, rpm: float | None = None, price: dict[str, float] | None = None
    ) -> Path:
        """A recipe file of one instruction job over these prompts."""
        prompt_file = work / "prompts.jsonl"
        with open(prompt_file, "w") as lines:
            lines.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        teacher: dict[str, Any] = {"model": "mock", "base_url": f"{self.url}/v1", "max_concurrency": CONCURRENCY}
        if rpm is not None:
            teacher["requests_per_minute"] = rpm
        if price is not None:
            teacher["price"] = price
        job = {"name": "rows", "kind": "instruction", "prompts": {"source": "file", "path": str(prompt_file)}}
        recipe = {"name": "bench", "output_dir": str(work / "runs"), "teacher": teacher, "generate": [job]}
        path = work / "recipe.json"
        path.write_text(json.dumps(recipe))
        return path

    def data(self, work: Path) -> Path:
        """The dataset of our job."""
        return work / "runs" / "bench" / "generate-rows" / "data.parquet"

    def answers(self, work: Path) -> list[str]:
        """The answers of the rows that our job left."""
        path = self.data(work)
        if not path.exists():
            return []
        return [row[-1]["content"] for row in pq.read_table(path, columns=["messages"])["messages"].to_pylist()]

    def start(self, settings: Path) -> subprocess.Popen[bytes]:
        """Our job in the background, on its core."""
        command = [sys.executable, "-m", "benchmarks.generate_ours", str(settings)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.sched_setaffinity(process.pid, {self._client_core})
        return process

    def kill_and_resume(self, rows: int, *, at: int, behaviour: dict[str, Any] | None = None) -> Killed:
        """SIGKILL when the mock has answered `at`, then run to the end."""
        work = self.folder / "ours-killed"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        prompts = [f"question {number}" for number in range(rows)]
        settings = self.recipe(work, prompts)
        self.configure(behaviour or {"latency": 0.2})
        process = self.start(settings)
        while self.stats()["answered"] < at and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if self.start(settings).wait(_LONGEST_SECONDS) != 0:
            raise RuntimeError("the second run failed")
        found, stats = self.answers(work), self.stats()
        expected = {f"An answer to: {prompt}" for prompt in prompts}
        return Killed(stats["received"] - rows, len(expected - set(found)), len(found) - len(set(found)))

    def cost_error(self, rows: int, price: dict[str, float]) -> float:
        """How far the ledger's dollars are from the mock's bill, as a share of it: tokens of all kinds, and a tenth
        of the requests failing."""
        work = self.folder / "ours-cost"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        settings = self.recipe(work, (f"question {number}" for number in range(rows)), price=price)
        self.configure({"latency": 0.02, "error_share": 0.1, "varied_usage": True})
        if self.start(settings).wait(_LONGEST_SECONDS) != 0:
            raise RuntimeError("the run failed")
        billed = sum(price[kind] * tokens for kind, tokens in self.stats()["billed"].items()) / 1e6
        with closing(sqlite3.connect(work / "runs" / "bench" / "ledger.sqlite")) as ledger:
            spent = float(ledger.execute("SELECT TOTAL(cost_usd) FROM answers").fetchone()[0])
        return abs(spent - billed) / billed

    def memory(self, rows: int) -> Measured:
        """Peak memory of a job of so many rows whose answers come at once, from within the process."""
        work = self.folder / "ours-memory"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        settings = self.recipe(work, (f"question {number}" for number in range(rows)))
        command = [sys.executable, "-m", "benchmarks.generate_ours", str(settings), "--no-network"]
        report = self._run(command, Path.cwd())
        delivered = int(pq.read_metadata(self.data(work)).num_rows)
        return self._measured(report, rows, delivered)

    def _run(self, command: list[str], work: Path, environment: dict[str, str] | None = None) -> dict[str, Any]:
        core = self._client_core
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "PYTHONPATH", "HOME")}
        process = subprocess.run(
            command,
            cwd=work,
            env={**kept, **(environment or {}), "OPENAI_API_KEY": "no-key"},
            capture_output=True,
            text=True,
            timeout=_LONGEST_SECONDS,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise RuntimeError((process.stderr or process.stdout)[-600:])
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    def _measured(self, report: dict[str, Any], rows: int, delivered: int) -> Measured:
        return Measured(
            rows=rows,
            delivered=delivered,
            cpu_seconds=float(report["cpu_seconds"]),
            peak_mib=float(report["peak_mib"]),
            exit_code=int(report["exit_code"]),
            mock=self.stats(),
        )

    def _python(self, who: str) -> Path | None:
        """The interpreter that has the contender's packages."""
        if who == "sdk":
            return Path(sys.executable)
        python = None if self.peers is None else (self.peers / who / "bin" / "python").absolute()
        return python if python is not None and python.exists() else None
