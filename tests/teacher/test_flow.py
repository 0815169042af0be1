"""Bounded, ordered concurrency."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from distill.teacher import flow
from distill.teacher.flow import in_order


def test_order_is_kept_and_width_is_held() -> None:
    running = peak = 0

    async def work(number: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.001 * (7 - number % 7))
        running -= 1
        return number * number

    async def main() -> list[int]:
        return [result async for result in in_order(work, range(100), width=9)]

    assert asyncio.run(main()) == [number * number for number in range(100)]
    assert peak == 9


def test_a_slow_item_holds_back_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "HELD_BACK", 20)
    started = 0

    async def main() -> None:
        release = asyncio.Event()

        async def work(number: int) -> int:
            nonlocal started
            started += 1
            if number == 0:
                await release.wait()
            return number

        results = in_order(work, range(1000), width=4)
        first = asyncio.ensure_future(anext(results))
        await asyncio.sleep(0.05)
        assert started == 20  # one slow, nineteen done behind it
        release.set()
        assert await first == 0
        assert [number async for number in results] == list(range(1, 1000))

    asyncio.run(main())


def test_the_first_error_ends_it_and_lets_the_others_finish() -> None:
    finished: list[int] = []

    async def work(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        await asyncio.sleep(0.01)
        finished.append(number)
        return number

    async def main() -> None:
        taken = []
        with pytest.raises(ValueError, match="five"):
            async for number in in_order(work, range(1000), width=10):
                taken.append(number)
        assert taken == [0, 1, 2, 3, 4]
        assert 9 in finished and max(finished) < 12

    asyncio.run(main())


def test_an_error_of_the_items_comes_after_the_results_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("line 6")

    async def work(number: int) -> int:
        return number

    async def main() -> None:
        taken = []
        with pytest.raises(ValueError, match="line 6"):
            async for number in in_order(work, items(), width=2):
                taken.append(number)
        assert taken == [0, 1, 2, 3, 4]

    asyncio.run(main())


def test_leaving_early_cancels_what_runs() -> None:
    cancelled = 0

    async def work(number: int) -> int:
        nonlocal cancelled
        try:
            await asyncio.sleep(0 if number == 0 else 3600)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return number

    async def main() -> None:
        results = in_order(work, range(100), width=4)
        assert await anext(results) == 0
        await asyncio.sleep(0)
        await results.aclose()
        assert cancelled >= 3
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
