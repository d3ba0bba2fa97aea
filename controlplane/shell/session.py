"""One agent's stream, seen from the replica that holds it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from gridkeeper.ids import DeviceId, NodeId, Revision, SpoolId
from gridkeeper.ports.link import ControlSession
from gridkeeper.v1.agent_pb2 import CheckpointReady, EventBatch, LogChunk, WorkloadReport

MAX_QUEUED_BATCHES = 64
"""Event batches waiting for the store per stream; beyond, reading stops and gRPC's flow control holds the agent."""


@dataclass(slots=True)
class Cursor:
    """Where the node's spool stands, and the revision of the cursor key that the next commit compares."""

    spool: SpoolId
    sequence: int
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
    marked_open: bool = True
    events: asyncio.Queue[EventBatch] = field(default_factory=lambda: asyncio.Queue(MAX_QUEUED_BATCHES))
    checkpoints: asyncio.Queue[CheckpointReady] = field(default_factory=lambda: asyncio.Queue(MAX_QUEUED_BATCHES))
    report: WorkloadReport | None = None
    report_ms: int = 0
    reported: asyncio.Event = field(default_factory=asyncio.Event)
    superseded: asyncio.Event = field(default_factory=asyncio.Event)
    logs: dict[int, asyncio.Future[LogChunk]] = field(default_factory=dict)
    next_log: int = 1

    def device(self, slot: str) -> DeviceId:
        """The device id of a slot of this node; "" stays "" (the node itself)."""
        return DeviceId(f"{self.node}/{slot}") if slot else DeviceId("")
