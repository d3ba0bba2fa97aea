"""Marks the sessions of streams that have been silent for longer than their links explain. One loop for all of them.

Per frame nothing is done but to note the time (``AgentStream.heard``); a heartbeat also teaches the link's statistics.
The loop compares each stream's silence with its limit, a few times per heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from controlplane.domain.suspicion import Arrivals, LocalHealth
from controlplane.shell.session import AgentStream
from gridkeeper.ids import NodeId
from gridkeeper.policy.model import LivenessPolicy
from gridkeeper.ports.clock import Clock
from gridkeeper.timings import Timings

log = logging.getLogger("gridkeeper.silence")

Mark = Callable[[AgentStream, bool], Awaitable[None]]
MAX_LINKS = 65_536
"""Nodes whose links a replica remembers beyond their streams; of more, those connected longest ago are forgotten."""
MARKS = 64
"""Session records written at a time: when a rack falls silent, others' renewals must not wait behind it."""


class Beat:
    """The process's own pulse, for ``LocalHealth``."""

    def __init__(self, health: LocalHealth, policy: Callable[[], LivenessPolicy], clock: Clock) -> None:
        self._health = health
        self._policy = policy
        self._clock = clock

    def steady_ms(self) -> int:
        """Since when this process has kept its own time (see ``LocalHealth.steady_since``)."""
        return self._health.steady_since(self._clock.mono_ms(), self._policy().local_lag_ms)

    async def run(self) -> None:
        """For ever."""
        while True:
            late_ms = self._health.beat(self._clock.mono_ms(), self._policy().local_lag_ms)
            if late_ms:
                log.warning("this process was held up for %d ms: every silence is timed anew", late_ms)
            await self._clock.sleep(self._health.every_ms)


class Links:
    """What the replica has learnt of each node's link; a stream that is opened again goes on from there."""

    def __init__(self, timings: Timings) -> None:
        self._heartbeat_ms = timings.heartbeat_ms
        self._known: dict[NodeId, Arrivals] = {}

    def opened(self, node: NodeId) -> Arrivals:
        """For a new stream of the node."""
        arrivals = self._known.pop(node, None) or Arrivals(self._heartbeat_ms)
        arrivals.forget_last()
        self._known[node] = arrivals  # now the newest
        if len(self._known) > MAX_LINKS:
            del self._known[next(iter(self._known))]
        return arrivals


def heartbeat(stream: AgentStream, now_ms: int, steady_ms: int, most_ms: int) -> None:
    """One arrived. A gap that this process was late in says nothing of the link."""
    if stream.beat_ms < steady_ms:
        stream.arrivals.forget_last()
    stream.beat_ms = now_ms
    stream.arrivals.beat(now_ms, most_ms)


def silence_of(stream: AgentStream, now_ms: int, steady_ms: int) -> int:
    """How long nothing was heard on a stream that this process could have heard."""
    return now_ms - max(stream.heard_ms, steady_ms)


class SilenceWatch:
    """``streams``: those that the replica holds; read, never changed. ``mark`` writes the session record."""

    def __init__(
        self,
        streams: Mapping[NodeId, AgentStream],
        mark: Mark,
        beat: Beat,
        policy: Callable[[], LivenessPolicy],
        clock: Clock,
        timings: Timings,
    ) -> None:
        self._streams = streams
        self._mark = mark
        self._beat = beat
        self._policy = policy
        self._clock = clock
        self._timings = timings
        self._every_ms = max(20, timings.heartbeat_ms // 5)

    async def run(self) -> None:
        """For ever."""
        while True:
            wrong = self.overdue()
            for start in range(0, len(wrong), MARKS):
                await asyncio.gather(*(self._mark(stream, is_open) for stream, is_open in wrong[start : start + MARKS]))
            await self._clock.sleep(self._every_ms)

    def overdue(self) -> list[tuple[AgentStream, bool]]:
        """Streams whose session record is wrong, with what it should say: open or not."""
        now, phi, most = self._clock.mono_ms(), self._policy().phi, self._timings.unreachable_ms
        steady = self._beat.steady_ms()
        found: list[tuple[AgentStream, bool]] = []
        for stream in self._streams.values():
            silent = silence_of(stream, now, steady)
            # Nearly all streams nearly always: heard within the last heartbeats, and marked so.
            if silent < self._timings.heartbeat_ms and stream.marked_open:
                continue
            is_open = silent < stream.arrivals.limit_ms(phi, most)
            if is_open and not stream.marked_open and stream.heard_ms < steady:
                continue  # timed anew, but not heard again
            if is_open != stream.marked_open:
                found.append((stream, is_open))
        return found
