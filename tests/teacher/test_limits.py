"""Limits on a clock that the test turns: rates, cool-downs and concurrency by hand-computed values."""

from __future__ import annotations

import asyncio
import heapq

import pytest

from distill.teacher.latency import QueueSense
from distill.teacher.limits import Gate, Limits
from distill.teacher.rates import Bucket, RateNews


def run_limits(limits: Limits, requests: int, *, tokens: int = 0, latency: float = 0.0) -> list[float]:
    """Start times of so many requests on a clock that jumps to the next event."""
    now, started, ends = 0.0, [], []
    while len(started) < requests:
        while ends and ends[0] <= now + 1e-12:
            ends.pop(0)
            limits.end()
        wait = limits.wait_seconds(tokens, now)
        if wait == 0:
            limits.start(tokens, now)
            started.append(now)
            ends.append(now + latency)
        else:
            now = ends[0] if wait is None else now + wait
    return started


def test_declared_requests_per_minute() -> None:
    """50 a second declared as 3,000 a minute: a burst of 37.5, then 49.5 a second: the 1,000th starts after 19.44 s."""
    limits = Limits(10_000, requests=Bucket(3000))
    limits.allowed = 10_000
    started = run_limits(limits, 1000)
    assert started[36] == 0.0
    assert started[37] == pytest.approx(0.5 / 49.5)
    assert started[999] == pytest.approx((1000 - 37.5) / 49.5)


def test_declared_tokens_per_minute() -> None:
    """6,000 tokens a minute are 75 at once and 99 a second: requests of 45 start one at once, one when 15 more are
    there, then one each 45; after one of 1,000 the next waits until 1,000 are there again."""
    limits = Limits(10_000, tokens=Bucket(6000))
    assert run_limits(limits, 4, tokens=45) == pytest.approx([0, 15 / 99, 60 / 99, 105 / 99])
    big = Limits(10_000, tokens=Bucket(6000))
    assert run_limits(big, 2, tokens=1000) == pytest.approx([0.0, 1000 / 99])


def answer(limits: Limits, seconds: float = 0.1, tokens: int = 10, estimated: int = 0, used: int = 0) -> None:
    limits.answered(estimated, used, seconds=seconds, completion_tokens=tokens)


def test_estimates_that_were_too_high_are_given_back() -> None:
    limits = Limits(10_000, tokens=Bucket(6000))
    limits.start(75, 0.0)
    assert limits.wait_seconds(75, 0.0) == pytest.approx(75 / 99)
    answer(limits, estimated=75, used=40)
    assert limits.wait_seconds(35, 0.0) == 0.0
    assert limits.wait_seconds(75, 0.0) == pytest.approx(40 / 99)


def test_concurrency_bounds_throughput() -> None:
    """4 at once of 0.5 s each: the 12th starts with the third wave."""
    assert run_limits(Limits(4), 12, latency=0.5) == [0.0] * 4 + [0.5] * 4 + [1.0] * 4


def test_the_ramp() -> None:
    """32 at once, 32 more each 50 ms as long as nothing is refused, and one more for each answer."""
    limits = Limits(100)
    started = run_limits(limits, 100, latency=10.0)
    assert started == pytest.approx([0.0] * 32 + [0.05] * 32 + [0.1] * 32 + [0.15] * 4)
    fresh = Limits(100)
    answer(fresh)
    assert fresh.allowed == 33
    fresh.in_flight = 33
    fresh.refused(started_at=0.0, now=0.01, retry_after=None)
    assert fresh.allowed == 16.5 and fresh.wait_seconds(0, 100.0) is None  # no ramp after a refusal


def test_refusals_halve_once_a_round_and_answers_grow_back() -> None:
    limits = Limits(64)
    limits.allowed, limits.in_flight = 64.0, 64
    for _ in range(10):  # ten requests of one burst are refused: one decrease
        limits.refused(started_at=0.0, now=1.0, retry_after=None)
    assert limits.allowed == 32
    for _ in range(32):  # a full round of 32 answers allows about 64/32 = 2 more
        answer(limits)
    assert 33.8 < limits.allowed < 34.0
    for _ in range(10_000):
        answer(limits)
    assert limits.allowed == 64


def test_the_cool_down_without_a_header_doubles() -> None:
    """0.1 s, doubling while no answer comes, never more than half a minute."""
    limits = Limits(8)
    waits = []
    now = 0.0
    for _ in range(12):
        limits.refused(started_at=now, now=now, retry_after=None)
        waits.append(limits.cool_until - now)
        now = limits.cool_until + 1
    assert waits == pytest.approx([min(30.0, 0.1 * 2**n) for n in range(12)])
    answer(limits)
    limits.refused(started_at=now, now=now, retry_after=None)
    assert limits.cool_until - now == pytest.approx(0.1)


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


