"""One agent's stream, seen from the replica that holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from controlplane.domain.suspicion import Arrivals
from gridkeeper.ids import DeviceId, Epoch, JobId, NodeId, Revision, SpoolId
from gridkeeper.ports.link import ControlSession, together
from gridkeeper.v1.agent_pb2 import CheckpointReady, Command, ControlFrame, EventBatch, LogChunk, WorkloadReport

MAX_WAITING_BYTES = 8 << 20
"""Events waiting for the store per stream. An agent has at most 256 events under way, about 5 KiB each."""
MAX_CHECKPOINTS = 64
"""Announcements waiting to be verified per stream; agents repeat those that are not answered."""


class TooMuch(ValueError):
    """More than an honest agent ever has under way; the message names the field, the value and the remedy."""


@dataclass(slots=True)
class Cursor:
    """Where the node's spool stands, and the revision of the cursor key that the next commit compares."""

    spool: SpoolId
    sequence: int
    revision: Revision


@dataclass(frozen=True, slots=True)
class Noted:
    """A report that agrees, but for progress, with the record of its run: what it said, and the record's revision."""

    said: tuple[object, ...]
    revision: Revision


@dataclass(slots=True)
class AgentStream:
    """Mutable, owned by one task group of one stream."""

    node: NodeId
    session: str
    link: ControlSession
    devices: tuple[DeviceId, ...]
    cursor: Cursor
    heard_ms: int
    session_revision: Revision
    arrivals: Arrivals
    beat_ms: int = 0  # when the newest heartbeat came
    marked_open: bool = True
    ended: bool = False
    marking: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while the session record is written
    events: asyncio.Queue[EventBatch] = field(default_factory=asyncio.Queue)
    waiting_bytes: int = 0
    checkpoints: asyncio.Queue[CheckpointReady] = field(default_factory=lambda: asyncio.Queue(MAX_CHECKPOINTS))
    report: WorkloadReport | None = None
    report_ms: int = 0
    report_mono_ms: int = 0
    reported: asyncio.Event = field(default_factory=asyncio.Event)
    running: tuple[tuple[object, ...], ...] = ()  # of the report: what decides about commands
    noted: dict[tuple[JobId, Epoch], Noted] = field(default_factory=dict)  # of the report's workloads
    written_ms: dict[tuple[JobId, Epoch], int] = field(default_factory=dict)  # alike: when a record was last written
    orders: asyncio.Event = field(default_factory=asyncio.Event)  # what should run on the node is to be looked at
    told: Mapping[str, Command] = field(default_factory=dict)  # job and epoch -> what the node was last told
    commands: dict[JobId, tuple[tuple[int, int, int], Command]] = field(default_factory=dict)
    # as made of ownership, term and the gang's step
    repeat_ms: int = 0  # when the commands are to be told again
    superseded: asyncio.Event = field(default_factory=asyncio.Event)
    logs: dict[int, asyncio.Future[LogChunk]] = field(default_factory=dict)
    next_log: int = 1

    async def send(self, frames: Iterable[ControlFrame]) -> None:
        """In as few messages as they take. Raises ``LinkClosed``."""
        for message in together(frames):
            await self.link.send(message)

    def device(self, slot: str) -> DeviceId:
        """The device id of a slot of this node; "" stays "" (the node itself)."""
        return DeviceId(f"{self.node}/{slot}") if slot else DeviceId("")

    # Nothing that arrives may wait here: behind it come renewals, and without their answers jobs are ended.

    def offer_events(self, batch: EventBatch) -> None:
        """Raises ``TooMuch``."""
        self.waiting_bytes += batch.ByteSize()
        if self.waiting_bytes > MAX_WAITING_BYTES:
            raise TooMuch(
                f"events: {self.waiting_bytes} bytes wait for the store, at most {MAX_WAITING_BYTES}; "
                "wait for acknowledgements"
            )
        self.events.put_nowait(batch)

    async def next_events(self) -> EventBatch:
        batch = await self.events.get()
        self.waiting_bytes -= batch.ByteSize()
        return batch

    def more_events(self) -> EventBatch | None:
        """What waits already; None: nothing."""
        if self.events.empty():
            return None
        batch = self.events.get_nowait()
        self.waiting_bytes -= batch.ByteSize()
        return batch

    def offer_checkpoint(self, ready: CheckpointReady) -> None:
        """One that finds no room is dropped: its agent says it again."""
        if not self.checkpoints.full():
            self.checkpoints.put_nowait(ready)
