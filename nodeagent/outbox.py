"""What waits to be sent on one stream, most urgent first. One slot per kind of message: a newer one replaces an older.

A slot holds a function that makes the frame at the moment of sending, so that ages, and the send time that a renewal
counts from, are true however long the stream was slow.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable

from gridkeeper.ports.link import TOGETHER_BYTES
from gridkeeper.v1.agent_pb2 import AgentFrame

MakeFrame = Callable[[], AgentFrame | None]


class Urgency(enum.IntEnum):
    """Lower goes first. Events never wait behind telemetry."""

    EVENTS = 0
    RENEWAL = 1
    PROBE = 2
    WORKLOADS = 3
    CHECKPOINT = 4
    HOST = 5
    LOG = 6
    HEARTBEAT = 7
    TELEMETRY = 8


class Outbox:
    def __init__(self) -> None:
        self._slots: dict[tuple[Urgency, str], MakeFrame] = {}
        self._filled = asyncio.Event()

    def put(self, urgency: Urgency, make: MakeFrame, name: str = "") -> None:
        """``name`` tells apart what must not replace one another (checkpoints, log chunks)."""
        self._slots[urgency, name] = make
        self._filled.set()

    async def next(self) -> AgentFrame:
        """The next frame, with what else waits beside it (``more``)."""
        while True:
            frame = self._pop()
            if frame is not None:
                break
            self._filled.clear()
            await self._filled.wait()
        size = frame.ByteSize()
        while size < TOGETHER_BYTES and (another := self._pop()) is not None:
            size += another.ByteSize()
            frame.more.append(another)
        return frame

    def _pop(self) -> AgentFrame | None:
        """A slot whose function has nothing to send (any more) is passed over. None: nothing waits."""
        while self._slots:
            frame = self._slots.pop(min(self._slots))()
            if frame is not None:
                return frame
        return None
