"""A teacher of fixed behaviour for `benchmarks.generate`: the OpenAI chat API from one process, standard library only.

    python -m benchmarks.mock_teacher --port-file PATH

`POST /configure` (a JSON of `Behaviour`) starts a test afresh, `GET /stats` says what was seen since. Answers come
after `latency` seconds by a timer, so that hundreds wait at no cost; refusals and errors come at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROMPT_TOKENS, COMPLETION_TOKENS = 20, 10
_USAGE = (
    f'{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{COMPLETION_TOKENS},'
    f'"total_tokens":{PROMPT_TOKENS + COMPLETION_TOKENS}}}'
)


@dataclass(frozen=True)
class Behaviour:
    """How the mock answers. `slow_share` of the prompts take ten times as long; beyond `slots` requests queue. With
    `varied_usage` every answer bills another number of tokens, some of them cached or hidden."""

    latency: float = 0.2
    slow_share: float = 0.0
    requests_per_second: float | None = None
    error_share: float = 0.0
    bad_word: str | None = None
    slots: int | None = None
    varied_usage: bool = False
    seed: int = 0


@dataclass
class Stats:
    """What was seen since the last configuration."""

    received: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    open: int = 0
    peak: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    billed: Counter[str] = field(default_factory=Counter)  # tokens of answers, by kind
    asked: Counter[str] = field(default_factory=Counter)  # prompts that were not refused or failed
    bad: Counter[str] = field(default_factory=Counter)


class Bucket:
    """A token bucket that holds one second's worth."""

    def __init__(self, per_second: float) -> None:
        self.per_second = self.level = per_second
        self.at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.level = min(self.per_second, self.level + (now - self.at) * self.per_second)
        self.at = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


class Mock:
    """State shared by all connections."""

    def __init__(self) -> None:
        self.configure(Behaviour())

    def configure(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.stats = Stats()
        self.rng = random.Random(behaviour.seed)
        self.bucket = Bucket(behaviour.requests_per_second) if behaviour.requests_per_second else None
        self.busy = 0
        self.queue: deque[Any] = deque()

    def report(self) -> dict[str, Any]:
        stats, usage = self.stats, resource.getrusage(resource.RUSAGE_SELF)
        return {
            "received": stats.received,
            "answered": stats.answered,
            "refused": stats.refused,
            "failed": stats.failed,
            "peak": stats.peak,
            "open": stats.open,
            "span": stats.last_at - stats.first_at,
            "distinct": len(stats.asked),
            "doubled": sum(stats.asked.values()) - len(stats.asked),
            "bad_tries": dict(stats.bad),
            "billed": dict(stats.billed),
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
        }


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it are answered in turn."""

    def __init__(self, mock: Mock) -> None:
        self.mock = mock
        self.buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head_end = self.buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            head = self.buffer[:head_end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            end = head_end + 4 + length
            if len(self.buffer) < end:
                if b"expect: 100-continue" in head and self.transport is not None:
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body, self.buffer = self.buffer[head_end + 4 : end], self.buffer[end:]
            self.handle(head.split(b" ", 2)[1].decode(), body)

    def handle(self, path: str, body: bytes) -> None:
        mock = self.mock
        if path == "/configure":
            mock.configure(Behaviour(**json.loads(body)))
            self.write(200, b"{}")
        elif path == "/stats":
            self.write(200, json.dumps(mock.report()).encode())
        elif path.endswith("/models"):
            self.write(200, b'{"object":"list","data":[{"id":"mock","object":"model","created":0,"owned_by":"mock"}]}')
        else:
            self.complete(body)

    def complete(self, body: bytes) -> None:
        mock, now = self.mock, time.monotonic()
        stats, behaviour = mock.stats, mock.behaviour
        messages = json.loads(body)["messages"]
        if not messages:  # a probe for headers, no row
            return self.write(400, b'{"error":{"message":"no messages","type":"mock","param":null,"code":null}}')
        content = messages[-1]["content"]
        prompt = content if isinstance(content, str) else content[0]["text"]
        stats.received += 1
        stats.first_at = stats.first_at or now
        if behaviour.bad_word is not None and behaviour.bad_word in prompt:
            stats.bad[prompt] += 1
            return self.error(400, "this prompt is not acceptable")
        if mock.bucket is not None and not mock.bucket.take():
            stats.refused += 1
            return self.error(429, "rate limit reached", retry_after=1)
        if behaviour.error_share and mock.rng.random() < behaviour.error_share:
            stats.failed += 1
            return self.error(500, "internal error")
        stats.asked[prompt] += 1
        stats.open += 1
        stats.peak = max(stats.peak, stats.open)
        draw = random.Random(f"{behaviour.seed}:{prompt}").random() if behaviour.slow_share else 1.0
        slow = draw < behaviour.slow_share
        seconds = behaviour.latency * (10 if slow else 1)
        if behaviour.slots is not None and mock.busy >= behaviour.slots:
            mock.queue.append((self, seconds, prompt, stats))
        else:
            mock.busy += 1
            asyncio.get_running_loop().call_later(seconds, self.answer, prompt, stats)

    def answer(self, prompt: str, stats: Stats) -> None:
        mock = self.mock
        if mock.queue:
            waiting, seconds, text, its_stats = mock.queue.popleft()
            asyncio.get_running_loop().call_later(seconds, waiting.answer, text, its_stats)
        else:
            mock.busy -= 1
        stats.open -= 1
        stats.answered += 1
        stats.last_at = time.monotonic()
        text = json.dumps(f"An answer to: {prompt[:200]}")
        usage = self.usage(stats)
        payload = (
            '{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"mock","choices":[{"index":0,'
            f'"message":{{"role":"assistant","content":{text}}},"finish_reason":"stop"}}],"usage":{usage}}}'
        )
        self.write(200, payload.encode())

    def usage(self, stats: Stats) -> str:
        """The tokens of an answer, as JSON, and on the bill."""
        if not self.mock.behaviour.varied_usage:
            return _USAGE
        rng = self.mock.rng
        asked, answered = rng.randrange(200, 4000), rng.randrange(50, 1000)
        cached, hidden = rng.randrange(200), rng.randrange(50)
        stats.billed.update(input=asked - cached, cached_input=cached, output=answered - hidden, reasoning=hidden)
        details = {
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": hidden},
        }
        return json.dumps({"prompt_tokens": asked, "completion_tokens": answered, **details})

    def error(self, status: int, message: str, retry_after: int | None = None) -> None:
        self.mock.stats.last_at = time.monotonic()
        body = json.dumps({"error": {"message": message, "type": "mock", "param": None, "code": None}}).encode()
        self.write(status, body, "" if retry_after is None else f"retry-after: {retry_after}\r\n")

    def write(self, status: int, body: bytes, headers: str = "") -> None:
        if self.transport is None or self.transport.is_closing():
            return
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


async def serve(port_file: Path) -> None:
    """Until killed."""
    mock = Mock()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(mock), "127.0.0.1", 0, backlog=4096)
    temporary = port_file.with_suffix(".tmp")
    temporary.write_text(str(server.sockets[0].getsockname()[1]))
    temporary.replace(port_file)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port-file", type=Path, required=True)
    asyncio.run(serve(parser.parse_args().port_file))
