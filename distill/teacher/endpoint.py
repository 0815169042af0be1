"""One attempt at a teacher's endpoint: where it is, with which key, and every failure as one type with a remedy."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from distill.errors import TeacherError
from distill.recipe.teacher import AzureTeacher, EmbeddedTeacher, Teacher
from distill.teacher import azure
from distill.teacher.credentials import Credential, Key
from distill.teacher.http import HttpPool
from distill.teacher.logprobs import pack, read_logprobs
from distill.teacher.rates import RateNews, parse_rate_news, parse_retry_after
from distill.teacher.requests import PUBLIC_BASE_URL, Request, public_url, resolve_base_url, teacher_label
from distill.teacher.transport import HttpReply, Transport, Unreachable, is_plain

_LONGEST_DETAIL = 300
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
    reasoning_tokens: int = 0
    logprobs: bytes | None = None
    news: RateNews | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A failed attempt. `fatal`: no request can succeed. `slow_down`: the provider wants fewer requests. `filtered`: it
    does not let this prompt pass."""

    error: TeacherError
    fatal: bool = False
    unreachable: bool = False
    slow_down: bool = False
    retry_after: float | None = None
    filtered: bool = False


class AttemptFailed(Exception):
    """Carries an `Attempt` from the endpoint to the client's policy; nobody else sees it."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt.error.message)
        self.attempt = attempt


def credential_of(teacher: Teacher, base_url: str) -> Credential:
    """From the environment. Servers of one's own may do without a key; the public API and Azure may not."""
    if isinstance(teacher, EmbeddedTeacher):
        return Key("")
    if isinstance(teacher, AzureTeacher):
        return azure.credential_of(teacher)
    key = os.environ.get(teacher.api_key_env, "").strip()
    if not key and public_url(base_url) == PUBLIC_BASE_URL:
        raise TeacherError(
            f"the environment has no {teacher.api_key_env}",
            remedy=f"set it to your key, or name another variable in teacher.api_key_env ({PUBLIC_BASE_URL} needs one)",
        )
    return Key(key)


def open_transport(teacher: Teacher, url: str, credential: Credential) -> Transport:
    """The thin pool, or the official SDK where the recipe asks for it or the URL needs it (a proxy, a query)."""
    plain_key = credential.value.isascii() and credential.value.isprintable()
    if teacher.transport == "auto" and is_plain(url) and plain_key:
        return HttpPool(url, credential)
    from distill.teacher.sdk import SdkTransport  # a second to import, which the thin pool does not need

    return SdkTransport(url, credential, num_connections=teacher.max_concurrency)


