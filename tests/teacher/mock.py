"""An OpenAI-compatible teacher for tests: an asyncio HTTP server in a thread, whose every reply a test may script."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """One HTTP reply: `raw` (any bytes) wins over `body`; `hang` never answers, `reset` cuts the connection."""

    body: Body | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    raw: bytes | None = None
    hang: bool = False
    reset: bool = False


def completion(
    text: str | None,
    *,
    finish_reason: str = "stop",
    prompt_tokens: int = 10,
    completion_tokens: int = 5,
    delay: float = 0.0,
    headers: dict[str, str] | None = None,
    refusal: str | None = None,
) -> Reply:
    """A chat completion with one choice."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "mock",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": refusal},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
    return Reply(body=body, delay=delay, headers=headers or {})


def error(status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None) -> Reply:
    """An error in OpenAI's shape."""
    return Reply(
        body={"error": {"message": message, "type": "error", "param": None, "code": code}},
        status=status,
        headers=headers or {},
    )


Respond = Callable[[Body, int], Reply]


def echo(body: Body, number: int) -> Reply:
    """Answers with the last user message."""
    return completion(f"echo: {body['messages'][-1]['content']}")


class MockTeacher:
    """`with MockTeacher(respond) as mock`: `mock.base_url` is served until the block ends.

    `respond(body, number)` decides each reply; `number` counts the requests from 0. `requests` keeps their bodies,
    `keys` the Authorization headers, `targets` the paths with their queries, `headers` all headers; `finished` counts
    replies sent and `peak` the most requests open at once.
    """

    def __init__(self, respond: Respond = echo, *, models: tuple[str, ...] = ("mock",), key: str | None = None) -> None:
        self.respond = respond
        self.models = models
        self.key = key
        self.requests: list[Body] = []
        self.keys: list[str | None] = []
        self.targets: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.finished = 0
        self.open = 0
        self.peak = 0
        self.base_url = ""
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> MockTeacher:
        self._thread.start()
        self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def prompts(self) -> list[str]:
        """The last message of every chat request received."""
        return [str(body["messages"][-1]["content"]) for body in self.requests]

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._started.set()
        await self._stop.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                reply = self._reply(head[0], headers, body)
                self.open += 1
                self.peak = max(self.peak, self.open)
                try:
                    if reply.hang:
                        await asyncio.sleep(3600)
                    if reply.delay:
                        await asyncio.sleep(reply.delay)
                finally:
                    self.open -= 1
                if reply.reset:
                    return
                self._write(writer, reply)
                await writer.drain()
                self.finished += 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _reply(self, request_line: str, headers: dict[str, str], body: bytes) -> Reply:
        sent = (headers.get("authorization") or "").removeprefix("Bearer ")
        if self.key is not None and self.key not in (sent, headers.get("api-key")):
            return error(401, f"Incorrect API key provided: {headers.get('authorization')}")
        if request_line.startswith("GET /v1/models"):
            return Reply(body={"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
        parsed: Body = json.loads(body)
        number = len(self.requests)
        self.requests.append(parsed)
        self.keys.append(headers.get("authorization"))
        self.targets.append(request_line.split(" ")[1])
        self.headers.append(headers)
        return self.respond(parsed, number)

    @staticmethod
    def _write(writer: asyncio.StreamWriter, reply: Reply) -> None:
        payload = reply.raw if reply.raw is not None else json.dumps(reply.body).encode()
        extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        fixed = f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n"
        writer.write(f"HTTP/1.1 {reply.status} X\r\n{fixed}{extra}\r\n".encode() + payload)


def raw_completion(text: str, *, finish_reason: str = "stop", prompt_tokens: int = 10) -> Reply:
    """A reply of POST /completions with one choice."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 5, "total_tokens": prompt_tokens + 5}
    choice = {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": None}
    return Reply(body={"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": usage})
