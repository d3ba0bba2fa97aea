"""A stream into a replica, frame by frame: what is acknowledged is durable, exactly once, and bad input ends only the
stream that it came on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from chaos.simulate.checkpoints import MemoryTree, SimCheckpointStore
from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.loop import run_virtual
from chaos.simulate.network import SimAgentSession, SimNetwork
from chaos.simulate.store import SimCluster
from controlplane.shell.replica import Ports, Replica
from gridkeeper import codec
from gridkeeper.ids import JobId, NodeId, RegionId, ReplicaId
from gridkeeper.keys import RegionKeys
from gridkeeper.ports.jobs import Manifest
from gridkeeper.ports.link import LinkClosed, LinkRefused
from gridkeeper.ports.store import PutOp
from gridkeeper.records.fleet import DeviceRecord, EventRecord, SessionRecord
from gridkeeper.snapshot import Settings
from gridkeeper.telemetry import METRICS, SCHEMA_VERSION
from gridkeeper.timings import SHORT
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import (
    AgentEvent,
    AgentFrame,
    CheckpointReady,
    ControlFrame,
    DeviceInfo,
    EventBatch,
    Heartbeat,
    Hello,
    Renewal,
    RenewalItem,
    Telemetry,
)

EAST = RegionId("east")
KEYS = RegionKeys(EAST)


def hello(node: str = "n1", **changes: object) -> AgentFrame:
    values: dict[str, object] = {
        "node": node,
        "region": "east",
        "rack": "r1",
        "boot_id": "boot",
        "spool": "spool1",
        "agent_version": "0",
        "metric_schema": SCHEMA_VERSION,
        "devices": [DeviceInfo(slot=f"gpu{i}", uuid=f"GPU-{node}-{i}", vendor="nvidia") for i in range(2)],
    }
    values.update(changes)
    return AgentFrame(hello=Hello(**values))  # type: ignore[arg-type]


def xid(sequence: int, **changes: object) -> AgentEvent:
    values: dict[str, object] = {
        "sequence": sequence,
        "slot": "gpu0",
        "kind": records_pb2.EVENT_KIND_XID,
        "code": 13,
        "message": "NVRM: Xid 13",
        "sources": ["nvml"],
        "count": 1,
        "age_ms": 5,
    }
    values.update(changes)
    return AgentEvent(**values)  # type: ignore[arg-type]


def events(*items: AgentEvent) -> AgentFrame:
    return AgentFrame(events=EventBatch(events=items))


class Bench:
    """Two replicas of one region on one simulated cluster."""

    def __init__(self) -> None:
        self.clock = SimClock(asyncio.get_running_loop())
        self.cluster = SimCluster(self.clock, SimRng(1))
        self.network = SimNetwork(self.clock, SimRng(2))
        self.replicas: list[Replica] = []
        self.checkpoints: list[SlowToVerify] = []
        self.reader = self.cluster.client("test")
        for name in ("a", "b"):
            store = self.cluster.client(name)
            self.checkpoints.append(SlowToVerify(MemoryTree()))
            checkpoints = {EAST: self.checkpoints[-1]}
            ports = Ports(self.clock, SimRng(name), store, self.cluster.client(f"{name}-global"), checkpoints)
            replica = Replica(EAST, ReplicaId(name), name, ports, Settings(timings=SHORT))
            self.replicas.append(replica)
            self.network.listen(name, replica.ingest.serve)

    async def open(self, frame: AgentFrame, to: str = "a", node: str = "n1") -> SimAgentSession:
        session = await self.network.connect(node, "east", to)
        await session.send(frame)
        return session

    async def stored(self) -> list[EventRecord]:
        page = await self.reader.range(KEYS.prefix("events"))
        return [codec.decode(EventRecord, kv.value) for kv in page.items]

    async def session_open(self, node: str) -> bool:
        kv, _ = await self.reader.get(KEYS.prefix("sessions") + node)
        return kv is not None and codec.decode(SessionRecord, kv.value).open


async def until(session: SimAgentSession, frame: str) -> ControlFrame:
    """The next frame of a kind."""
    while True:
        got = await session.receive()
        if got.WhichOneof("frame") == frame:
            return got


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    b = Bench()
    running = [asyncio.ensure_future(r.run()) for r in b.replicas]
    await asyncio.gather(*(r.local.wait_loaded() for r in b.replicas))
    try:
        yield b
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await b.cluster.close()


def test_acknowledged_events_are_in_the_store_exactly_once_whatever_is_sent_again() -> None:
    async def main() -> None:
        async with bench() as b:
            session = await b.open(hello())
            assert (await until(session, "welcome")).welcome.acked_sequence == 0
            await session.send(events(xid(1), xid(2)))
            while (await until(session, "event_ack")).event_ack.sequence < 2:
                pass
            assert [e.sequence for e in await b.stored()] == [1, 2]
            await session.send(events(xid(1), xid(2), xid(3)))
            while (await until(session, "event_ack")).event_ack.sequence < 3:
                pass
            assert [e.sequence for e in await b.stored()] == [1, 2, 3]

    run_virtual(main())


def test_another_replica_takes_over_where_the_first_was_and_the_first_writes_no_more() -> None:
    async def main() -> None:
        async with bench() as b:
            first = await b.open(hello(), "a")
            await until(first, "welcome")
            await first.send(events(xid(1)))
            await until(first, "event_ack")
            second = await b.open(hello(), "b")
            assert (await until(second, "welcome")).welcome.acked_sequence == 1
            await first.send(events(xid(2, message="from the stale stream")))
            with pytest.raises(LinkClosed):
                while True:
                    await until(first, "event_ack")
            await second.send(events(xid(2, message="from the live stream")))
            await until(second, "event_ack")
            assert [e.message for e in await b.stored()][1:] == ["from the live stream"]

    run_virtual(main())


def test_events_wait_for_a_store_that_is_away_and_are_not_acknowledged_before() -> None:
    async def main() -> None:
        async with bench() as b:
            session = await b.open(hello())
            await until(session, "welcome")
            store = b.cluster.client("a")
            store.partition()
            await session.send(events(xid(1)))
            await b.clock.sleep(4_000)
            assert await b.stored() == []
            store.heal()
            assert (await until(session, "event_ack")).event_ack.sequence == 1
            assert len(await b.stored()) == 1

    run_virtual(main())


def test_a_lost_reply_neither_doubles_nor_loses_an_event() -> None:
    async def main() -> None:
        async with bench() as b:
            session = await b.open(hello())
            await until(session, "welcome")
            b.cluster.client("a").lose_replies(1)
            await session.send(events(xid(1)))
            assert (await until(session, "event_ack")).event_ack.sequence == 1
            assert [e.sequence for e in await b.stored()] == [1]

    run_virtual(main())


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        (hello(node="n2"), "hello.node"),
        (hello(region="west"), "hello.region"),
        (hello(metric_schema=99), "hello.metric_schema"),
        (hello(rack="UPPER CASE"), "hello.rack"),
        (hello(spool="../../etc"), "hello.spool"),
        (hello(devices=[DeviceInfo(slot="gpu0"), DeviceInfo(slot="gpu0")]), "hello.devices"),
        (hello(devices=[DeviceInfo(slot="gpu0", model="\x1b[31m")]), "hello.devices[gpu0].model"),
        (AgentFrame(heartbeat=Heartbeat()), "hello"),
        (AgentFrame(), "hello"),
    ],
)
def test_a_hello_that_lies_or_is_malformed_is_refused_by_field(frame: AgentFrame, field: str) -> None:
    async def main() -> None:
        async with bench() as b:
            session = await b.open(frame)
            with pytest.raises(LinkRefused, match=field.replace("[", r"\[")):
                await until(session, "welcome")
            assert (await b.reader.range(KEYS.prefix("nodes"))).items == ()

    run_virtual(main())


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        (events(xid(0)), "event.sequence"),
        (events(xid(2)), "event.sequence"),
        (events(xid(1, slot="gpu9")), "event.slot"),
        (events(xid(1, kind=99)), "event.kind"),
        (events(xid(1, age_ms=-1)), "event.age_ms"),
        (hello(), "hello"),
        (AgentFrame(telemetry=Telemetry(rows=2, columns=3, values=b"1234")), "telemetry"),
        (AgentFrame(), "frame"),
    ],
)
def test_malformed_input_ends_its_own_stream_with_the_field_and_nobody_elses(frame: AgentFrame, field: str) -> None:
    async def main() -> None:
        async with bench() as b:
            other = await b.open(hello("n2"), node="n2")
            await until(other, "welcome")
            session = await b.open(hello())
            await until(session, "welcome")
            await session.send(frame)
            with pytest.raises(LinkRefused, match=field):
                while True:
                    await session.receive()
            assert await b.stored() == []
            await other.send(events(xid(1)))
            assert (await until(other, "event_ack")).event_ack.sequence == 1

    run_virtual(main())


def test_telemetry_lands_in_the_table_as_it_was_sent() -> None:
    async def main() -> None:
        async with bench() as b:
            session = await b.open(hello())
            await until(session, "welcome")
            block = np.arange(2 * len(METRICS), dtype="<f4").reshape(2, len(METRICS))
            frame = Telemetry(rows=2, columns=len(METRICS), values=block.tobytes())
            await session.send(AgentFrame(telemetry=frame))
            await b.clock.sleep(50)
            table = b.replicas[0].table
            name = METRICS[3].name
            assert [table.value(d, name) for d in b.replicas[0].ingest.streams["n1"].devices] == list(block[:, 3])  # type: ignore[index]

    run_virtual(main())


def test_a_silent_stream_is_marked_and_unmarked_when_it_speaks() -> None:
    async def main() -> None:
        async with bench() as b:
            session = await b.open(hello())
            await until(session, "welcome")
            assert await b.session_open("n1")
            await b.clock.sleep(SHORT.unreachable_ms * 2)
            assert not await b.session_open("n1")
            await session.send(AgentFrame(heartbeat=Heartbeat()))
            await b.clock.sleep(SHORT.heartbeat_ms * 2)
            assert await b.session_open("n1")

    run_virtual(main())


def test_missing_devices_stay_in_the_inventory_as_missing() -> None:
    async def main() -> None:
        async with bench() as b:
            await until(await b.open(hello()), "welcome")
            fewer = hello(devices=[DeviceInfo(slot="gpu0", uuid="GPU-n1-0", vendor="nvidia")])
            await until(await b.open(fewer), "welcome")
            page = await b.reader.range(KEYS.prefix("devices"))
            present = {d.slot: d.present for d in (codec.decode(DeviceRecord, kv.value) for kv in page.items)}
            assert present == {"gpu0": True, "gpu1": False}

    run_virtual(main())


def test_a_renewal_of_what_nobody_owns_is_answered_and_not_granted() -> None:
    async def main() -> None:
        async with bench() as b:
            session = await b.open(hello())
            await until(session, "welcome")
            item = RenewalItem(job="j", epoch=records_pb2.Epoch(generation=1, number=1))
            await session.send(AgentFrame(renewal=Renewal(id=7, jobs=[item])))
            ack = (await until(session, "renewal_ack")).renewal_ack
            assert (ack.id, list(ack.granted)) == (7, [])

    run_virtual(main())


def test_a_stream_that_is_cancelled_while_it_closes_still_leaves_its_session_closed() -> None:
    """gRPC cancels a handler at any await; a session left open would keep a dead node alive for ever."""

    async def main() -> None:
        async with bench() as b:
            session = await b.open(hello())
            await until(session, "welcome")
            b.cluster.client("a").partition()
            await session.close()
            await b.clock.sleep(20)
            b.network.silence("a")  # cancels whatever the handler is waiting for
            await b.clock.sleep(3_000)
            b.cluster.client("a").heal()
            await b.clock.sleep(3_000)
            assert not await b.session_open("n1")

    run_virtual(main())


def _left_open(replica: str) -> SessionRecord:
    return SessionRecord(NodeId("n1"), ReplicaId(replica), "gone", True, 1)


def test_a_session_that_no_stream_holds_is_closed_by_the_replica_that_it_names() -> None:
    """Left by an earlier process of the same name, or by an agent that vanished before its welcome: open, it would keep
    a dead node alive for ever. Another replica's is none of ours."""

    async def main() -> None:
        async with bench() as b:
            for node, replica in (("n1", "a"), ("n2", "c")):
                record = replace(_left_open(replica), node=NodeId(node))
                await b.reader.txn([], [PutOp(KEYS.session(NodeId(node)), codec.encode(record))])
            await b.clock.sleep(SHORT.unreachable_ms * 2)
            assert not await b.session_open("n1")
            assert await b.session_open("n2")

    run_virtual(main())


