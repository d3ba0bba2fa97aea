"""An asyncio event loop on virtual time: when nothing is ready it jumps to the next timer instead of waiting.

One thread, no file descriptors, so a run is a function of its seed; days of grid time take seconds.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set: the run could never go on."""


class _Jump(selectors.BaseSelector):
    """A selector that never waits: a timeout moves the clock."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.moved: Callable[[float], None] = lambda seconds: None

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("nothing is ready and no timer is set")
        if timeout > 0:
            self.moved(timeout)
        return []

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()


class _Task(asyncio.Task[T]):
    """Hashes by its number on its loop, not by its address: sets of tasks (asyncio's own, too) then iterate in the same
    order in every run."""

    def __init__(self, coro: Coroutine[Any, Any, T], *, loop: VirtualLoop, **options: Any) -> None:
        self._number = loop.next_number()
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.SelectorEventLoop):
    """``time()`` starts at 0 and only moves when nothing is ready."""

    def __init__(self) -> None:
        self._now = 0.0
        jump = _Jump()
        super().__init__(jump)
        jump.moved = self._advance
        # Timers within a nanosecond run in the order in which they were set.
        self._clock_resolution = 1e-9
        self._numbers = 0
        self.set_task_factory(lambda loop, coro, **options: _Task(coro, loop=self, **options))

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _advance(self, seconds: float) -> None:
        self._now += seconds

    def time(self) -> float:
        return self._now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func!r} would run in a thread: the simulation has one")


def run_virtual(main: Coroutine[Any, Any, T], limit_s: float = 600) -> T:
    """Run ``main`` on a fresh virtual loop and close it. Raises ``TimeoutError`` after ``limit_s`` of virtual time: a
    grid never runs out of things to do, so a run that waits in vain would not end."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(asyncio.wait_for(main, limit_s))
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in sorted(tasks, key=lambda t: t.get_name()):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()
