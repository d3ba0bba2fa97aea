"""Blocking work in a few threads of its own, with a bounded number of pieces at hand."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")


async def in_order(
    threads: Executor, width: int, work: Callable[[A], B], items: Iterable[A]
) -> AsyncGenerator[B, None]:
    """``work`` on each item, up to ``width`` at once; results in the order of the items, which are drawn one by one.

    When it ends early (an error, a cancellation, the caller's ``aclosing``), it waits for the pieces under way: nothing
    of it happens afterwards."""
    loop = asyncio.get_running_loop()
    under_way: deque[asyncio.Future[B]] = deque()
    try:
        for item in items:
            if len(under_way) >= width:
                yield await asyncio.shield(under_way.popleft())
            under_way.append(loop.run_in_executor(threads, work, item))
        while under_way:
            yield await asyncio.shield(under_way.popleft())
    finally:
        if under_way:
            await asyncio.shield(asyncio.gather(*under_way, return_exceptions=True))


async def each(threads: Executor, width: int, work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """All results of ``in_order``."""
    async with aclosing(in_order(threads, width, work, items)) as results:
        return [result async for result in results]


async def together(works: Iterable[Coroutine[Any, Any, B]]) -> list[B]:
    """All results, in order. The first failure or a cancellation ends the others before it is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
