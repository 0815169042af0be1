"""Requests gathered into batches at a provider, and their answers taken into the ledger, whatever happens between.

A batch is written down before it is made, carries our token in its metadata, and is forgotten in the transaction that
commits its answers: a kill at any point finds it again, and nothing is paid twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from functools import partial
from typing import Protocol, TypeVar

from distill.errors import TeacherError
from distill.recipe.teacher import Batch
from distill.teacher.batch_api import TERMINAL, BatchApi, RemoteBatch, read_results, request_line
from distill.teacher.batch_store import BatchStore, OpenBatch
from distill.teacher.endpoint import AttemptFailed, Reply
from distill.teacher.ledger import Asker, put_answer
from distill.teacher.requests import Answer, Request

_MOST_BYTES = 150_000_000  # the provider takes 200 MB
_SETTLE_SECONDS = 30.0  # a creation that was cut off shows in the provider's list after so long, or never
_MOST_FAILURES = 20
_LONGEST_WAIT_SECONDS = 60.0
Result = TypeVar("Result")


class _Unanswered(Enum):
    """Why a request has no answer: its batch was never made, or ended without one."""

    BATCH_NEVER_MADE = auto()
    IN_A_BATCH = auto()


class Desk(Protocol):
    """What a client does for its batches."""

    def batch_answer(self, key: str, reply: Reply) -> Answer:
        """An answer at the batch's price."""

    def count(self, answer: Answer) -> None:
        """Usage and budget, once the answer is committed."""

    def asker(self, request: Request) -> Asker:
        """Who asks, for the ledger."""

    def stop(self, reason: TeacherError) -> None:
        """No further request can succeed."""


