"""A stream into a replica, frame by frame: what is acknowledged is durable, exactly once, and bad input ends only the
stream that it came on."""

from __future__ import annotations

import numpy as np
import pytest

from chaos.simulate.loop import run_virtual
from gridkeeper import codec
from gridkeeper.ports.link import LinkClosed, LinkRefused
from gridkeeper.records.fleet import DeviceRecord
from gridkeeper.telemetry import METRICS
from gridkeeper.timings import SHORT
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import (
    AgentFrame,
    DeviceInfo,
    Heartbeat,
    Renewal,
    RenewalItem,
    Telemetry,
)
from tests.unit.ingestbench import KEYS, bench, events, hello, until, xid


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
