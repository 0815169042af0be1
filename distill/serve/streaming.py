"""How an answer leaves: whole or as server-sent events, and never to a client that is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from distill.engine.types import Completion, StepOutput
from distill.serve.answers import Answers
from distill.serve.loop import EngineLoop, Ticket


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


class Answering(Response):
    """Waits for a ticket's news and sends them. While it waits it listens to the client: when that goes away, the
    request is dropped and its blocks are free after the engine's step."""

    def __init__(self, loop: EngineLoop, ticket: Ticket, answers: Answers, *, chat: bool, include_usage: bool) -> None:
        super().__init__()  # headers are sent by hand
        self._loop = loop
        self._ticket = ticket
        self._answers = answers
        self._chat = chat
        self._include_usage = include_usage
        self._done: dict[int, Completion] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_disconnected(receive))
        try:
            if self._ticket.stream:
                await self._stream(send, gone)
            else:
                async for _ in self._news(gone):
                    pass
                await JSONResponse(self._answers.whole(self._completions(), self._ticket.n))(scope, receive, send)
        except ClientGone:
            pass
        finally:
            gone.cancel()
            self._loop.close(self._ticket)

    async def _stream(self, send: Send, gone: asyncio.Task[None]) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self._chat:
            openings = [self._answers.opening(i, self._include_usage) for i in range(self._ticket.num_choices)]
            await send(_body(b"".join(map(_event, openings))))
        try:
            async for items in self._news(gone):
                events = [
                    _event(self._answers.piece(choice, output, self._include_usage))
                    for choice, output in items
                    if output.text or output.logprobs or output.completion is not None
                ]
                if events:
                    await send(_body(b"".join(events)))
        except ClientGone:
            raise
        except Exception as error:  # headers are out: the stream itself must carry the error
            failure = {"error": {"message": str(error), "type": "server_error", "param": None, "code": None}}
            await send(_body(_event(failure), more=False))
            return
        last = [_event(self._answers.closing(self._completions(), self._ticket.n))] if self._include_usage else []
        await send(_body(b"".join([*last, b"data: [DONE]\n\n"]), more=False))

    async def _news(self, gone: asyncio.Task[None]) -> AsyncIterator[list[tuple[int, StepOutput]]]:
        """What the engine says, until every choice is finished."""
        while len(self._done) < self._ticket.num_choices:
            if self._ticket.news.empty():
                getting = asyncio.ensure_future(self._ticket.news.get())
                await asyncio.wait({getting, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    raise ClientGone
                items = getting.result()
            else:
                items = self._ticket.news.get_nowait()
            if isinstance(items, BaseException):
                self._ticket.finished = True
                raise items
            for choice, output in items:
                if output.completion is not None:
                    self._done[choice] = output.completion
            self._ticket.finished = len(self._done) == self._ticket.num_choices
            yield items

    def _completions(self) -> list[Completion]:
        return [self._done[i] for i in range(self._ticket.num_choices)]


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _body(data: bytes, *, more: bool = True) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}
