"""Tells agents on hosts that a batch system owns whether that may start new work there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import cast

from controlplane.shell.mirror import Mirror
from controlplane.shell.session import AgentStream
from failover.domain.closing import why_closed
from failover.domain.eligible import BARRED_BY_DRAIN
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.link import LinkClosed
from gridkeeper.records.fleet import HealthRecord
from gridkeeper.v1.agent_pb2 import ControlFrame, NodeGate

log = logging.getLogger("gridkeeper.gatefeed")

LOOK_MS = 1_000
SEND_MS = 500


class GateFeed:
    """One per replica, for all its streams. A wish is sent when it changes, once per stream: the agent keeps to it.
    ``streams``: those that the replica holds; read only."""

    def __init__(self, local: Mirror, streams: Mapping[NodeId, AgentStream], clock: Clock) -> None:
        self._local = local
        self._streams = streams
        self._clock = clock
        self._told: dict[NodeId, tuple[str, str]] = {}  # session, and why it is closed

    async def run(self) -> None:
        """For ever."""
        while True:
            if self._local.fresh and not self._local.suspect:  # nothing from what may be old, or does not decode
                await self._look()
            await self._clock.sleep(LOOK_MS)

    async def _look(self) -> None:
        nodes, cordons = self._local.kind("nodes"), self._local.kind("cordons")
        health = cast(Mapping[DeviceId, Versioned[HealthRecord]], self._local.kind("health"))
        owned = [stream for node, stream in self._streams.items() if node in nodes and nodes[node].record.scheduler]
        self._told = {stream.node: self._told[stream.node] for stream in owned if stream.node in self._told}
        if not owned:
            return
        drains = self._local.kind("drains").values()
        drained = frozenset(drain.record.device for drain in drains if drain.record.state in BARRED_BY_DRAIN)
        for stream in owned:
            devices = nodes[stream.node].record.devices
            why = why_closed(stream.node, devices, cordons, health, drained)
            if why is not None and self._told.get(stream.node) != (stream.session, why):
                await self._tell(stream, why)

    async def _tell(self, stream: AgentStream, why: str) -> None:
        try:
            async with asyncio.timeout(SEND_MS / 1000):
                await stream.link.send(ControlFrame(node_gate=NodeGate(closed=bool(why), reason=why)))
        except (LinkClosed, TimeoutError) as error:
            log.info("%s is not told that it is closed: %s", stream.node, error or "it is slow")
            return
        self._told[stream.node] = (stream.session, why)