class Endpoint:
    """POST /chat/completions or /completions, once."""

    def __init__(self, teacher: Teacher, base_url: str | None = None, *, api_key: str | None = None) -> None:
        self.teacher = teacher
        self.url = resolve_base_url(teacher, base_url)
        self.shown_url = public_url(self.url)
        self._credential = Key(api_key) if api_key else credential_of(teacher, self.url)
        self.transport = open_transport(teacher, self.url, self._credential)

    async def close(self) -> None:
        """Close all connections."""
        await self.transport.close()

    async def send(self, request: Request) -> Reply:
        """One attempt. Raises AttemptFailed. A prompt that a content filter stops is a refused answer, as a text would
        be that it stops."""
        body = json.dumps(request.body(self.teacher.model), ensure_ascii=False).encode("utf-8", "replace")
        path = request.path
        if isinstance(self.teacher, AzureTeacher):
            path = azure.path_of(self.teacher, path)
        try:
            reply = await self.exchange("POST", path, body, timeout_seconds=self.teacher.timeout_seconds)
        except AttemptFailed as failed:
            if not failed.attempt.filtered:
                raise
            return Reply("", failed.attempt.error.message, "content_filter", 0, 0, 0)
        try:
            return parse_reply(reply.content, parse_rate_news(reply.headers))
        except ValueError as error:
            raise self.odd_reply(f"no chat completion: {error}") from None

    async def exchange(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        content_type: str = "application/json",
        timeout_seconds: float,
    ) -> HttpReply:
        """A reply of status 2xx, whatever is in it. Raises AttemptFailed."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._credential.renew()
                reply = await self.transport.request(method, path, body, content_type)
        except TimeoutError:
            message = f"no answer within {timeout_seconds:g} s from {self.shown_url}"
            remedy = "raise teacher.timeout_seconds or lower teacher.max_concurrency"
            raise AttemptFailed(Attempt(TeacherError(message, remedy=remedy, retryable=True))) from None
        except Unreachable as error:
            raise AttemptFailed(self._unreachable(str(error))) from None
        except TeacherError as error:  # no token
            raise AttemptFailed(Attempt(error, fatal=True)) from None
        if reply.status >= 300:
            raise AttemptFailed(self._by_status(reply))
        return reply

    def odd_reply(self, what: str) -> AttemptFailed:
        """For a reply of status 2xx that holds something else than asked for."""
        return AttemptFailed(Attempt(TeacherError(f"{self.shown_url} sent {self.scrub(what)}", retryable=True)))

    def scrub(self, text: str) -> str:
        """Provider texts may repeat the key; nothing of ours does."""
        if self._credential.secret:
            text = text.replace(self._credential.secret, "***")
        return text if len(text) <= _LONGEST_DETAIL else text[:_LONGEST_DETAIL] + "..."

    def _unreachable(self, cause: str) -> Attempt:
        return Attempt(
            TeacherError(
                f"cannot reach the teacher at {self.shown_url}: {self.scrub(cause)}",
                remedy="is it running? check teacher.base_url (or OPENAI_BASE_URL) and the network",
                retryable=True,
            ),
            unreachable=True,
        )

    def _by_status(self, reply: HttpReply) -> Attempt:
        status = reply.status
        words, code = _provider_words(reply.content)
        detail = self.scrub(words)
        label = teacher_label(self.teacher)

        def failed(message: str, remedy: str | None = None, *, retryable: bool = False) -> TeacherError:
            return TeacherError(f"{message}: {detail}", remedy=remedy, retryable=retryable, status=status)

        if status < 400:
            remedy = "set teacher.base_url to where it redirects: the key goes only where the recipe says"
            where = self.scrub(public_url(reply.headers.get("location", "(nowhere)")))
            return Attempt(failed(f"{self.shown_url} redirects ({status}) to {where}", remedy), fatal=True)
        if status in (401, 403):
            return Attempt(failed(f"{self.shown_url} refuses the key ({status})", self._key_remedy()), fatal=True)
        if status == 404:
            remedy = "check teacher.model, and that teacher.base_url ends as the provider says (often in /v1)"
            if isinstance(self.teacher, AzureTeacher):
                remedy = "check teacher.model (the deployment's name), teacher.base_url and teacher.api_version"
            return Attempt(failed(f"{self.shown_url} has no model '{label}' (404)", remedy), fatal=True)
        if status == 402 or code in _UNABLE:
            remedy = "add credit or raise the limit there, then run again: it goes on where it stopped"
            return Attempt(failed(f"{self.shown_url} wants payment ({status})", remedy), fatal=True)
        if status in (429, 503):
            retry_after = parse_retry_after(reply.headers.get("retry-after"), now_unix_seconds=time.time())
            remedy = "declare teacher.requests_per_minute or lower teacher.max_concurrency"
            asked = failed(f"{self.shown_url} limits the rate ({status})", remedy, retryable=True)
            return Attempt(asked, slow_down=True, retry_after=retry_after)
        if status in (408, 409, 425) or status >= 500:
            return Attempt(failed(f"{self.shown_url} failed ({status})", retryable=True))
        return Attempt(failed(f"{self.shown_url} refuses the request ({status})"), filtered=code == "content_filter")

    def _key_remedy(self) -> str:
        if isinstance(self.teacher, EmbeddedTeacher):
            return "another program answers on the teacher's port; run again"
        if isinstance(self.teacher, AzureTeacher) and self.teacher.auth == "entra":
            return (
                "whoever asks needs the role 'Cognitive Services OpenAI User' on the resource; "
                f"a token in {self.teacher.token_env} lasts about an hour"
            )
        state = "is set, but not to a key that is valid there" if self._credential.secret else "is not set"
        return f"the environment variable {self.teacher.api_key_env} {state}"


def _provider_words(content: bytes) -> tuple[str, str | None]:
    """The provider's message and error code, as far as it has the usual form; else its text."""
    text = content.decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        message, code = error["message"], error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = text, None
    return " ".join(str(message).split()) or "(no text)", code if isinstance(code, str) else None


def parse_reply(content: bytes, news: RateNews | None = None) -> Reply:
    """Read a completion of either endpoint. Raises ValueError for anything else: half of one, none, or no choice."""
    body = json.loads(content)
    try:
        choice = body["choices"][0]
        message = choice["message"] if "message" in choice else {"content": choice["text"]}
        text = message.get("content") or ""
        refusal = message.get("refusal")
        usage = body.get("usage") or {}
        found = choice.get("logprobs")
        return Reply(
            text=_clean(text),
            refusal=None if refusal is None else _clean(refusal),
            finish_reason=choice.get("finish_reason") or "stop",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=int(_detail(usage, "prompt_tokens_details", "cached_tokens")),
            reasoning_tokens=int(_detail(usage, "completion_tokens_details", "reasoning_tokens")),
            logprobs=None if found is None else pack(read_logprobs(found)),
            news=news,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__} {error} in {content[:120]!r}") from None


def _detail(usage: Mapping[str, Mapping[str, int | None] | None], group: str, name: str) -> int:
    return (usage.get(group) or {}).get(name) or 0


def _clean(text: str) -> str:
    """Text that every file can hold: JSON may smuggle in half of a surrogate pair."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
