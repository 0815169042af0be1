"""Rates of a provider: what headers say, what a recipe declares, and what refusals teach where nobody declared it.

Pure arithmetic on a clock that is given.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

LONGEST_RETRY_AFTER_SECONDS = 120.0
FIRST_BACKOFF_SECONDS = 0.125
LONGEST_BACKOFF_SECONDS = 30.0
# Of a declared rate: requests are delayed unequally on their way, and so come faster at times than they were sent.
_BURST_SECONDS = 0.75  # a quarter less than the second's worth that providers keep
_SHARE = 0.99
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


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


def parse_duration(value: str) -> float | None:
    """Seconds of `x-ratelimit-reset-*`: "1s", "6m0s", "20ms", "1h2m3s" or plain seconds; None for anything else."""
    try:
        seconds = float(value)
    except ValueError:
        match = _DURATION.fullmatch(value.strip())
        if match is None or not any(match.groups()):
            return None
        hours, minutes, whole, thousandths = (float(part or 0) for part in match.groups())
        seconds = 3600 * hours + 60 * minutes + whole + thousandths / 1000
    return min(seconds, LONGEST_RETRY_AFTER_SECONDS) if 0 <= seconds < float("inf") else None


@dataclass(frozen=True, slots=True)
class RateNews:
    """What a reply's x-ratelimit headers say: requests and tokens that may still go, and seconds until all may."""

    requests: int | None
    requests_reset: float
    tokens: int | None
    tokens_reset: float


def parse_rate_news(headers: Mapping[str, str]) -> RateNews | None:
    """From `x-ratelimit-remaining-*` and `x-ratelimit-reset-*`; None where they are missing or unreadable."""
    found: list[tuple[int | None, float]] = []
    for what in ("requests", "tokens"):
        remaining = headers.get(f"x-ratelimit-remaining-{what}", "")
        reset = parse_duration(headers.get(f"x-ratelimit-reset-{what}", ""))
        known = reset is not None and remaining.isdecimal() and len(remaining) < 16
        found.append((int(remaining), reset or 0.0) if known else (None, 0.0))
    if found[0][0] is None and found[1][0] is None:
        return None
    return RateNews(*found[0], *found[1])


def backoff_seconds(failed_attempts: int, rng: random.Random) -> float:
    """Exponential backoff, the wait drawn from its upper half so that waiters spread: 1/8 s doubling up to 30 s."""
    ceiling = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failed_attempts - 1, 20))
    return ceiling * rng.uniform(0.5, 1.0)


@dataclass
class Bucket:
    """A token bucket just below a declared rate; a request bigger than what it holds goes through, leaving a debt."""

    per_minute: float
    level: float = field(init=False)
    updated: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.level = self.capacity

    @property
    def capacity(self) -> float:
        return max(1.0, self.per_minute / 60 * _BURST_SECONDS)

    @property
    def per_second(self) -> float:
        return self.per_minute / 60 * _SHARE

    def wait_seconds(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0: now."""
        self.level = min(self.capacity, self.level + max(0.0, now - self.updated) * self.per_second)
        self.updated = now
        missing = min(amount, self.capacity) - self.level
        return 0.0 if missing <= 1e-9 else missing / self.per_second

    def take(self, amount: float) -> None:
        """Take `amount`, or give back with a negative one (an estimate that was too high)."""
        self.level = min(self.capacity, self.level - amount)


_FIRST_HOLD_SECONDS = 4.0
_LONGEST_HOLD_SECONDS = 300.0
_GROWTH_PER_SECOND = 0.02
_GROWTH_DOUBLES_SECONDS = 3.0
_LEARNED_BURST_SECONDS = 1.0
_SHORTEST_BURST_SECONDS = 0.05
_CAUTION = 0.995


@dataclass
class LearnedRate:
    """Requests a second that a provider takes, from its refusals: what it accepted between two of them is its rate,
    for its own bucket was empty at both.

    The learned rate holds for four seconds, then grows, by 2% a second at first and ever faster, until the next refusal
    measures it again; the hold doubles each time the measurement agrees with the one before. Time in which nobody
    wanted to ask does not count.
    """

    rate: float | None = None
    level: float = 0.0
    burst_seconds: float = _LEARNED_BURST_SECONDS
    hold_seconds: float = _FIRST_HOLD_SECONDS
    started: int = 0
    refusals: int = 0
    _updated: float = 0.0
    _idle: float = 0.0
    _wanted: bool = False
    _last_start: float = 0.0
    _open: tuple[float, float] | None = (
        None  # an episode of refusals whose end has not come: when, in time and busy time
    )
    _settled_at: float = float("-inf")
    _last: tuple[float, int] | None = None  # busy time and accepted requests at the last episode

    def want(self, now: float) -> None:
        """Somebody wants to go: the time since the last one went was idle, beyond the second that a bucket keeps."""
        if not self._wanted:
            self._wanted = True
            self._idle += max(0.0, now - self._last_start - 1.0) if self.started else 0.0

    def wait_seconds(self, now: float) -> float:
        """Seconds until the learned rate lets a request go; to be asked when the cool-down of a refusal is over."""
        if self._open is not None:
            self._settle(now)
        if self.rate is None:
            return 0.0
        self._refill(now)
        return 0.0 if self.level >= 1 - 1e-9 else (1 - self.level) / self.rate

    def start(self, now: float) -> None:
        """Count a request that goes out."""
        self.started += 1
        self._last_start = now
        self._wanted = False
        self.level -= 1

    def refused(self, started_at: float, now: float) -> bool:
        """Count a refusal; True where it begins an episode that the learned rate does not explain."""
        self.refusals += 1
        if started_at <= self._settled_at:  # of the last episode, but late
            if self._last is not None:
                self._last = (self._last[0], self._last[1] - 1)
            return False
        if self._open is not None:
            return False
        self._open = (started_at, started_at - self._idle)
        if self.rate is None:
            return True
        self._refill(now)
        if self.level > 0.25 * self.burst_seconds * self.rate:  # the provider's bucket is smaller than we thought
            self.burst_seconds = max(_SHORTEST_BURST_SECONDS, self.burst_seconds / 2)
            return True
        return False

    def _settle(self, now: float) -> None:
        """The cool-down of an episode is over, and all its refusals are known."""
        assert self._open is not None
        opened_at, at = self._open
        accepted = self.started - self.refusals
        if self._last is not None and at > self._last[0]:
            measured = max(0.02, (accepted - self._last[1]) / (at - self._last[0])) * _CAUTION
            agrees = self.rate is not None and abs(measured / self.rate - 1) < 0.2
            self.hold_seconds = min(_LONGEST_HOLD_SECONDS, 2 * self.hold_seconds) if agrees else _FIRST_HOLD_SECONDS
            self.rate = measured
            self.level = max(1.0, min(self.burst_seconds, now - opened_at) * measured)
        self._last = (at, accepted)
        self._open = None
        self._settled_at = self._updated = now

    def _refill(self, now: float) -> None:
        assert self.rate is not None
        seconds = max(0.0, now - self._updated)
        over = now - self._settled_at - self.hold_seconds
        if over > 0:
            self.rate *= (1 + _GROWTH_PER_SECOND * 2 ** min(over / _GROWTH_DOUBLES_SECONDS, 6.0)) ** min(seconds, over)
        self.level = min(max(1.0, self.burst_seconds * self.rate), self.level + seconds * self.rate)
        self._updated = now
