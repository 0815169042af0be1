"""How many requests may go to a teacher at once and when: one decision out of everything that is known of its limits.

`Limits` decides with pure arithmetic on a clock that it is given; `Gate` lets coroutines wait for its decisions.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from distill.teacher.latency import QueueSense
from distill.teacher.rates import Bucket, LearnedRate, RateNews

_DECREASE = 0.5
_ROUNDS_TO_RECOVER = 32
_FIRST_IN_FLIGHT = 32
_RAMP_SECONDS = 0.05  # refusals come at once: after so long without one, more may go before the first answer is there
_FIRST_COOL_SECONDS = 0.1
_LONGEST_COOL_SECONDS = 30.0


@dataclass
class Limits:
    """Requests in flight (additive increase, multiplicative decrease), rates, one shared cool-down.

    The number in flight starts at 32; until the first refusal or its maximum it grows by 32 each twentieth of a second,
    and by one for each answer. A refusal that the learned rate does not explain halves it, at most once for the
    requests that were already under way; it grows by a 32nd of the maximum (by one at least) for each full round of
    answers.
    """

    max_concurrency: int
    requests: Bucket | None = None
    tokens: Bucket | None = None
    in_flight: int = 0
    started: int = 0
    cool_until: float = 0.0
    learned: LearnedRate = field(default_factory=LearnedRate)
    sense: QueueSense = field(default_factory=QueueSense)
    allowed: float = field(init=False)
    _ramping: bool = True
    _ramped_at: float | None = None
    _refused_in_a_row: int = 0
    _decreased_at: float = float("-inf")

    def __post_init__(self) -> None:
        self.allowed = float(min(self.max_concurrency, _FIRST_IN_FLIGHT))

    def wait_seconds(self, tokens: int, now: float) -> float | None:
        """Seconds until a request of so many tokens may start: 0 now, None as soon as another one ends."""
        self.learned.want(now)
        if self.in_flight >= int(self.allowed):
            ramp = self._ramp(now)
            if ramp != 0:
                return ramp
        wait = self.cool_until - now
        if wait <= 0:
            wait = self.learned.wait_seconds(now)
        if self.requests is not None:
            wait = max(wait, self.requests.wait_seconds(1, now))
        if self.tokens is not None:
            wait = max(wait, self.tokens.wait_seconds(tokens, now))
        return wait

    def _ramp(self, now: float) -> float | None:
        """Seconds until the number in flight grows by itself: 0 where it just did, None where it does not."""
        if not self._ramping or self.allowed >= self.max_concurrency:
            return None
        if self._ramped_at is None:
            self._ramped_at = now
        due = self._ramped_at + _RAMP_SECONDS - now
        if due > 0:
            return due
        self._ramped_at = now
        self.allowed = min(float(self.max_concurrency), self.allowed + _FIRST_IN_FLIGHT)
        return 0.0

    def start(self, tokens: int, now: float) -> None:
        """Count a request in."""
        self.in_flight += 1
        self.started += 1
        self.learned.start(now)
        if self.requests is not None:
            self.requests.take(1)
        if self.tokens is not None:
            self.tokens.take(tokens)

    def end(self) -> None:
        """Count a request out, whatever came of it."""
        self.in_flight -= 1

    def answered(self, estimated_tokens: int, used_tokens: int, *, seconds: float, completion_tokens: int) -> None:
        """An answer came: give back what was estimated too high, allow more, or fewer where they only queue there."""
        self._refused_in_a_row = 0
        if self.tokens is not None:
            self.tokens.take(used_tokens - estimated_tokens)
        if not self.sense.testing:
            step = 1.0 if self._ramping else max(1.0, self.max_concurrency / _ROUNDS_TO_RECOVER) / self.allowed
            self.allowed = min(float(self.max_concurrency), self.allowed + step)
        changed = self.sense.answered(seconds, completion_tokens, in_flight=self.in_flight, allowed=self.allowed)
        if changed is not None:
            self._ramping = False
            self.allowed = min(float(self.max_concurrency), changed)

    def refused(self, *, started_at: float, now: float, retry_after: float | None) -> None:
        """The provider said 429 or 503: nobody asks before the cool-down is over, then at a rate that it may bear.

        Without a usable Retry-After the cool-down is ours: a tenth of a second, doubling while no answer comes.
        """
        self._ramping = False
        unexplained = self.learned.refused(started_at, now)
        if started_at > self._decreased_at:
            self._decreased_at = now
            self._refused_in_a_row += 1
            if unexplained:
                self.allowed = max(1.0, min(self.allowed, float(self.in_flight)) * _DECREASE)
        if retry_after is None:
            doubled = _FIRST_COOL_SECONDS * 2.0 ** min(self._refused_in_a_row - 1, 20)
            retry_after = min(_LONGEST_COOL_SECONDS, doubled)
        self.cool_until = max(self.cool_until, now + retry_after)

    def told(self, news: RateNews, *, number: int, now: float) -> None:
        """A reply to request `number` said how many may still go: where those sent since use it up, wait until more
        may. A declared rate is trusted instead."""
        since = self.started - number
        if self.requests is None and news.requests is not None and news.requests <= since:
            self.cool_until = max(self.cool_until, now + news.requests_reset)
        if self.tokens is None and news.tokens is not None and news.tokens <= 0:
            self.cool_until = max(self.cool_until, now + news.tokens_reset)


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
        now = self.clock()
        if not self._waiting and self.limits.wait_seconds(tokens, now) == 0:
            self.limits.start(tokens, now)
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
            now = self.clock()
            wait = self.limits.wait_seconds(tokens, now)
            if wait is None:
                return
            if wait > 0:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = asyncio.get_running_loop().call_later(wait, self._admit)
                return
            self._waiting.popleft()
            self.limits.start(tokens, now)
            turn.set_result(None)
