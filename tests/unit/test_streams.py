"""What a replica owes its streams: answers in time, no conclusion from a view that lags, and an end that is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from chaos.simulate.loop import run_virtual
from chaos.simulate.network import SimAgentSession
from controlplane.shell.runs import run_record
from gridkeeper import codec
from gridkeeper.ids import NodeId, ReplicaId
from gridkeeper.ports.link import LinkClosed, LinkRefused, parts
from gridkeeper.ports.store import PutOp
from gridkeeper.records.fleet import SessionRecord
from gridkeeper.timings import SHORT
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import (
    AgentFrame,
    CheckpointReady,
    Command,
    ControlFrame,
    Renewal,
    Workload,
    WorkloadReport,
)
from tests.unit.ingestbench import EAST, KEYS, Bench, bench, events, hello, until, xid


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


def test_a_stream_that_falls_silent_is_marked_with_how_long_nothing_was_heard() -> None:
    """The leader dates the silence by it: from it the time to recover is counted."""

    async def main() -> None:
        async with bench() as b:
            await until(await b.open(hello()), "welcome")
            await b.clock.sleep(SHORT.unreachable_ms)
            kv, _ = await b.reader.get(KEYS.session(NodeId("n1")))
            assert kv is not None
            record = codec.decode(SessionRecord, kv.value)
            assert not record.open
            assert 3 * SHORT.heartbeat_ms <= record.silent_ms < SHORT.unreachable_ms

    run_virtual(main())


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
            await b.own("j", 1)
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


def _report(number: int) -> AgentFrame:
    workload = Workload(
        job="j", epoch=records_pb2.Epoch(generation=1, number=number), phase=records_pb2.RUN_PHASE_RUNNING
    )
    return AgentFrame(workloads=WorkloadReport(workloads=[workload]))


async def _told(b: Bench, session: SimAgentSession, said: AgentFrame) -> list[Command]:
    """What an agent that goes on saying that is told, in three messages that tell it to do something."""
    commands: list[Command] = []
    for _ in range(3):
        told: list[Command] = []
        while not told:
            await session.send(AgentFrame(renewal=Renewal(id=b.clock.mono_ms()), more=[said]))
            await b.clock.sleep(SHORT.renewal_ms)
            frames = parts(await session.receive())
            told = [frame.command for frame in frames if frame.WhichOneof("frame") == "command"]
        commands += told
    return commands


def test_a_replica_that_lags_does_not_stop_an_epoch_that_it_has_not_heard_of() -> None:
    """The agent got its order from another replica. A stop is final for its epoch; an older epoch is stopped."""

    async def main() -> None:
        async with bench() as b:
            await b.own("j", 2)
            session = await b.open(hello())
            await until(session, "welcome")
            while b.replicas[0].world.one("leader") is None:
                await b.clock.sleep(100)
            seen = await _told(b, session, _report(3))
            assert {(c.epoch.number, c.desired) for c in seen} == {(2, records_pb2.DESIRED_RUN)}
            seen = await _told(b, session, _report(1))
            assert (1, records_pb2.DESIRED_STOP) in {(c.epoch.number, c.desired) for c in seen}

    run_virtual(main())


def test_a_checkpoint_of_an_epoch_that_a_lagging_replica_has_not_heard_of_is_not_refused() -> None:
    """A refusal is final: the last checkpoint before a move would be lost. Unanswered, it is announced again."""

    async def main() -> None:
        async with bench() as b:
            await b.own("j", 1)
            session = await b.open(hello())
            await until(session, "welcome")
            for number in (2, 1):
                epoch = records_pb2.Epoch(generation=1, number=number)
                await session.send(
                    AgentFrame(checkpoint=CheckpointReady(job="j", epoch=epoch, step=1, digest="0" * 64))
                )
            ack = (await until(session, "checkpoint_ack")).checkpoint_ack
            assert ack.epoch.number == 1, "the other one is not answered yet"

    run_virtual(main())


def test_a_hostile_age_of_a_run_makes_a_date_that_can_be_shown() -> None:
    workload = Workload(job="j", epoch=records_pb2.Epoch(generation=1, number=1), phase=records_pb2.RUN_PHASE_EXITED)
    workload.started_age_ms = workload.ended_age_ms = (1 << 63) - 1
    run = run_record(workload, None, EAST, NodeId("n1"), 1_700_000_000_000)
    assert min(run.started_ms, 1) > 0


@pytest.mark.parametrize("which", ["node", "session", "cursor", "device"])
def test_a_record_that_does_not_decode_does_not_keep_its_node_out_nor_lose_or_double_events(which: str) -> None:
    async def main() -> None:
        async with bench() as b:
            session = await b.open(hello())
            await until(session, "welcome")
            await session.send(events(xid(1), xid(2)))
            while (await until(session, "event_ack")).event_ack.sequence < 2:
                pass
            await session.close()
            name = "n1/gpu1" if which == "device" else "n1"
            await b.reader.txn([], [PutOp(f"{KEYS.prefix(which + 's')}{name}", b"\xff\xff")])
            session = await b.open(hello(), to="b")
            assert (await until(session, "welcome")).welcome.acked_sequence == 2
            await session.send(events(xid(3)))
            while (await until(session, "event_ack")).event_ack.sequence < 3:
                pass
            assert [e.sequence for e in await b.stored()] == [1, 2, 3]

    run_virtual(main())
