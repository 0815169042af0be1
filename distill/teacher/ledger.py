"""Every answer a run paid for, in SQLite: an answer counts once its transaction is on disk, and is never asked twice.

One writer thread commits whatever has gathered since its last commit as one transaction (WAL, synchronous=FULL), so
the price of an fsync is shared by all answers that wait for it. Failures that repeating cannot mend are kept as
tombstones beside the answers.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import TeacherError
from distill.teacher.ledger_file import as_user_error, connect, connect_to_read, hold
from distill.teacher.requests import Answer

_PUT_ANSWER = "INSERT OR REPLACE INTO answers VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_PUT_FAILURE = "INSERT OR REPLACE INTO failures VALUES (?,?,?,?,?,?,?,?,?,?)"
_CLEAR_FAILURE = "DELETE FROM failures WHERE key = ?"
_GET_ANSWER = (
    "SELECT text, finish_reason, prompt_tokens, completion_tokens, cached_tokens, cost_usd, attempts, latency_seconds,"
    " created_at, refusal, reasoning_tokens, logprobs, teacher FROM answers WHERE key = ?"
)
_GET_FAILURE = "SELECT message, status FROM failures WHERE key = ? AND permanent = 1"
_MOST_IN_A_COMMIT = 512
Statement = tuple[str, tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asked, for people who read the ledger."""

    teacher: str
    method: str
    seed_row: str
    sample: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no answer. `permanent`: the provider refuses this very request, asking again cannot help."""

    key: str
    message: str
    status: int | None
    permanent: bool
    attempts: int
    created_at: float


@dataclass(slots=True)
class _Pending:
    statements: list[Statement]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]


class Ledger:
    """The answers of one run folder. One process at a time: a second is told who holds it. Use as a context manager.

    `elder` is another ledger whose answers count too; it is only read, whoever holds it.
    """

    def __init__(self, path: Path, *, elder: Path | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._holder = hold(path)
        try:
            self._reader = connect(path)
            self._writer = connect(path)
            self._elder = connect_to_read(elder) if elder is not None and elder.is_file() else None
        except sqlite3.Error as error:
            self._holder.close()
            raise as_user_error(path, error) from None
        self._queue: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_loop, name="ledger", daemon=True)
        self._thread.start()
        self.commits = 0

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is queued and let go of the file."""
        self._queue.put(None)
        self._thread.join()
        self._reader.close()
        if self._elder is not None:
            self._elder.close()
        self._writer.close()
        self._holder.close()

    def find(self, key: str) -> Answer | TeacherError | None:
        """The committed answer, the permanent refusal, or None: then it is still to ask."""
        try:
            for connection in (self._reader, self._elder):
                if connection is None:
                    continue
                row = connection.execute(_GET_ANSWER, (key,)).fetchone()
                if row is not None:
                    return _answer(key, row)
                failed = connection.execute(_GET_FAILURE, (key,)).fetchone()
                if failed is not None:
                    return TeacherError(failed[0], status=failed[1])
        except sqlite3.Error as error:
            raise as_user_error(self.path, error) from None
        return None

    def absorb(self, path: Path) -> int:
        """Copy another ledger's answers and failures that are not here; the number of answers that are new."""
        before = self.count()
        try:
            self._writer.execute("ATTACH DATABASE ? AS other", (str(path),))
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.execute("INSERT OR IGNORE INTO answers SELECT * FROM other.answers")
            self._writer.execute("INSERT OR IGNORE INTO failures SELECT * FROM other.failures")
            self._writer.execute("COMMIT")
            self._writer.execute("DETACH DATABASE other")
        except sqlite3.Error as error:
            raise as_user_error(path, error) from None
        return self.count() - before

    def spent_usd(self, teacher: str | None = None) -> float:
        """Dollars of all answers ever committed here whose price was known; of one teacher, where it is named."""
        every = "SELECT TOTAL(cost_usd) FROM answers WHERE ?1 IS NULL OR teacher = ?1"
        return float(self._reader.execute(every, (teacher,)).fetchone()[0])

    def count(self) -> int:
        """Number of committed answers."""
        return int(self._reader.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    async def put_answer(self, answer: Answer, asker: Asker) -> None:
        """Returns once the answer is on disk."""
        await self.commit(put_answer(answer, asker))

    async def put_failure(self, failure: Failure, asker: Asker) -> None:
        """Returns once the failure is on disk."""
        row = (
            failure.key,
            asker.teacher,
            asker.method,
            asker.seed_row,
            asker.sample,
            failure.message,
            failure.status,
            int(failure.permanent),
            failure.attempts,
            failure.created_at,
        )
        await self.commit([(_PUT_FAILURE, row)])

    def rows(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """Whatever else is kept here beside answers."""
        return self._reader.execute(query, values).fetchall()

    async def commit(self, statements: list[Statement]) -> None:
        """Returns once all of them are on disk, in one transaction."""
        loop = asyncio.get_running_loop()
        pending = _Pending(statements, loop, loop.create_future())
        self._queue.put(pending)
        await pending.done

    def _write_loop(self) -> None:
        """Gather, commit, acknowledge; until None comes."""
        closing = False
        while not closing:
            batch: list[_Pending] = []
            item = self._queue.get()
            while True:
                if item is None:
                    closing = True
                    break
                batch.append(item)
                if len(batch) == _MOST_IN_A_COMMIT:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if batch:
                _acknowledge(batch, self._write(batch))

    def _write(self, batch: list[_Pending]) -> Exception | None:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for pending in batch:
                for sql, row in pending.statements:
                    self._writer.execute(sql, row)
            self._writer.execute("COMMIT")
        except Exception as error:  # whatever it is, those who wait must hear it: this thread has nobody else to tell
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            return as_user_error(self.path, error) if isinstance(error, sqlite3.Error) else error
        self.commits += 1
        return None


def put_answer(answer: Answer, asker: Asker) -> list[Statement]:
    """The statements that keep an answer and forget that it failed before."""
    row = (
        answer.key,
        asker.teacher,
        asker.method,
        asker.seed_row,
        asker.sample,
        answer.text,
        answer.refusal,
        answer.finish_reason,
        answer.prompt_tokens,
        answer.completion_tokens,
        answer.cached_tokens,
        answer.cost_usd,
        answer.attempts,
        answer.latency_seconds,
        answer.created_at,
        answer.reasoning_tokens,
        answer.logprobs,
    )
    return [(_PUT_ANSWER, row), (_CLEAR_FAILURE, (answer.key,))]


def _answer(key: str, row: tuple[Any, ...]) -> Answer:
    text, finish_reason, prompt, completion, cached, cost, attempts, latency, created_at, refusal, *newer = row
    reasoning, logprobs, teacher = newer
    return Answer(
        key=key,
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        cost_usd=cost,
        attempts=attempts,
        latency_seconds=latency,
        created_at=created_at,
        refusal=refusal,
        from_ledger=True,
        reasoning_tokens=reasoning,
        logprobs=logprobs,
        teacher=teacher,
    )


def _acknowledge(batch: list[_Pending], error: Exception | None) -> None:
    """Wake everybody of the batch, with one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for pending in batch:
        by_loop.setdefault(pending.loop, []).append(pending.done)
    for loop, futures in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, futures, error)


def _resolve(futures: list[asyncio.Future[None]], error: Exception | None) -> None:
    for future in futures:
        if future.done():  # its task was cancelled; the row is on disk all the same
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
