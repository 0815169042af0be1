"""The ledger: what it acknowledged is there after a crash, and nobody shares it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distill.errors import DistillError, TeacherError
from distill.teacher.ledger import Asker, Failure, Ledger
from distill.teacher.requests import Answer

ASKER = Asker(teacher="mock", method="instruction:all", seed_row="7", sample=0)
ANSWER = Answer(
    key="k0",
    text="four \u00e9\U0001f600",
    finish_reason="stop",
    prompt_tokens=10,
    completion_tokens=5,
    cached_tokens=2,
    cost_usd=0.25,
    attempts=3,
    latency_seconds=0.5,
    created_at=1.5,
    reasoning_tokens=3,
    logprobs=b"\x00packed",
    teacher="mock",
)


def test_an_answer_comes_back_as_it_was_put(ledger_path: Path) -> None:
    with Ledger(ledger_path) as ledger:
        assert ledger.find("k0") is None
        asyncio.run(ledger.put_answer(ANSWER, ASKER))
        assert ledger.find("k0") == replace(ANSWER, from_ledger=True)
    with Ledger(ledger_path) as ledger:
        assert ledger.find("k0") == replace(ANSWER, from_ledger=True)
        assert (ledger.count(), ledger.spent_usd()) == (1, 0.25)


def test_it_is_durable_by_its_pragmas(ledger_path: Path) -> None:
    with Ledger(ledger_path) as ledger:
        assert ledger._writer.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert ledger._writer.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_permanent_failures_stay_and_others_are_asked_again(ledger_path: Path) -> None:
    async def main(ledger: Ledger) -> None:
        await ledger.put_failure(Failure("bad", "too long", 400, True, 1, 0.0), ASKER)
        await ledger.put_failure(Failure("busy", "overloaded", 500, False, 6, 0.0), ASKER)
        await ledger.put_failure(Failure("k0", "overloaded", 500, False, 6, 0.0), ASKER)
        await ledger.put_answer(ANSWER, ASKER)

    with Ledger(ledger_path) as ledger:
        asyncio.run(main(ledger))
        found = ledger.find("bad")
        assert isinstance(found, TeacherError) and found.status == 400 and not found.retryable
        assert ledger.find("busy") is None
    rows = sqlite3.connect(ledger_path).execute("SELECT key FROM failures ORDER BY key").fetchall()
    assert rows == [("bad",), ("busy",)]  # the answer cleared its own


def test_commits_are_shared(ledger_path: Path) -> None:
    async def main(ledger: Ledger) -> None:
        await asyncio.gather(*(ledger.put_answer(replace(ANSWER, key=f"k{i}"), ASKER) for i in range(500)))

    with Ledger(ledger_path) as ledger:
        asyncio.run(main(ledger))
        assert ledger.count() == 500
        assert ledger.commits < 250


WRITER = """
import asyncio, sys
from dataclasses import replace
from pathlib import Path
from tests.teacher.test_ledger import ANSWER, ASKER
from distill.teacher.ledger import Ledger

async def main(ledger):
    async def put(i):
        await ledger.put_answer(replace(ANSWER, key=f"k{i}"), ASKER)
        print(i, flush=True)
    for start in range(0, 100000, 16):
        await asyncio.gather(*(put(i) for i in range(start, start + 16)))

asyncio.run(main(Ledger(Path(sys.argv[1]))))
"""


@pytest.mark.parametrize("kill_after", [1, 40, 333])
def test_what_was_acknowledged_survives_kill_9(ledger_path: Path, kill_after: int) -> None:
    command = [sys.executable, "-c", WRITER, str(ledger_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."})
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(kill_after)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().splitlines() if line]
    process.wait()
    with Ledger(ledger_path) as ledger:
        assert all(isinstance(ledger.find(f"k{i}"), Answer) for i in acknowledged)
        assert ledger.count() <= max(acknowledged) + 1 + 16  # and nothing out of the blue


def test_a_second_user_is_told_who_holds_it(ledger_path: Path) -> None:
    with Ledger(ledger_path), pytest.raises(DistillError, match=f"in use by process {os.getpid()}"):
        Ledger(ledger_path)
    Ledger(ledger_path).close()


def test_a_file_that_is_no_ledger_says_so(ledger_path: Path) -> None:
    ledger_path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(DistillError, match="not a readable ledger"):
        Ledger(ledger_path)


def test_a_write_that_fails_is_an_error_for_whoever_waits(ledger_path: Path) -> None:
    with Ledger(ledger_path) as ledger:
        pages = ledger._writer.execute("PRAGMA page_count").fetchone()[0]
        ledger._writer.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own way to a full disk
        with pytest.raises(DistillError, match="make room"):
            asyncio.run(ledger.put_answer(replace(ANSWER, text="x" * 100_000), ASKER))
        ledger._writer.execute("PRAGMA max_page_count=100000")
        asyncio.run(ledger.put_answer(ANSWER, ASKER))
        assert ledger.count() == 1


@pytest.mark.parametrize(
    ("step", "last"), [(1031, 20), pytest.param(1031, 4200, marks=pytest.mark.slow)], ids=["some", "every byte"]
)
def test_a_tail_torn_at_any_byte_loses_only_what_is_torn(tmp_path: Path, step: int, last: int) -> None:
    """The write-ahead log cut at each of its last bytes (4,200: the whole last frame) and, wider apart, before them: a
    ledger opens, has the transactions that were whole, and takes new answers."""
    path = tmp_path / "whole.sqlite"
    ledger = Ledger(path)
    for number in range(8):
        asyncio.run(ledger.put_answer(replace(ANSWER, key=f"k{number}"), ASKER))
    database, log = path.read_bytes(), path.with_name(path.name + "-wal").read_bytes()
    ledger.close()
    counts = []
    torn = tmp_path / "torn.sqlite"
    for length in sorted({*range(0, len(log), step), *range(len(log) - last, len(log) + 1)}):
        torn.write_bytes(database)
        torn.with_name("torn.sqlite-shm").unlink(missing_ok=True)
        torn.with_name("torn.sqlite-wal").write_bytes(log[:length])
        with Ledger(torn) as opened:
            count = opened.count()
            assert all((opened.find(f"k{number}") is not None) == (number < count) for number in range(8))
            asyncio.run(opened.put_answer(replace(ANSWER, key="new"), ASKER))
            assert opened.count() == count + 1
        counts.append(count)
    assert counts == sorted(counts) and counts[-1] == 8 and set(counts) == set(range(9))


def test_a_ledger_of_version_1_is_brought_up_to_date(ledger_path: Path) -> None:
    with Ledger(ledger_path) as ledger:
        asyncio.run(ledger.put_answer(ANSWER, ASKER))
    old = sqlite3.connect(ledger_path)
    old.executescript("ALTER TABLE answers DROP COLUMN logprobs; ALTER TABLE answers DROP COLUMN reasoning_tokens;")
    old.execute("PRAGMA user_version=1")
    old.close()
    with Ledger(ledger_path) as ledger:
        expected = replace(ANSWER, from_ledger=True, logprobs=None, reasoning_tokens=0)
        assert ledger.find("k0") == expected
