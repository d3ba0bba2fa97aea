"""Blocking work in a few threads of its own, with a bounded number of pieces at hand."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")

AHEAD = 4
"""Pieces handed to the threads beyond those under way, per thread: no thread waits for the event loop."""


async def in_order(
    threads: Executor, width: int, work: Callable[[A], B], items: Iterable[A]
) -> AsyncGenerator[B, None]:
    """``work`` on each item by ``width`` threads; results (small ones: some wait here) in the order of the items, which
    are drawn one by one.

    When it ends early (an error, a cancellation, the caller's ``aclosing``), it waits for the pieces under way: nothing
    of it happens afterwards."""
    handed: deque[Future[B]] = deque()
    try:
        for item in items:
            if len(handed) >= (1 + AHEAD) * width:
                yield await asyncio.shield(asyncio.wrap_future(handed[0]))
                handed.popleft()
            handed.append(threads.submit(work, item))
        while handed:
            yield await asyncio.shield(asyncio.wrap_future(handed[0]))
            handed.popleft()
    finally:
        running = [asyncio.wrap_future(piece) for piece in handed if not piece.cancel()]
        if running:
            await asyncio.shield(asyncio.gather(*running, return_exceptions=True))


async def each(threads: Executor, width: int, work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """All results of ``in_order``."""
    results: list[B] = []
    stream = in_order(threads, width, work, items)
    try:
        async for result in stream:
            results.append(result)
    finally:
        await stream.aclose()
    return results


async def together(works: Iterable[Coroutine[Any, Any, B]]) -> list[B]:
    """All results, in order. The first failure or a cancellation ends the others before it is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
