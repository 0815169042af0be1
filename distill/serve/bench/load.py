"""Load on a server: streamed completions that arrive at a rate, whether or not earlier ones are answered."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

_TIMEOUT_SECONDS = 600.0
_TOKEN_IDS = 256  # prompts are drawn from the first ids, which every vocabulary has


@dataclass(frozen=True)
class Workload:
    """Requests of one size; with random prompts no server finds a prefix that it has computed before."""

    num_requests: int
    prompt_tokens: int
    max_tokens: int
    seed: int = 0

    def prompts(self, run: int) -> list[list[int]]:
        """One a request, others in each run."""
        rng = random.Random(f"{self.seed} {run}")
        return [[rng.randrange(_TOKEN_IDS) for _ in range(self.prompt_tokens)] for _ in range(self.num_requests)]

    def arrivals(self, rate: float | None) -> list[float]:
        """Seconds after the start at which each request is due: a Poisson process, or all at once."""
        rng, now, due = random.Random(self.seed), 0.0, []
        for _ in range(self.num_requests):
            due.append(now)
            now += rng.expovariate(rate) if rate is not None else 0.0
        return due


@dataclass
class Sample:
    """What became of one request; times are seconds after the start of the run. Status 0: the connection broke."""

    due: float
    status: int = 0
    pieces: list[float] = field(default_factory=list)  # arrival of each piece of text
    done: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""

    @property
    def answered(self) -> bool:
        return self.status == 200 and self.completion_tokens > 0


@dataclass(frozen=True)
class Server:
    """Where completions are asked for."""

    base_url: str  # with /v1
    model: str
    api_key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}


def run_load(
    server: Server,
    prompts: Sequence[Sequence[int]],
    arrivals: Sequence[float],
    *,
    max_tokens: int,
    max_open: int | None = None,
) -> list[Sample]:
    """Send every prompt when it is due; returns once all are answered or refused. With `max_open` a request is due no
    sooner than one of so many before it is done (a closed loop)."""
    return asyncio.run(_run(server, prompts, arrivals, max_tokens, max_open or len(prompts)))


async def _run(
    server: Server, prompts: Sequence[Sequence[int]], arrivals: Sequence[float], max_tokens: int, max_open: int
) -> list[Sample]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    samples = [Sample(due) for due in arrivals]
    async with httpx2.AsyncClient(
        headers=server.headers, limits=limits, timeout=_TIMEOUT_SECONDS, trust_env=False
    ) as client:
        start, room = time.perf_counter(), asyncio.Semaphore(max_open)
        asking = [
            _ask(client, server, _body(server.model, prompt, max_tokens), sample, start, room)
            for prompt, sample in zip(prompts, samples, strict=True)
        ]
        await asyncio.gather(*asking)
    return samples


def _body(model: str, prompt: Sequence[int], max_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def _ask(
    client: httpx2.AsyncClient,
    server: Server,
    body: dict[str, Any],
    sample: Sample,
    start: float,
    room: asyncio.Semaphore,
) -> None:
    await asyncio.sleep(max(0.0, start + sample.due - time.perf_counter()))
    full = room.locked()
    async with room:
        if full:
            sample.due = time.perf_counter() - start
        await _send(client, server, body, sample, start)


async def _send(client: httpx2.AsyncClient, server: Server, body: dict[str, Any], sample: Sample, start: float) -> None:
    try:
        async with client.stream("POST", f"{server.base_url}/completions", json=body) as response:
            if response.status_code != 200:
                sample.error = (await response.aread()).decode(errors="replace")[:500]
            else:
                await _read(response, sample, start)
            sample.status = response.status_code
    except httpx2.HTTPError as error:
        sample.error = f"{type(error).__name__}: {error}"
    sample.done = time.perf_counter() - start


async def _read(response: httpx2.Response, sample: Sample, start: float) -> None:
    """Note when each piece of text comes, and the usage at the end."""
    async for line in response.aiter_lines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            sample.error = str(event["error"])[:500]
        if any(choice.get("text") for choice in event.get("choices", ())):
            sample.pieces.append(time.perf_counter() - start)
        usage = event.get("usage")
        if usage is not None:
            sample.prompt_tokens = int(usage["prompt_tokens"])
            sample.completion_tokens = int(usage["completion_tokens"])
