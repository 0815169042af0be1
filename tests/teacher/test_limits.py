"""Limits on a clock that the test turns: rates, cool-downs and concurrency by hand-computed values."""

from __future__ import annotations

import asyncio
import random

import pytest

from distill.teacher.limits import Bucket, Gate, Limits, backoff_seconds, parse_retry_after

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("1", 1.0),
        ("0.25", 0.25),
        ("0", 0.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:12:00 GMT", 0.0),  # has passed
        ("999999999", 120.0),  # absurd
        ("Fri, 31 Dec 9999 23:59:59 GMT", 120.0),
        ("-3", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now_unix_seconds=NOW) == seconds


def test_backoff_doubles_and_is_bounded() -> None:
    rng = random.Random(0)
    for failed, ceiling in ((1, 0.25), (2, 0.5), (5, 4.0), (20, 30.0), (5000, 30.0)):
        waits = [backoff_seconds(failed, rng) for _ in range(200)]
        assert ceiling / 2 <= min(waits) and max(waits) <= ceiling
        assert max(waits) - min(waits) > ceiling / 4  # spread, so that waiters do not return together


def run_limits(limits: Limits, requests: int, *, tokens: int = 0, latency: float = 0.0) -> list[float]:
    """Start times of so many requests on a clock that jumps to the next event."""
    now, started, ends = 0.0, [], []
    while len(started) < requests:
        while ends and ends[0] <= now + 1e-12:
            ends.pop(0)
            limits.end()
        wait = limits.wait_seconds(tokens, now)
        if wait == 0:
            limits.start(tokens)
            started.append(now)
            ends.append(now + latency)
        else:
            now = ends[0] if wait is None else now + wait
    return started


def test_declared_requests_per_minute() -> None:
    """50 a second declared as 3,000 a minute: a burst of 50, then one each 20 ms: the 1,000th starts at 19 s."""
    started = run_limits(Limits(10_000, requests=Bucket(3000)), 1000)
    assert started[49] == 0.0
    assert started[50] == pytest.approx(0.02)
    assert started[999] == pytest.approx(19.0)


def test_declared_tokens_per_minute() -> None:
    """6,000 tokens a minute are 100 a second: requests of 50 start two a second; one of 1,000 leaves a debt of 9 s."""
    limits = Limits(10_000, tokens=Bucket(6000))
    assert run_limits(limits, 6, tokens=50) == pytest.approx([0, 0, 0.5, 1.0, 1.5, 2.0])
    big = Limits(10_000, tokens=Bucket(6000))
    assert run_limits(big, 2, tokens=1000) == pytest.approx([0.0, 10.0])


def test_estimates_that_were_too_high_are_given_back() -> None:
    limits = Limits(10_000, tokens=Bucket(6000))
    limits.start(100)
    assert limits.wait_seconds(100, 0.0) == pytest.approx(1.0)
    limits.answered(estimated_tokens=100, used_tokens=40)
    assert limits.wait_seconds(60, 0.0) == 0.0
    assert limits.wait_seconds(100, 0.0) == pytest.approx(0.4)


def test_concurrency_bounds_throughput() -> None:
    """4 at once of 0.5 s each: the 12th starts with the third wave."""
    assert run_limits(Limits(4), 12, latency=0.5) == [0.0] * 4 + [0.5] * 4 + [1.0] * 4


def test_refusals_halve_once_a_round_and_answers_grow_back() -> None:
    limits = Limits(64)
    for _ in range(10):  # ten requests of one burst are refused: one decrease
        limits.refused(started_at=0.0, now=1.0, retry_after=None)
    assert limits.allowed == 32
    limits.refused(started_at=1.5, now=2.0, retry_after=None)
    assert limits.allowed == 16
    for _ in range(16):  # a full round of 16 answers allows about 64/32 = 2 more
        limits.answered(0, 0)
    assert 17.8 < limits.allowed < 18.0
    for _ in range(10_000):
        limits.answered(0, 0)
    assert limits.allowed == 64
    for now in range(100, 200):
        limits.refused(started_at=now - 0.5, now=now, retry_after=None)
    assert limits.allowed == 1.0


def test_a_cool_down_is_shared() -> None:
    limits = Limits(8)
    limits.refused(started_at=0.0, now=10.0, retry_after=3.0)
    limits.refused(started_at=0.0, now=10.5, retry_after=1.0)  # a shorter one does not cut it
    assert limits.wait_seconds(0, 11.0) == pytest.approx(2.0)
    assert limits.wait_seconds(0, 13.0) == 0.0


def test_gate_is_fair_and_lets_go() -> None:
    async def main() -> None:
        gate = Gate(Limits(1))
        order: list[int] = []

        async def enter(number: int) -> None:
            await gate.enter(0)
            order.append(number)

        await gate.enter(0)
        tasks = [asyncio.create_task(enter(number)) for number in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()  # leaves the queue without taking a turn
        for _ in range(3):
            gate.leave()
            await asyncio.sleep(0.001)
        assert order == [0, 2, 3]
        assert gate.limits.in_flight == 1
        waiting = asyncio.create_task(enter(9))
        await asyncio.sleep(0)
        gate.close(RuntimeError("stopped"))
        with pytest.raises(RuntimeError, match="stopped"):
            await waiting
        with pytest.raises(RuntimeError, match="stopped"):
            await gate.enter(0)

    asyncio.run(main())
