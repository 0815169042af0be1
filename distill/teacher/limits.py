"""How fast a teacher may be asked: declared rates, what its refusals teach, and how long to wait before trying again.

`Limits` decides with pure arithmetic on a clock that it is given; `Gate` lets coroutines wait for its decisions.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

LONGEST_RETRY_AFTER_SECONDS = 120.0
FIRST_BACKOFF_SECONDS = 0.25
LONGEST_BACKOFF_SECONDS = 30.0
_DECREASE = 0.5
_ROUNDS_TO_RECOVER = 32


def parse_retry_after(value: str | None, *, now_unix_seconds: float) -> float | None:
    """Seconds to wait by a Retry-After header: a number of seconds or an HTTP date; None for anything else.

    A date that has passed means 0. Absurdly long waits are cut to two minutes: the next refusal will say it again.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = max(0.0, parsedate_to_datetime(value).timestamp() - now_unix_seconds)
        except (ValueError, TypeError, OverflowError):
            return None
    if not 0 <= seconds < float("inf"):  # negative, nan, inf
        return None
    return min(seconds, LONGEST_RETRY_AFTER_SECONDS)


def backoff_seconds(failed_attempts: int, rng: random.Random) -> float:
    """Exponential backoff, the wait drawn from its upper half so that waiters spread: 0.25 s doubling up to 30 s."""
    ceiling = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failed_attempts - 1, 20))
    return ceiling * rng.uniform(0.5, 1.0)


@dataclass
class Bucket:
    """A token bucket that holds one second's worth; a request bigger than that goes through and leaves a debt."""

    per_minute: float
    level: float = field(init=False)
    updated: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.level = self.capacity

    @property
    def capacity(self) -> float:
        return max(1.0, self.per_minute / 60)

    def wait_seconds(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0: now."""
        self.level = min(self.capacity, self.level + max(0.0, now - self.updated) * self.per_minute / 60)
        self.updated = now
        missing = min(amount, self.capacity) - self.level
        return 0.0 if missing <= 1e-9 else missing * 60 / self.per_minute

    def take(self, amount: float) -> None:
        """Take `amount`, or give back with a negative one (an estimate that was too high)."""
        self.level = min(self.capacity, self.level - amount)


@dataclass
class Limits:
    """Requests in flight (additive increase, multiplicative decrease), rates by the minute, one shared cool-down.

    The number in flight starts at its maximum, for a provider that has room should not be kept waiting; it halves at
    a refusal, at most once for the requests that were already under way, and grows by a 32nd of the maximum (by one at
    least) for each full round of answers.
    """

    max_concurrency: int
    requests: Bucket | None = None
    tokens: Bucket | None = None
    in_flight: int = 0
    cool_until: float = 0.0
    allowed: float = field(init=False)
    _decreased_at: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self.allowed = float(self.max_concurrency)

    def wait_seconds(self, tokens: int, now: float) -> float | None:
        """Seconds until a request of so many tokens may start: 0 now, None as soon as another one ends."""
        if self.in_flight >= int(self.allowed):
            return None
        wait = max(0.0, self.cool_until - now)
        if self.requests is not None:
            wait = max(wait, self.requests.wait_seconds(1, now))
        if self.tokens is not None:
            wait = max(wait, self.tokens.wait_seconds(tokens, now))
        return wait

    def start(self, tokens: int) -> None:
        """Count a request in."""
        self.in_flight += 1
        if self.requests is not None:
            self.requests.take(1)
        if self.tokens is not None:
            self.tokens.take(tokens)

    def end(self) -> None:
        """Count a request out, whatever came of it."""
        self.in_flight -= 1

    def answered(self, estimated_tokens: int, used_tokens: int) -> None:
        """An answer came: give back what was estimated too high, allow a little more."""
        if self.tokens is not None:
            self.tokens.take(used_tokens - estimated_tokens)
        step = max(1.0, self.max_concurrency / _ROUNDS_TO_RECOVER)
        self.allowed = min(float(self.max_concurrency), self.allowed + step / self.allowed)

    def refused(self, *, started_at: float, now: float, retry_after: float | None) -> None:
        """The provider said 429 or 503: fewer at once, and nobody asks before the cool-down is over."""
        if started_at > self._decreased_at:
            self.allowed = max(1.0, self.allowed * _DECREASE)
            self._decreased_at = now
        if retry_after is not None:
            self.cool_until = max(self.cool_until, now + retry_after)


class Gate:
    """Lets coroutines through in the order of their coming, as `Limits` allows."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.clock = clock
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed: Exception | None = None

    async def enter(self, tokens: int) -> None:
        """Wait for a turn; each `enter` that returns needs one `leave`. Raises what the gate was closed with."""
        if self._closed is not None:
            raise self._closed
        if not self._waiting and self.limits.wait_seconds(tokens, self.clock()) == 0:
            self.limits.start(tokens)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # admitted, but it will not come
                self.leave()
            raise

    def leave(self) -> None:
        """A request ended."""
        self.limits.end()
        self._admit()

    def close(self, error: Exception) -> None:
        """Let nobody through any more: all who wait and all who come get `error`."""
        self._closed = error
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)

    def _admit(self) -> None:
        """Wake everybody who may go now; come back when the next one may."""
        while self._waiting:
            tokens, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
                continue
            wait = self.limits.wait_seconds(tokens, self.clock())
            if wait is None:
                return
            if wait > 0:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = asyncio.get_running_loop().call_later(wait, self._admit)
                return
            self._waiting.popleft()
            self.limits.start(tokens)
            turn.set_result(None)