def test_an_agent_that_vanishes_before_its_welcome_is_not_alive_for_ever() -> None:
    async def main() -> None:
        async with bench() as b:
            ends: list[str] = []
            link = Vanishing(hello(), ends)
            await b.replicas[0].ingest.serve(link)
            assert ends == ["welcome"]
            await b.clock.sleep(SHORT.unreachable_ms * 2)
            assert not await b.session_open("n1")
            assert NodeId("n1") not in b.replicas[0].ingest.streams

    run_virtual(main())


class Vanishing:
    """A link whose agent says hello and is gone."""

    node, region = "n1", "east"

    def __init__(self, first: AgentFrame, ends: list[str]) -> None:
        self._first = first
        self._ends = ends

    async def receive(self) -> AgentFrame:
        return self._first

    async def send(self, frame: ControlFrame) -> None:
        self._ends.append(str(frame.WhichOneof("frame")))
        raise LinkClosed("gone")

    async def refuse(self, reason: str) -> None:
        self._ends.append(reason)


def test_a_stream_is_over_once_its_node_has_said_hello_to_another_replica() -> None:
    """Its connection may not notice for hours; held on, its rows would go stale and be found silent."""

    async def main() -> None:
        async with bench() as b:
            await until(await b.open(hello(), to="a"), "welcome")
            assert NodeId("n1") in b.replicas[0].ingest.streams
            await until(await b.open(hello(), to="b"), "welcome")
            await b.clock.sleep(SHORT.unreachable_ms)
            assert NodeId("n1") not in b.replicas[0].ingest.streams
            assert NodeId("n1") in b.replicas[1].ingest.streams

    run_virtual(main())


