"""A server's log probabilities of the tokens of a prompt: vLLM's `prompt_logprobs`, or `echo` with `logprobs`."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from typing import Any

from distill.errors import TeacherError
from distill.teacher.endpoint import AttemptFailed, Endpoint
from distill.teacher.rates import backoff_seconds
from distill.teacher.tops import Tops

_PATH = "/completions"
_ID_PREFIX = "token_id:"


class PromptScorer:
    """Asks one endpoint about prompts of token ids. `ids_by_text` finds tokens that a server names by their bytes.

    The first prompt finds out which of the two dialects the server speaks. Failures that may pass are tried again, as
    often as the teacher's section says.
    """

    def __init__(self, endpoint: Endpoint, ids_by_text: Mapping[bytes, int]) -> None:
        self._endpoint = endpoint
        self._ids = ids_by_text
        self._echo: bool | None = None
        self._finding_out = asyncio.Lock()
        self._free = asyncio.Semaphore(endpoint.teacher.max_concurrency)
        self._rng = random.Random(0)
        self.asked = 0

    async def score(self, prompt: list[int], k: int) -> list[Tops | None]:
        """Of each token of the prompt, the k likeliest in its place (and itself); None for the first one."""
        async with self._free:
            if self._echo is None:
                async with self._finding_out:
                    if self._echo is None:
                        return await self._find_out(prompt, k)
            return await self._ask(prompt, k, echo=self._echo)

    async def _find_out(self, prompt: list[int], k: int) -> list[Tops | None]:
        try:
            found = await self._ask(prompt, k, echo=False)
            self._echo = False
        except TeacherError as error:
            if error.retryable or error.status in (401, 402, 403, 404):
                raise
            found = await self._ask(prompt, k, echo=True)
            self._echo = True
        return found

    async def _ask(self, prompt: list[int], k: int, *, echo: bool) -> list[Tops | None]:
        teacher = self._endpoint.teacher
        body: dict[str, object] = {"model": teacher.model, "prompt": prompt, "temperature": 0}
        body |= {"max_tokens": 0, "echo": True, "logprobs": k} if echo else {"max_tokens": 1, "prompt_logprobs": k}
        data = json.dumps(body).encode()
        for attempt in range(1, teacher.max_attempts + 1):
            self.asked += 1
            try:
                reply = await self._endpoint.exchange("POST", _PATH, data, timeout_seconds=teacher.timeout_seconds)
                return self._read(reply.content, len(prompt), echo)
            except AttemptFailed as failed:
                found = failed.attempt
                if found.fatal or not found.error.retryable or attempt == teacher.max_attempts:
                    raise found.error from None
                wait = found.retry_after if found.retry_after is not None else backoff_seconds(attempt, self._rng)
                await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _read(self, content: bytes, length: int, echo: bool) -> list[Tops | None]:
        try:
            choice = json.loads(content)["choices"][0]
            positions = choice["logprobs"]["top_logprobs"] if echo else choice["prompt_logprobs"]
            found = [None if entry is None else self._tops(entry) for entry in positions][:length]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            found, why = [], f"{type(error).__name__} {error}"
        else:
            why = f"{len(found)} positions for {length} tokens"
        if len(found) != length:
            raise TeacherError(
                f"{self._endpoint.shown_url} sent no log probabilities of the prompt ({why})",
                remedy="vLLM and `distill serve` give them; with others use signal.kind: live",
            )
        return found

    def _tops(self, entry: Mapping[str, Any]) -> Tops:
        found: dict[int, float] = {}
        for name, value in entry.items():
            if isinstance(value, Mapping):  # vLLM: {"17": {"logprob": -0.1, "rank": 1, ...}}
                found[int(name)] = float(value["logprob"])
                continue
            token = name.removeprefix(_ID_PREFIX)
            known = int(token) if token != name and token.isdigit() else self._ids.get(name.encode())
            found.setdefault(known if known is not None else -1 - len(found), float(value))
        return found