def provider(
    limits: Limits, rows: int, *, per_second: float, burst: float, retry_after: float | None
) -> tuple[float, int]:
    """A provider with a token bucket, answers after 0.2 s, refusals after 2 ms: the end, and refusals."""
    now, level, updated, refusals, done, waiting = 0.0, burst, 0.0, 0, 0, rows
    events: list[tuple[float, int, float, bool]] = []
    number = 0
    while done < rows:
        wait = limits.wait_seconds(0, now) if waiting else None
        if wait == 0:
            waiting -= 1
            number += 1
            level, updated = min(burst, level + (now - updated) * per_second), now
            taken = level >= 1
            level -= taken
            limits.start(0, now)
            heapq.heappush(events, (now + (0.2 if taken else 0.002), number, now, taken))
            continue
        if events and (wait is None or events[0][0] <= now + wait):
            now, _, started_at, taken = heapq.heappop(events)
            limits.end()
            if taken:
                done += 1
                answer(limits, seconds=now - started_at)
            else:
                refusals += 1
                waiting += 1
                limits.refused(started_at=started_at, now=now, retry_after=retry_after)
        else:
            assert wait is not None
            now += wait
    return now, refusals


@pytest.mark.parametrize("per_second", [20, 50, 200])
@pytest.mark.parametrize("retry_after", [1.0, None])
def test_an_undeclared_rate_is_found(per_second: int, retry_after: float | None) -> None:
    """1,000 rows; the ideal is the burst at once and the rest at the rate."""
    end, refusals = provider(Limits(100), 1000, per_second=per_second, burst=per_second, retry_after=retry_after)
    assert end <= (1000 - per_second) / per_second + 1.4
    assert refusals <= (50 if retry_after else 75)


def test_a_provider_with_a_small_burst() -> None:
    """20 a second, 5 at once, no header: 1,000 rows in at most a tenth more than 50 s."""
    end, refusals = provider(Limits(100), 1000, per_second=20, burst=5, retry_after=None)
    assert end <= 55
    assert refusals <= 75


def test_a_small_burst_and_a_long_wait() -> None:
    """A weakness, bounded: 50 a second, 5 at once, but "wait 1 s" where 0.1 s would do. The bucket overflows while all
    wait, so what was accepted between two refusals is less than the rate; 1,000 rows take six times 20 s, no more."""
    end, refusals = provider(Limits(100), 1000, per_second=50, burst=5, retry_after=1.0)
    assert end <= 130
    assert refusals <= 125


def test_told_to_wait_by_headers() -> None:
    """Five may still go by the reply to request 10; six went since: all wait until the reset."""
    limits = Limits(32)
    for _ in range(15):
        limits.start(0, 0.0)
    limits.told(RateNews(6, 3.0, None, 0.0), number=10, now=1.0)
    assert limits.wait_seconds(0, 1.0) == 0.0
    limits.told(RateNews(5, 3.0, None, 0.0), number=10, now=1.0)
    assert limits.wait_seconds(0, 1.0) == pytest.approx(3.0)
    declared = Limits(32, requests=Bucket(60_000))
    declared.told(RateNews(0, 3.0, None, 0.0), number=0, now=1.0)
    assert declared.wait_seconds(0, 1.0) == 0.0


def queueing(slots: int, concurrency: int, rounds: int) -> list[float]:
    """A server that answers `slots` at once, each in a second, and queues the others: what is allowed, by answer."""
    limits = Limits(concurrency)
    now, free, ends = 0.0, [0.0] * slots, []
    seen = []
    while len(seen) < rounds:
        while limits.wait_seconds(0, now) == 0:
            limits.start(0, now)
            begin = max(now, heapq.heappop(free))
            heapq.heappush(free, begin + 1.0)
            heapq.heappush(ends, (begin + 1.0, now))
        ramp = limits.wait_seconds(0, now)
        if ramp is not None and (not ends or now + ramp < ends[0][0]):
            now += ramp
            continue
        now, started_at = heapq.heappop(ends)
        limits.end()
        answer(limits, seconds=now - started_at, tokens=100)
        seen.append(limits.allowed)
    return seen


def test_a_queueing_server_is_sent_no_more_than_it_takes() -> None:
    """40 slots, 400 allowed: about twice what is needed stays in flight; with 400 slots nothing is held back."""
    late = queueing(40, 400, 20_000)[10_000:]
    assert min(late) >= 40 and max(late) < 160
    assert min(queueing(400, 400, 20_000)[10_000:]) == 400


def test_longer_answers_are_no_queue() -> None:
    """Latency a token triples with other prompts and stays so whatever is allowed: the cut is taken back."""
    sense = QueueSense()
    allowed = 100.0
    lowest = allowed
    for number in range(5000):
        slow = 3.0 if number > 1000 else 1.0
        changed = sense.answered(slow, 68, in_flight=int(allowed), allowed=allowed)
        allowed = allowed if changed is None else changed
        lowest = min(lowest, allowed)
    assert 50 <= lowest < 100 and allowed == 100.0
