"""One attempt at a teacher's endpoint: where it is, with which key, and every failure as one type with a remedy."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
import openai

from distill.errors import TeacherError
from distill.recipe.teacher import EmbeddedTeacher, OpenAITeacher
from distill.teacher.limits import parse_retry_after
from distill.teacher.requests import PUBLIC_BASE_URL, Request, public_url, resolve_base_url, teacher_label

_NO_KEY = "no-key"  # the SDK insists on one; servers of one's own ignore it
_CONNECTIONS_PER_LANE = 8
_CONNECT_SECONDS = 10.0
_LONGEST_DETAIL = 300
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_UNABLE = {"insufficient_quota", "billing_hard_limit_reached", "account_deactivated"}


@dataclass(frozen=True, slots=True)
class Reply:
    """What one successful attempt brought. Tokens as the provider counts them (0 where it does not say)."""

    text: str
    refusal: str | None
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """A failed attempt. `fatal`: no request can succeed. `slow_down`: the provider wants fewer requests."""

    error: TeacherError
    fatal: bool = False
    unreachable: bool = False
    slow_down: bool = False
    retry_after: float | None = None


class AttemptFailed(Exception):
    """Carries an `Attempt` from the endpoint to the client's policy; nobody else sees it."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt.error.message)
        self.attempt = attempt


def read_api_key(teacher: OpenAITeacher | EmbeddedTeacher, base_url: str) -> str:
    """The key from the environment. Servers of one's own may do without; the public API may not."""
    if isinstance(teacher, EmbeddedTeacher):
        return _NO_KEY
    key = os.environ.get(teacher.api_key_env, "").strip()
    if not key and public_url(base_url) == PUBLIC_BASE_URL:
        raise TeacherError(
            f"the environment has no {teacher.api_key_env}",
            remedy=f"set it to your key, or name another variable in teacher.api_key_env ({PUBLIC_BASE_URL} needs one)",
        )
    return key or _NO_KEY