class BatchQueue:
    """`answer` waits for a request's batch: one that is under way since an earlier run, or (`gather`) a new one."""

    def __init__(
        self, api: BatchApi, store: BatchStore, settings: Batch, desk: Desk, *, model: str, gather: bool
    ) -> None:
        self._api = api
        self._store = store
        self._settings = settings
        self._desk = desk
        self._model = model
        self._gather = gather
        self._waiting: dict[str, asyncio.Future[Answer | _Unanswered]] = {}
        self._gathered: dict[str, tuple[Request, bytes]] = {}
        self._gathered_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._resumed = False
        self._earlier = store.open()

    @property
    def idle(self) -> bool:
        """Whether there is nothing for it to do: nothing under way, and nothing to come."""
        return not self._gather and not self._earlier

    @property
    def in_batches(self) -> int:
        """Requests that wait for a batch."""
        return len(self._waiting)

    async def answer(self, key: str, request: Request) -> Answer | None:
        """The committed answer; None: this one is to be asked online."""
        self._resume()
        while True:
            future = self._waiting.get(key)
            if future is None:
                if not self._gather:
                    return None
                future = self._waiting[key] = asyncio.get_running_loop().create_future()
                self._add(key, request)
            result = await asyncio.shield(future)
            if isinstance(result, Answer):
                return result
            if result is _Unanswered.IN_A_BATCH:
                return None

    async def close(self) -> None:
        """Stop waiting. What the provider works on, the next run collects."""
        self._drop_gathered()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def abandon(self, reason: TeacherError) -> None:
        """Let nobody wait any more."""
        self._drop_gathered()
        for key in list(self._waiting):
            self._resolve(key, reason)
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def _drop_gathered(self) -> None:
        """Requests that no batch was begun for: nothing is known of them anywhere."""
        if self._timer is not None:
            self._timer.cancel()
        self._gathered = {}

    def _resume(self) -> None:
        """Go on with the batches of earlier runs, once there is an event loop."""
        if self._resumed:
            return
        self._resumed = True
        loop = asyncio.get_running_loop()
        for batch in self._earlier:
            self._waiting |= {key: loop.create_future() for key in batch.askers}
            self._start(self._go_on(batch), batch.askers)

    def _add(self, key: str, request: Request) -> None:
        line = request_line(key, request, self._model)
        if self._gathered and self._gathered_bytes + len(line) > _MOST_BYTES:
            self._flush()
        self._gathered[key] = (request, line)
        self._gathered_bytes += len(line)
        if len(self._gathered) >= self._settings.requests:
            self._flush()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._settings.gather_seconds, self._flush)

    def _flush(self) -> None:
        """Send what is gathered, a batch an endpoint."""
        by_path: dict[str, dict[str, tuple[Request, bytes]]] = {}
        for key, entry in self._gathered.items():
            by_path.setdefault(entry[0].path, {})[key] = entry
        self._gathered = {}
        self._gathered_bytes = 0
        for path, entries in by_path.items():
            askers = {key: self._desk.asker(request) for key, (request, _) in entries.items()}
            self._start(self._send(path, askers, b"".join(line for _, line in entries.values())), askers)

    def _start(self, work: Awaitable[None], askers: dict[str, Asker]) -> None:
        async def watched() -> None:
            try:
                await work
            except Exception as error:  # whoever waits must hear it
                reason = error if isinstance(error, TeacherError) else _unable(error)
                self._desk.stop(reason)
                for key in askers:
                    self._resolve(key, reason)

        task = asyncio.create_task(watched())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, path: str, askers: dict[str, Asker], lines: bytes) -> None:
        token = secrets.token_hex(16)
        batch = await self._store.begin(token, path, askers)
        file_id = await self._persist(lambda: self._api.upload(lines))
        await self._store.uploaded(token, file_id)
        try:
            remote = await self._api.create(file_id, path, token)
        except AttemptFailed as failed:
            if not failed.attempt.error.retryable:
                await self._store.close(token)
                raise failed.attempt.error from None
            found = await self._find(token, file_id, time.time())  # perhaps it was made all the same
            remote = found or await self._api.create(file_id, path, token)
        await self._store.created(token, remote.id)
        await self._collect(batch, remote.id)

    async def _go_on(self, batch: OpenBatch) -> None:
        """A batch of an earlier run, from wherever it was left."""
        batch_id = batch.batch_id
        if batch_id is None:
            remote = await self._find(batch.token, batch.file_id, batch.created_at)
            if remote is None:  # it was never made: its requests join a new one, or go online
                await self._store.close(batch.token)
                for key in batch.askers:
                    self._resolve(key, _Unanswered.BATCH_NEVER_MADE)
                return
            batch_id = remote.id
            await self._store.created(batch.token, batch_id)
        await self._collect(batch, batch_id)

    async def _find(self, token: str, file_id: str | None, begun_at: float) -> RemoteBatch | None:
        """Look for it until a creation that was under way must have come through."""
        while True:
            found = await self._persist(lambda: self._api.find(token, file_id))
            left = begun_at + _SETTLE_SECONDS - time.time()
            if found is not None or left <= 0:
                return found
            await asyncio.sleep(min(left, self._settings.poll_seconds))

    async def _collect(self, batch: OpenBatch, batch_id: str) -> None:
        """Wait until it is over, commit what was answered, and hand over the rest."""
        while True:
            remote = await self._persist(lambda: self._api.get(batch_id))
            if remote is None or remote.status in TERMINAL:
                break
            await asyncio.sleep(self._settings.poll_seconds)
        answers: dict[str, Answer] = {}
        for file_id in remote.files if remote is not None else ():
            content = await self._persist(partial(self._api.download, file_id))
            for key, reply in read_results(content):
                if key in batch.askers:
                    answers[key] = self._desk.batch_answer(key, reply)
        statements = [one for key, answer in answers.items() for one in put_answer(answer, batch.askers[key])]
        await self._store.close(batch.token, statements)
        for answer in answers.values():
            self._desk.count(answer)
        problem = _problem(remote, len(batch.askers) - len(answers))
        if problem is not None:
            self._desk.stop(problem)
        for key in batch.askers:
            self._resolve(key, answers.get(key) or problem or _Unanswered.IN_A_BATCH)

    async def _persist(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Try again what may pass: a batch is paid for, one lost connection is no reason to leave it."""
        failures = 0
        while True:
            try:
                return await call()
            except AttemptFailed as failed:
                failures += 1
                if not failed.attempt.error.retryable or failures >= _MOST_FAILURES:
                    raise failed.attempt.error from None
                wait = failed.attempt.retry_after or min(_LONGEST_WAIT_SECONDS, 0.25 * 2.0**failures)
                await asyncio.sleep(wait)

    def _resolve(self, key: str, result: Answer | TeacherError | _Unanswered) -> None:
        future = self._waiting.pop(key, None)
        if future is None or future.done():
            return
        if isinstance(result, TeacherError):
            future.set_exception(result)
            with contextlib.suppress(TeacherError):
                future.exception()  # nobody may be waiting for it
        else:
            future.set_result(result)


def _problem(remote: RemoteBatch | None, unanswered: int) -> TeacherError | None:
    """Why the rows that got no answer are not asked online; None: they are."""
    if remote is None or not unanswered or remote.status in ("completed", "expired"):
        return None
    if remote.status == "cancelled":
        return TeacherError(
            f"batch {remote.id} was cancelled there with {unanswered:,} requests unanswered",
            remedy="what was answered is kept; run again to ask the rest",
        )
    return TeacherError(
        f"the provider refuses batch {remote.id}: {remote.problem or 'it gives no reason'}",
        remedy="lower teacher.batch.requests, or set teacher.mode: online, and run again",
    )


def _unable(error: Exception) -> TeacherError:
    return TeacherError(f"the batch cannot go on: {error}", remedy="run again: what the provider has is found there")
