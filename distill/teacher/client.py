"""Asks a teacher and keeps every answer: ledger first, then limits, attempts, budget, and a breaker over all of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import NoReturn

from distill.errors import TeacherError
from distill.recipe.teacher import OpenAITeacher, Teacher
from distill.teacher.accounts import Accounts
from distill.teacher.batch_api import BatchApi
from distill.teacher.batch_queue import BatchQueue
from distill.teacher.batch_store import BatchStore
from distill.teacher.endpoint import Attempt, AttemptFailed, Endpoint, Reply
from distill.teacher.flow import in_order
from distill.teacher.ledger import Asker, Failure, Ledger
from distill.teacher.limits import Gate, Limits
from distill.teacher.rates import Bucket, backoff_seconds
from distill.teacher.requests import Answer, KeyMaker, Request, teacher_identity, teacher_label
from distill.teacher.sender import Nobody, Sender, open_sender

FAILURES_IN_A_ROW = 20


class TeacherClient:
    """One teacher, one ledger, one policy. Use as an async context manager.

    `sender`: another way to it than its recipe section says. `shared`: other teachers fill the ledger too; the budget
    then counts this one's answers only. `online`: no new batches, whatever the recipe says.

    `ask` raises TeacherError for a request that failed; `stopped` says when all of them are bound to (wrong key,
    unreachable, budget spent, failure after failure): whoever runs a job then stops too, and a later run goes on.
    """

    def __init__(
        self,
        teacher: Teacher,
        ledger: Ledger,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        sender: Sender | None = None,
        shared: bool = False,
        online: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.teacher = teacher
        self.ledger = ledger
        self.stopped: TeacherError | None = None
        self.sender = sender or open_sender(teacher, base_url, api_key=api_key)
        self.label = teacher_label(teacher)
        spent_before = ledger.spent_usd(self.label if shared else None)
        self._accounts = Accounts(teacher, spent_before=spent_before, limited=not isinstance(sender, Nobody))
        self.usage = self._accounts.usage
        self.rates = self._accounts.rates
        self._keys = KeyMaker(teacher_identity(teacher, base_url))
        rpm, tpm = teacher.requests_per_minute, teacher.tokens_per_minute
        self.limits = Limits(
            teacher.max_concurrency,
            requests=Bucket(rpm) if rpm is not None else None,
            tokens=Bucket(tpm) if tpm is not None else None,
        )
        self._clock = clock
        self._gate = Gate(self.limits, clock)
        self._asking: dict[str, asyncio.Future[Answer]] = {}
        self._failures_in_a_row = 0
        self._rng = random.Random(0)
        self._stop_event = asyncio.Event()
        self._batches = self._open_batches(gather=self.in_batch_mode and not online)
        self._check_budget()

    async def __aenter__(self) -> TeacherClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._batches is not None:
            await self._batches.close()
        await self.sender.close()

    @property
    def width(self) -> int:
        """Prompts to work on at once: twice the requests in flight, so that a free place never waits for one."""
        at_once = self.teacher.max_concurrency
        if isinstance(self.teacher, OpenAITeacher) and self.in_batch_mode:
            at_once = max(at_once, self.teacher.batch.requests)
        return 2 * at_once

    @property
    def in_batch_mode(self) -> bool:
        """Whether the recipe asks through the Batch API."""
        return isinstance(self.teacher, OpenAITeacher) and self.teacher.mode == "batch"

    @property
    def in_batches(self) -> int:
        """Requests that wait for a batch."""
        return self._batches.in_batches if self._batches is not None else 0

    def key(self, request: Request) -> str:
        """The request's key in the ledger."""
        return self._keys.key(request)

    def spent_usd(self) -> float:
        """Dollars of all sessions, this one included."""
        return self._accounts.spent_usd()

    def _open_batches(self, *, gather: bool) -> BatchQueue | None:
        """Batches to come, or of an earlier run: those are collected whatever the recipe says now."""
        teacher = self.teacher
        if not isinstance(teacher, OpenAITeacher) or not isinstance(self.sender, Endpoint):
            return None
        store = BatchStore(self.ledger, self.label)
        batches = BatchQueue(BatchApi(self.sender), store, teacher.batch, self, model=teacher.model, gather=gather)
        return None if batches.idle else batches

    async def ask(self, request: Request) -> Answer:
        """The committed answer, from the ledger where it is there. Equal requests under way are asked once."""
        key = self._keys.key(request)
        under_way = self._asking.get(key)
        if under_way is not None:
            return await asyncio.shield(under_way)
        found = self.ledger.find(key)
        if isinstance(found, TeacherError):
            self.usage.failed += 1
            raise found
        if found is not None:
            self.usage.from_ledger += 1
            return found
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asking[key] = future
        try:
            answer = await self._ask_anew(key, request)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                future.cancel()
            else:
                future.set_exception(error)
                future.exception()  # nobody else may be waiting for it
            raise
        finally:
            del self._asking[key]
        future.set_result(answer)
        return answer

    async def stream(self, requests: Iterable[Request]) -> AsyncIterator[tuple[Request, Answer | TeacherError]]:
        """Answers (or failures) in the order of the requests, which are taken from the iterable as room comes free.

        Raises the reason when the client stops; what was answered until then is in the ledger.
        """

        async def outcome(request: Request) -> tuple[Request, Answer | TeacherError]:
            try:
                return request, await self.ask(request)
            except TeacherError as error:
                if self.stopped is not None:
                    raise self.stopped from None
                return request, error

        async for pair in in_order(outcome, requests, width=self.width):
            yield pair

    def stop(self, reason: TeacherError) -> None:
        """Send nothing more. Requests in flight still end, and their answers count."""
        if self.stopped is None:
            self.stopped = reason
            self._stop_event.set()
            self._gate.close(reason)
            if self._batches is not None:
                self._batches.abandon(reason)

    async def _ask_anew(self, key: str, request: Request) -> Answer:
        """A batch's answer, where it is in one; else all attempts at it, then the commit of what came of them."""
        if self._batches is not None:
            if self.stopped is not None:
                raise self.stopped
            answer = await self._batches.answer(key, request)
            if answer is not None:
                return answer
        tokens = request.estimated_tokens()
        deadline = self._clock() + self.teacher.deadline_seconds
        answered_before = self.usage.answered
        sent = failures = 0
        while True:
            await self._gate.enter(tokens)
            started_at, number = self._clock(), self.limits.started
            self.usage.sent += 1
            sent += 1
            try:
                reply = await self.sender.send(request)
                seconds = self._clock() - started_at
                used = reply.prompt_tokens + reply.completion_tokens
                self.limits.answered(tokens, used, seconds=seconds, completion_tokens=reply.completion_tokens)
                if reply.news is not None:
                    self.limits.told(reply.news, number=number, now=self._clock())
                return await self._commit(key, request, reply, sent, seconds)
            except AttemptFailed as failed:
                attempt = failed.attempt
                wait = self._learn(attempt, sent, started_at)  # before anybody else is let through
            finally:
                self._gate.leave()
            failures += not attempt.slow_down
            out_of_time = max(self._clock() + wait, self.limits.cool_until) > deadline
            if attempt.fatal or not attempt.error.retryable or failures >= self.teacher.max_attempts or out_of_time:
                helpless = attempt.unreachable and self.usage.answered == answered_before
                await self._give_up(key, request, attempt, sent, helpless)
            await self._rest(wait)

    def _learn(self, attempt: Attempt, sent: int, started_at: float) -> float:
        """Learn from a failed attempt; seconds that this request waits before its next."""
        if attempt.fatal:
            self.stop(attempt.error)
        if attempt.slow_down:
            self.usage.refusals += 1
            self.limits.refused(started_at=started_at, now=self._clock(), retry_after=attempt.retry_after)
            return 0.0  # the gate makes everybody wait
        return backoff_seconds(sent, self._rng)

    async def _rest(self, seconds: float) -> None:
        """Sleep, unless the client stops meanwhile: then raise why."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop_event.wait()
        if self.stopped is not None:
            raise self.stopped

    async def _commit(self, key: str, request: Request, reply: Reply, attempts: int, seconds: float) -> Answer:
        answer = self._accounts.answer(key, reply, attempts=attempts, seconds=seconds)
        self._spend(answer)
        await self.ledger.put_answer(answer, self.asker(request))
        self._accounts.tally(answer)
        return answer

    def batch_answer(self, key: str, reply: Reply) -> Answer:
        """An answer at the batch's price; what it took there is not known."""
        return self._accounts.answer(key, reply, attempts=1, seconds=0.0, in_batch=True)

    def count(self, answer: Answer) -> None:
        """Usage and budget of a batch's answer, once it is committed."""
        self.usage.sent += 1
        self._spend(answer)
        self._accounts.tally(answer)

    def usual_cost_usd(self, answer: Answer) -> float | None:
        """What such an answer costs as the recipe asks for it."""
        return self._accounts.cost_of(answer, in_batch=self.in_batch_mode)

    def _spend(self, answer: Answer) -> None:
        self._accounts.spend(answer)
        self._check_budget()
        self._failures_in_a_row = 0  # as it came, not as it was committed: failures after it count

    async def _give_up(self, key: str, request: Request, attempt: Attempt, attempts: int, helpless: bool) -> NoReturn:
        """Record the failure, stop everything where it is everybody's, and raise it."""
        error = attempt.error
        self.usage.failed += 1
        self._failures_in_a_row += 1
        if attempt.fatal:
            raise error
        if helpless or self._failures_in_a_row >= FAILURES_IN_A_ROW:
            count = self._failures_in_a_row
            message = (
                error.message if count == 1 else f"stopped after {count} failed requests in a row: {error.message}"
            )
            remedy = f"{error.remedy or 'see to the teacher'}; run again to go on where it stopped"
            self.stop(TeacherError(message, remedy=remedy, retryable=error.retryable, status=error.status))
        permanent = not error.retryable
        await self.ledger.put_failure(
            Failure(key, error.message, error.status, permanent, attempts, time.time()), self.asker(request)
        )
        raise error

    def _check_budget(self) -> None:
        reason = self._accounts.overspent()
        if reason is not None:
            self.stop(reason)

    def asker(self, request: Request) -> Asker:
        """Who asks, for the ledger."""
        return Asker(self.label, request.method, request.seed_row, request.sample)
