"""Running blocking driver calls beside the event loop.

A hung driver call cannot be interrupted: its thread is lost until the driver lets go. So each activity has one daemon
thread of its own (a lane), never the loop's default executor: a lane that hangs blocks nothing else, and the process
can still exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from gridkeeper.ports.clock import Clock

T = TypeVar("T")
_Work = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]

_HUNG_POLL_MS = 50


class Lane(Protocol):
    """Runs calls one after another, in order."""

    def submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Start (or queue) the call. The future gets its result or exception; cancelling it does not stop the call."""
        ...

    def close(self) -> None:
        """No more calls. Does not wait for one that runs."""
        ...


class Runner(Protocol):
    """Makes lanes. ``may_block``: a call may wait; if not, callers pass timeouts of 0 and wait themselves."""

    @property
    def may_block(self) -> bool: ...

    def lane(self, name: str) -> Lane: ...


class ThreadRunner:
    """One daemon thread per lane."""

    may_block = True

    def lane(self, name: str) -> Lane:
        return _ThreadLane(name)


class _ThreadLane:
    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=f"gridkeeper-{name}", daemon=True).start()

    def submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._work.put((function, loop, future))
        return future

    def close(self) -> None:
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            function, loop, future = work
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as caught:  # noqa: BLE001 - handed to whoever waits, of whatever kind it is
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, future, result, error)


class InlineRunner:
    """Calls in the loop's own thread: for fake backends on virtual time. ``hung(lane)`` True: calls on that lane do
    not come back until it is False, as with a driver that hangs."""

    may_block = False

    def __init__(self, clock: Clock, hung: Callable[[str], bool] = lambda lane: False) -> None:
        self._clock = clock
        self._hung = hung

    def lane(self, name: str) -> Lane:
        return _InlineLane(name, self._clock, self._hung)


class _InlineLane:
    def __init__(self, name: str, clock: Clock, hung: Callable[[str], bool]) -> None:
        self._name = name
        self._clock = clock
        self._hung = hung
        self._waiting: set[asyncio.Task[None]] = set()

    def submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._hung(self._name) or self._waiting:
            task = asyncio.ensure_future(self._later(function, future, tuple(self._waiting)))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
        else:
            _call(function, future)
        return future

    def close(self) -> None:
        for task in self._waiting:
            task.cancel()

    async def _later(
        self, function: Callable[[], T], future: asyncio.Future[T], before: tuple[asyncio.Task[None], ...]
    ) -> None:
        if before:
            await asyncio.wait(before)
        while self._hung(self._name):
            await self._clock.sleep(_HUNG_POLL_MS)
        _call(function, future)


def _call(function: Callable[[], T], future: asyncio.Future[T]) -> None:
    result: Any = None
    error: BaseException | None = None
    try:
        result = function()
    except Exception as caught:  # noqa: BLE001 - handed to whoever waits, of whatever kind it is
        error = caught
    _settle(future, result, error)


def _settle(future: asyncio.Future[T], result: T, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
