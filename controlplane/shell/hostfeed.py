"""The repairs' half of a stream: what is to be done on the host is sent for as long as it is under way, and what the
agent answers is made durable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from controlplane.domain.repair import BY_AGENT, to
from controlplane.domain.repair_index import Repair, latest_ms
from controlplane.shell.apply import Applier, Conflict
from controlplane.shell.mirror import Mirror
from controlplane.shell.session import AgentStream
from gridkeeper.codec import enum_prefix
from gridkeeper.ids import NodeId, RegionId, ReplicaId, slot_of
from gridkeeper.keys import RegionKeys
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.link import LinkClosed
from gridkeeper.ports.store import StoreError
from gridkeeper.records.care import RepairKind, RepairState
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import ControlFrame, HostCommand, HostReport

log = logging.getLogger("gridkeeper.hostfeed")

REPEAT_MS = 1_000
SEND_MS = 500
MAX_WAITING = 256
"""Answers waiting for the store."""
MAX_DETAIL = 500
ANSWERS = {
    records_pb2.REPAIR_STATE_DONE: RepairState.DONE,
    records_pb2.REPAIR_STATE_FAILED: RepairState.FAILED,
    records_pb2.REPAIR_STATE_LOST: RepairState.LOST,
}


class HostFeed:
    """One per replica, for all its streams: repairs are few. ``streams``: those that the replica holds; read only."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        local: Mirror,
        streams: Mapping[NodeId, AgentStream],
        applier: Applier,
        clock: Clock,
    ) -> None:
        self._keys = RegionKeys(region)
        self._actor = f"machine/{replica}"
        self._local = local
        self._streams = streams
        self._applier = applier
        self._clock = clock
        self._answers: asyncio.Queue[tuple[AgentStream, HostReport]] = asyncio.Queue(MAX_WAITING)

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tell())
            group.create_task(self._record())

    def offer(self, stream: AgentStream, answer: HostReport) -> None:
        """An agent's answer. One that finds no room is dropped: its agent says it again."""
        if not self._answers.full():
            self._answers.put_nowait((stream, answer))

    async def _tell(self) -> None:
        """Each second, what is under way to those that are to do it."""
        while True:
            for repair in self._under_way():
                stream = self._streams.get(repair.record.node)
                if stream is not None:
                    await self._send(stream, repair)
            await self._clock.sleep(REPEAT_MS)

    async def _send(self, stream: AgentStream, repair: Repair) -> None:
        try:
            async with asyncio.timeout(SEND_MS / 1000):
                await stream.link.send(ControlFrame(host_command=self._command(repair)))
        except (LinkClosed, TimeoutError) as error:
            log.info("repair %s is not told to %s now: %s", repair.record.id, stream.node, error or "it is slow")

    def _under_way(self) -> list[Repair]:
        """Nothing from a mirror that may be old: what it shows as under way may have been given up, and its device
        returned."""
        if not self._local.fresh:
            return []
        return [
            repair
            for repair in self._local.kind("repairs").values()
            if repair.record.state is RepairState.RUNNING and repair.record.kind in BY_AGENT
        ]

    def _command(self, repair: Repair) -> HostCommand:
        leader, record = self._local.one("leader"), repair.record
        return HostCommand(
            term=leader.created if leader else 0,
            id=record.id,
            kind=records_pb2.RepairKind.Value(enum_prefix(RepairKind) + record.kind.name),
            slot=slot_of(record.device) if record.device else "",
            command=record.command,
            timeout_ms=record.deadline_ms - record.stages[-1].at_ms,
            trace=record.trace,
        )

    async def _record(self) -> None:
        while True:
            stream, answer = await self._answers.get()
            await self._report(stream, answer)

    async def _report(self, stream: AgentStream, answer: HostReport) -> None:
        """Write the answer down if the repair waits for it; the agent repeats what is not written."""
        state = ANSWERS.get(answer.state)
        repair = self._local.kind("repairs").get(answer.id)
        if state is None or repair is None or repair.record.state is not RepairState.RUNNING:
            return
        if repair.record.node != stream.node:
            log.warning("%s reports repair %s, which is not its own: ignored", stream.node, answer.id)
            return
        detail = "".join(c if c.isprintable() else " " for c in answer.detail[:MAX_DETAIL])
        decision = to(self._keys, repair, state, detail or "no word of it", self._ended_ms(repair))
        try:
            await self._applier.caught_up(await self._applier.apply(decision, self._actor, None))
        except Conflict:
            log.info("repair %s changed meanwhile; the next report decides", answer.id)
        except StoreError as error:
            log.warning("the end of repair %s waits for the store: %s", answer.id, error)

    def _ended_ms(self, repair: Repair) -> int:
        """Ledger time, as the leader counts it: when it says that the repair began, and what passed here since that was
        seen. (Of one that this replica came to see late, less passed here: then the end is dated too early, and a fault
        from before it counts as one from after it rather than the other way round.)"""
        return latest_ms(repair.record) + self._clock.mono_ms() - repair.seen_ms