class Endpoint:
    """POST /chat/completions through the official SDK, without its retries and its parsing into models.

    The SDK's connection pool looks at every connection for every request; several small pools keep that short.
    """

    def __init__(
        self, teacher: OpenAITeacher | EmbeddedTeacher, base_url: str | None = None, *, api_key: str | None = None
    ) -> None:
        self.teacher = teacher
        self.url = resolve_base_url(teacher, base_url)
        self.shown_url = public_url(self.url)
        self._key = api_key or read_api_key(teacher, self.url)
        num_lanes = -(-teacher.max_concurrency // _CONNECTIONS_PER_LANE)
        verify = httpx2.create_ssl_context() if self.url.startswith("https") else False
        self._lanes = [self._client(verify) for _ in range(num_lanes)]
        self._next_lane = 0

    def _client(self, verify: ssl.SSLContext | bool) -> openai.AsyncOpenAI:
        http = openai.DefaultAsyncHttpxClient(
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30.0),
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            trust_env=urlsplit(self.url).hostname not in _LOOPBACK,
            verify=verify,
        )
        return openai.AsyncOpenAI(base_url=self.url, api_key=self._key, max_retries=0, http_client=http)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._lanes:
            await client.close()

    async def send(self, request: Request) -> Reply:
        """One attempt. Raises AttemptFailed."""
        self._next_lane = (self._next_lane + 1) % len(self._lanes)
        client = self._lanes[self._next_lane]
        try:
            async with asyncio.timeout(self.teacher.timeout_seconds):
                response = await client.post(
                    request.path, cast_to=httpx2.Response, body=request.body(self.teacher.model)
                )
            return parse_reply(response.content)
        except TimeoutError:
            message = f"no answer within {self.teacher.timeout_seconds:g} s from {self.shown_url}"
            remedy = "raise teacher.timeout_seconds or lower teacher.max_concurrency"
            raise AttemptFailed(Attempt(TeacherError(message, remedy=remedy, retryable=True))) from None
        except openai.APIStatusError as error:
            raise AttemptFailed(self._by_status(error)) from None
        except openai.APIConnectionError as error:
            raise AttemptFailed(self._unreachable(error)) from None
        except ValueError as error:
            message = f"{self.shown_url} sent no chat completion: {self._scrub(str(error))}"
            raise AttemptFailed(Attempt(TeacherError(message, retryable=True))) from None

    def _unreachable(self, error: openai.APIConnectionError) -> Attempt:
        cause = str(error.__cause__ or error) or type(error.__cause__ or error).__name__
        return Attempt(
            TeacherError(
                f"cannot reach the teacher at {self.shown_url}: {self._scrub(cause)}",
                remedy="is it running? check teacher.base_url (or OPENAI_BASE_URL) and the network",
                retryable=True,
            ),
            unreachable=True,
        )

    def _by_status(self, error: openai.APIStatusError) -> Attempt:
        status = error.status_code
        detail = self._scrub(_detail(error))
        label = teacher_label(self.teacher)

        def failed(message: str, remedy: str | None = None, *, retryable: bool = False) -> TeacherError:
            return TeacherError(f"{message}: {detail}", remedy=remedy, retryable=retryable, status=status)

        if status in (401, 403):
            return Attempt(failed(f"{self.shown_url} refuses the key ({status})", self._key_remedy()), fatal=True)
        if status == 404:
            remedy = "check teacher.model, and that teacher.base_url ends as the provider says (often in /v1)"
            return Attempt(failed(f"{self.shown_url} has no model '{label}' (404)", remedy), fatal=True)
        if status == 402 or error.code in _UNABLE:
            remedy = "add credit or raise the limit there, then run again: it goes on where it stopped"
            return Attempt(failed(f"{self.shown_url} wants payment ({status})", remedy), fatal=True)
        if status in (429, 503):
            retry_after = parse_retry_after(error.response.headers.get("retry-after"), now_unix_seconds=time.time())
            remedy = "declare teacher.requests_per_minute or lower teacher.max_concurrency"
            asked = failed(f"{self.shown_url} limits the rate ({status})", remedy, retryable=True)
            return Attempt(asked, slow_down=True, retry_after=retry_after)
        if status in (408, 409, 425) or status >= 500:
            return Attempt(failed(f"{self.shown_url} failed ({status})", retryable=True))
        return Attempt(failed(f"{self.shown_url} refuses the request ({status})"))

    def _key_remedy(self) -> str:
        if isinstance(self.teacher, EmbeddedTeacher):
            return "another program answers on the teacher's port; run again"
        state = "is set, but not to a key that is valid there" if self._key != _NO_KEY else "is not set"
        return f"the environment variable {self.teacher.api_key_env} {state}"

    def _scrub(self, text: str) -> str:
        """Provider texts may repeat the key; nothing of ours does."""
        if self._key != _NO_KEY:
            text = text.replace(self._key, "***")
        return text if len(text) <= _LONGEST_DETAIL else text[:_LONGEST_DETAIL] + "..."


def _detail(error: openai.APIStatusError) -> str:
    """The provider's own words."""
    if isinstance(error.body, Mapping):
        message = error.body.get("message")
        if isinstance(message, str):
            return " ".join(message.split())
    return " ".join(error.response.text.split()) or "(no text)"


def parse_reply(content: bytes) -> Reply:
    """Read a chat completion. Raises ValueError for anything else: half of one, none, or no choice in it."""
    body = json.loads(content)
    try:
        choice = body["choices"][0]
        message = {"content": choice["text"]} if "text" in choice else choice["message"]
        text = message.get("content") or ""
        refusal = message.get("refusal")
        usage = body.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        reply = Reply(
            text=_clean(text),
            refusal=None if refusal is None else _clean(refusal),
            finish_reason=choice.get("finish_reason") or "stop",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=int(cached),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__} {error} in {content[:120]!r}") from None
    return reply


def _clean(text: str) -> str:
    """Text that every file can hold: JSON may smuggle in half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")
