"""The engine in a thread of its own; requests come from asyncio and news go back to it, once a step."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from distill.engine.runner import Engine
from distill.engine.sampler import child_seed
from distill.engine.types import SamplingParams, StepOutput
from distill.errors import EngineError

_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Ticket:
    """One accepted request: news of its choices arrive in `news` as (choice index, output)."""

    key: int
    prompts: Sequence[Sequence[int]]
    params: Sequence[SamplingParams]  # one a prompt
    n: int
    stream: bool
    continues: bool  # the text goes on from the prompt's
    loop: asyncio.AbstractEventLoop
    news: asyncio.Queue[list[tuple[int, StepOutput]] | BaseException] = field(default_factory=asyncio.Queue)
    num_open: int = 0  # choices not finished yet; the engine's thread counts
    finished: bool = False  # the reader has all of it; the event loop's side says so

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.n


class EngineLoop:
    """Owns the engine: no other thread touches it after `start`, except for `Engine.check` and plain counters."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failure: BaseException | None = None
        self._inbox: deque[tuple[str, Ticket]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._tickets: dict[int, Ticket] = {}
        self._keys = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the step at hand and end the thread; open requests hear that the server stops."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def submit(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        n: int,
        stream: bool,
        continues: bool,
    ) -> Ticket:
        """Hand requests to the engine, from the event loop. The caller calls `close` in any case."""
        if self._stopping:
            raise EngineError("the server is stopping", remedy="ask again once it is back")
        if self.failure is not None:
            raise EngineError(f"the engine failed: {self.failure}", remedy="restart the server")
        self._keys += 1
        ticket = Ticket(self._keys, prompts, params, n, stream, continues, asyncio.get_running_loop())
        self._send("add", ticket)
        return ticket

    def close(self, ticket: Ticket) -> None:
        """The reader is gone or has everything: free what is left of the request."""
        if not ticket.finished:
            self._send("drop", ticket)

    def _send(self, verb: str, ticket: Ticket) -> None:
        self._inbox.append((verb, ticket))
        self._wake.set()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take_requests()
                if self.engine.has_work:
                    self._deliver(self.engine.step())
                else:
                    self._wake.wait()
                    self._wake.clear()
            self._fail(EngineError("the server is stopping"))
        except BaseException as error:  # whatever it is, clients must hear of it rather than wait for ever
            _LOG.exception("the engine failed")
            self.failure = error
            self._fail(error)

    def _take_requests(self) -> None:
        while self._inbox:
            verb, ticket = self._inbox.popleft()
            if verb == "add":
                self._add(ticket)
            elif self._tickets.pop(ticket.key, None) is not None:
                for choice in range(ticket.num_choices):
                    self.engine.abort(f"{ticket.key}.{choice}")

    def _add(self, ticket: Ticket) -> None:
        self._tickets[ticket.key] = ticket
        ticket.num_open = ticket.num_choices
        for index, (prompt, params) in enumerate(zip(ticket.prompts, ticket.params, strict=True)):
            for choice in range(ticket.n):
                self.engine.add(
                    f"{ticket.key}.{index * ticket.n + choice}",
                    prompt,
                    _reseed(params, choice),
                    stream=ticket.stream,
                    continues=ticket.continues,
                )

    def _deliver(self, outputs: list[StepOutput]) -> None:
        """Pass a step's news on, one callback an event loop."""
        if not outputs:
            return
        batches: dict[asyncio.AbstractEventLoop, dict[int, list[tuple[int, StepOutput]]]] = {}
        for output in outputs:
            key, _, choice = output.request_id.partition(".")
            ticket = self._tickets[int(key)]
            batches.setdefault(ticket.loop, {}).setdefault(ticket.key, []).append((int(choice), output))
            if output.completion is not None:
                ticket.num_open -= 1
        for loop, news in batches.items():
            tickets = [(self._tickets[key], items) for key, items in news.items()]
            self._call(loop, tickets)
        for ticket in [self._tickets[key] for news in batches.values() for key in news]:
            if not ticket.num_open:
                del self._tickets[ticket.key]

    def _fail(self, error: BaseException) -> None:
        for ticket in [*self._tickets.values(), *(t for verb, t in self._inbox if verb == "add")]:
            self._call(ticket.loop, [(ticket, error)])
        self._tickets.clear()
        self._inbox.clear()

    @staticmethod
    def _call(
        loop: asyncio.AbstractEventLoop,
        news: Sequence[tuple[Ticket, list[tuple[int, StepOutput]] | BaseException]],
    ) -> None:
        def put() -> None:
            for ticket, item in news:
                ticket.news.put_nowait(item)

        if not loop.is_closed():
            loop.call_soon_threadsafe(put)


def _reseed(params: SamplingParams, choice: int) -> SamplingParams:
    """The n-th choice of a seeded request gets a seed of its own, the same each time."""
    if params.seed is None or choice == 0:
        return params
    return replace(params, seed=child_seed(params.seed, choice))
