"""A server's log probabilities of the tokens of a prompt: vLLM's `prompt_logprobs`, or `echo` with `logprobs`.

`ScoreSender` is one attempt, for the client with its ledger, limits and budget; `PromptScorer` reads the answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from distill.errors import TeacherError
from distill.teacher.client import TeacherClient
from distill.teacher.endpoint import Attempt, AttemptFailed, Endpoint, Reply, parse_rate_news
from distill.teacher.logprobs import Position, pack, unpack
from distill.teacher.requests import Request, ScoreRequest
from distill.teacher.tops import Tops

_ID_PREFIX = "token_id:"
_SAY_NOTHING_OF_THE_DIALECT = (401, 402, 403, 404)


class ScoreSender:
    """Asks one endpoint about prompts. The first one finds out which of the two dialects the server speaks."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._echo: bool | None = None
        self._finding_out = asyncio.Lock()

    async def send(self, request: Request) -> Reply:
        """One attempt. Raises AttemptFailed."""
        assert isinstance(request, ScoreRequest)
        if self._echo is None:
            async with self._finding_out:
                if self._echo is None:
                    return await self._find_out(request)
        return await self._ask(request, echo=self._echo)

    async def close(self) -> None:
        """Close the endpoint's connections."""
        await self._endpoint.close()

    async def _find_out(self, request: ScoreRequest) -> Reply:
        try:
            found = await self._ask(request, echo=False)
            self._echo = False
        except AttemptFailed as failed:
            error = failed.attempt.error
            if error.retryable or error.status in _SAY_NOTHING_OF_THE_DIALECT:
                raise
            found = await self._ask(request, echo=True)
            self._echo = True
        return found

    async def _ask(self, request: ScoreRequest, *, echo: bool) -> Reply:
        teacher = self._endpoint.teacher
        body = request.echo_body(teacher.model) if echo else request.body(teacher.model)
        data = json.dumps(body).encode()
        reply = await self._endpoint.exchange("POST", request.path, data, timeout_seconds=teacher.timeout_seconds)
        try:
            whole = json.loads(reply.content)
            choice, usage = whole["choices"][0], whole.get("usage") or {}
            told = choice["logprobs"]["top_logprobs"] if echo else choice["prompt_logprobs"]
            positions = [_position(entry) for entry in told][: len(request.tokens)]
            why = f"{len(positions)} positions for {len(request.tokens)} tokens"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            positions, usage, why = [], {}, f"{type(error).__name__} {error}"
        if len(positions) != len(request.tokens):
            odd = TeacherError(
                f"{self._endpoint.shown_url} sent no log probabilities of the prompt ({why})",
                remedy="vLLM and `distill serve` give them; with others use signal.kind: live",
            )
            raise AttemptFailed(Attempt(odd))
        return Reply(
            text="",
            refusal=None,
            finish_reason="stop",
            prompt_tokens=int(usage.get("prompt_tokens") or len(request.tokens)),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=0,
            logprobs=pack(positions),
            news=parse_rate_news(reply.headers),
        )


def _position(entry: Mapping[str, Any] | None) -> Position:
    """What is told of one token's place, the tokens as the server names them; nothing of the first one."""
    if entry is None:
        return Position(b"", 0.0, ())
    if all(isinstance(value, Mapping) for value in entry.values()):  # vLLM: {"17": {"logprob": -0.1, "rank": 1, ...}}
        told = [(f"{_ID_PREFIX}{int(name)}", value["logprob"]) for name, value in entry.items()]
    else:
        told = list(entry.items())
    return Position(b"", 0.0, tuple((name.encode("utf-8", "replace"), float(value)) for name, value in told))


class PromptScorer:
    """The tokens' log probabilities by their ids. `ids_by_text` finds tokens that a server names by their bytes."""

    def __init__(self, client: TeacherClient, ids_by_text: Mapping[bytes, int]) -> None:
        self.client = client
        self._ids = ids_by_text

    async def score(self, prompt: list[int], k: int, *, method: str = "signals", row: str = "") -> list[Tops | None]:
        """Of each token of the prompt, the k likeliest in its place (and itself); None for the first one.

        What was answered once is in the ledger, and not asked again. Raises TeacherError.
        """
        answer = await self.client.ask(ScoreRequest(tuple(prompt), k, method, row))
        assert answer.logprobs is not None
        return [self._tops(position.top) if position.top else None for position in unpack(answer.logprobs)]

    def _tops(self, told: tuple[tuple[bytes, float], ...]) -> Tops:
        found: dict[int, float] = {}
        prefix = _ID_PREFIX.encode()
        for name, value in told:
            token = name.removeprefix(prefix)
            known = int(token) if token != name and token.isdigit() else self._ids.get(name)
            found.setdefault(known if known is not None else -1 - len(found), value)
        return found