def test_renewals_are_answered_while_events_wait_for_the_region_store() -> None:
    """Renewals rest on the global store. An agent has up to 256 events under way, one a frame if they come singly."""

    async def main() -> None:
        async with bench() as b:
            session = await b.open(hello())
            await until(session, "welcome")
            b.cluster.client("a").partition()
            for sequence in range(1, 257):
                await session.send(events(xid(sequence)))
            await session.send(AgentFrame(renewal=Renewal(id=7)))
            async with asyncio.timeout(SHORT.fence_ms / 1000):
                assert (await until(session, "renewal_ack")).renewal_ack.id == 7
            b.cluster.client("a").heal()
            while (await until(session, "event_ack")).event_ack.sequence < 256:
                pass
            assert len(await b.stored()) == 256

    run_virtual(main())


def test_more_events_than_any_honest_agent_sends_end_the_stream_and_hold_no_memory() -> None:
    async def main() -> None:
        async with bench() as b:
            session = await b.open(hello())
            await until(session, "welcome")
            b.cluster.client("a").partition()
            big = "x" * (1 << 20)
            for sequence in range(1, 10):
                await session.send(events(xid(sequence, message=big)))
            with pytest.raises(LinkRefused, match="events"):
                while True:
                    await session.receive()

    run_virtual(main())


def test_renewals_are_answered_while_a_large_checkpoint_is_verified() -> None:
    """An announcement is repeated each second until it is answered; verifying terabytes takes longer than a minute."""

    async def main() -> None:
        async with bench() as b:
            b.checkpoints[0].slow = asyncio.Event()
            session = await b.open(hello())
            await until(session, "welcome")
            ready = CheckpointReady(job="j", epoch=records_pb2.Epoch(generation=1, number=1), step=1, digest="0" * 64)
            for _ in range(200):
                await session.send(AgentFrame(checkpoint=ready))
            await session.send(AgentFrame(renewal=Renewal(id=7)))
            async with asyncio.timeout(SHORT.fence_ms / 1000):
                assert (await until(session, "renewal_ack")).renewal_ack.id == 7
            b.checkpoints[0].slow.set()
            assert not (await until(session, "checkpoint_ack")).checkpoint_ack.committed

    run_virtual(main())


class SlowToVerify(SimCheckpointStore):
    slow: asyncio.Event | None = None

    async def verify(self, job: JobId, step: int, digest: str) -> Manifest:
        if self.slow:
            await self.slow.wait()
        return await super().verify(job, step, digest)
