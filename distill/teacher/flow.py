"""Bounded concurrency over a stream of items, results in the order of the items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

HELD_BACK = 4096


async def in_order(
    function: Callable[[Item], Awaitable[Result]], items: Iterable[Item], *, width: int
) -> AsyncGenerator[Result, None]:
    """Run `function` on up to `width` items at once and yield the results in the order of the items.

    At most `HELD_BACK` items are under way or finished behind a slow one, so memory does not grow with their number.
    The first exception ends it: no further item is taken, what runs may finish (its answers are paid for), and then it
    is raised.
    """
    running = asyncio.Semaphore(width)
    untaken = asyncio.Semaphore(max(HELD_BACK, width))
    started: asyncio.Queue[asyncio.Task[Result] | None] = asyncio.Queue()
    failed = False

    async def run(item: Item) -> Result:
        nonlocal failed
        try:
            return await function(item)
        except BaseException:
            failed = True
            raise
        finally:
            running.release()

    async def feed() -> None:
        try:
            for item in items:
                await running.acquire()
                await untaken.acquire()
                if failed:
                    return
                started.put_nowait(asyncio.create_task(run(item)))
        finally:
            started.put_nowait(None)

    feeder = asyncio.create_task(feed())
    task: asyncio.Task[Result] | None = None
    finished = False
    try:
        while (task := await started.get()) is not None:
            result = await task
            untaken.release()
            yield result
        await feeder  # raises what the items raised
        finished = True
    except Exception:
        feeder.cancel()
        await asyncio.gather(feeder, *_rest(started), return_exceptions=True)
        finished = True
        raise
    finally:
        if not finished:  # cancelled, or nobody wants more
            tasks = [feeder, *_rest(started), *([task] if task is not None else [])]
            for unwanted in tasks:
                unwanted.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _rest(started: asyncio.Queue[asyncio.Task[Result] | None]) -> list[asyncio.Task[Result]]:
    tasks = []
    while not started.empty():
        task = started.get_nowait()
        if task is not None:
            tasks.append(task)
    return tasks
