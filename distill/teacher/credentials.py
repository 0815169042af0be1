"""How a request says who asks: a header with a key, or with a token that is renewed before it expires."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from distill.errors import TeacherError

RENEWED_BEFORE_SECONDS = 300.0  # a token is renewed so long before it expires: an answer may take minutes
_TRIED_AGAIN_SECONDS = 30.0  # after a renewal that failed while the old token is still good


class Credential(Protocol):
    """One header of every request. `secret` is what no message may repeat; empty where there is none."""

    @property
    def header(self) -> str: ...

    @property
    def value(self) -> str: ...

    @property
    def secret(self) -> str: ...

    async def renew(self) -> None:
        """Before each request: get a new one where this one is about to expire. Raises TeacherError."""


@dataclass(frozen=True)
class Key:
    """A key that stays as it is."""

    secret: str
    header: str = "authorization"

    @property
    def value(self) -> str:
        return f"Bearer {self.secret or 'no-key'}" if self.header == "authorization" else self.secret

    async def renew(self) -> None:
        """A key lasts."""


@dataclass(frozen=True)
class Token:
    """A bearer token and when it expires, in Unix seconds."""

    text: str
    expires_at: float


class RenewedToken:
    """A bearer token from `fetch`, which may block and raises TeacherError; asked again before the token expires."""

    header = "authorization"

    def __init__(self, fetch: Callable[[], Token], clock: Callable[[], float] = time.time) -> None:
        self._fetch = fetch
        self._clock = clock
        self._token = Token("", 0.0)
        self._good_until = 0.0
        self._lock = asyncio.Lock()

    @property
    def value(self) -> str:
        return f"Bearer {self._token.text}"

    @property
    def secret(self) -> str:
        return self._token.text

    async def renew(self) -> None:
        """One caller fetches while the others wait; a renewal that fails matters only once the old token is over."""
        if self._clock() < self._good_until:
            return
        async with self._lock:
            now = self._clock()
            if now < self._good_until:
                return
            try:
                token = await asyncio.to_thread(self._fetch)
            except TeacherError:
                if now >= self._token.expires_at:
                    raise
                self._good_until = min(now + _TRIED_AGAIN_SECONDS, self._token.expires_at)
                return
            self._token = token
            # One that is short-lived from the start is used for half of what is left of it.
            self._good_until = max(token.expires_at - RENEWED_BEFORE_SECONDS, (now + token.expires_at) / 2)
