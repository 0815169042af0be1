"""How an answer leaves: whole or as server-sent events, and never to a client that is gone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from distill.engine.types import Completion, StepOutput
from distill.serve.admission import Slot
from distill.serve.answers import Answers
from distill.serve.loop import EngineLoop, Ticket
from distill.serve.metrics import Traffic

News = list[tuple[int, StepOutput]]


class ClientGone(Exception):
    """The client closed its connection before the answer was complete, or stopped reading it."""


@dataclass(frozen=True)
class Delivery:
    """What an answer needs to know of its request."""

    slot: Slot
    received: float  # time.perf_counter
    include_usage: bool
    opens: bool  # a stream begins with a chunk for each choice: the role, or the echoed prompt
    send_seconds: float


class Answering(Response):
    """Waits for a ticket's news and sends them. While it waits it listens to the client: when that goes away, the
    request is dropped and its blocks are free after the engine's step. A reader that stalls is dropped too; the engine
    waits for none."""

    def __init__(
        self, loop: EngineLoop, ticket: Ticket, answers: Answers, delivery: Delivery, traffic: Traffic
    ) -> None:
        super().__init__()  # headers are sent by hand
        self._loop = loop
        self._ticket = ticket
        self._answers = answers
        self._delivery = delivery
        self._traffic = traffic
        self._done: dict[int, Completion] = {}
        self._last_piece: dict[int, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_disconnected(receive))
        try:
            if self._ticket.stream:
                await self._stream(send, gone)
            else:
                async for _ in self._news(gone):
                    pass
                await JSONResponse(self._answers.whole(self._completions()))(scope, receive, send)
            self._traffic.count(self._completions(), self._ticket.n)
        except ClientGone:
            self._traffic.gone += 1
        finally:
            gone.cancel()
            self._loop.close(self._ticket)
            self._delivery.slot.leave()

    async def _stream(self, send: Send, gone: asyncio.Task[None]) -> None:
        usage = self._delivery.include_usage
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": headers})
        if self._delivery.opens:
            openings = [self._answers.opening(i, usage) for i in range(self._ticket.num_choices)]
            await self._send(send, _body(b"".join(map(_event, openings))))
        try:
            async for items in self._news(gone):
                events = [
                    _event(self._answers.piece(choice, output, usage))
                    for choice, output in items
                    if output.text or output.logprobs or output.completion is not None
                ]
                if events:
                    await self._send(send, _body(b"".join(events)))
        except ClientGone:
            raise
        except Exception as error:  # headers are out: the stream itself must carry the error
            failure = {"error": {"message": str(error), "type": "server_error", "param": None, "code": None}}
            await self._send(send, _body(_event(failure), more=False))
            raise ClientGone from error
        last = [_event(self._answers.closing(self._completions()))] if usage else []
        await self._send(send, _body(b"".join([*last, b"data: [DONE]\n\n"]), more=False))

    async def _send(self, send: Send, message: Message) -> None:
        """Send, unless the client does not read for too long."""
        try:
            async with asyncio.timeout(self._delivery.send_seconds):
                await send(message)
        except TimeoutError:
            raise ClientGone from None

    async def _news(self, gone: asyncio.Task[None]) -> AsyncIterator[News]:
        """What the engine says, until every choice is finished; what came in while the last was sent comes as one."""
        while len(self._done) < self._ticket.num_choices:
            if self._ticket.news.empty() and not gone.done():
                getting = asyncio.ensure_future(self._ticket.news.get())
                await asyncio.wait({getting, gone}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    yield self._note([getting.result()])
                getting.cancel()
            elif gone.done():
                raise ClientGone
            else:
                yield self._note([self._ticket.news.get_nowait() for _ in range(self._ticket.news.qsize())])

    def _note(self, batches: list[News | BaseException]) -> News:
        """Keep completions and times; an error of the engine is raised."""
        items: News = []
        for batch in batches:
            if isinstance(batch, BaseException):
                self._ticket.finished = True
                raise batch
            items += batch
        now = time.perf_counter()
        for choice, output in items:
            if output.completion is not None:
                self._done[choice] = output.completion
            if self._ticket.stream:
                last = self._last_piece.get(choice)
                if last is None:
                    self._traffic.first_token.observe(now - self._delivery.received)
                else:
                    self._traffic.between_tokens.observe(now - last)
                self._last_piece[choice] = now
        if len(self._done) == self._ticket.num_choices:
            self._ticket.finished = True
            self._traffic.whole.observe(now - self._delivery.received)
        return items

    def _completions(self) -> list[Completion]:
        return [self._done[i] for i in range(self._ticket.num_choices)]


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _body(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
