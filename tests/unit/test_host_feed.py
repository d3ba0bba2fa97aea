"""What a replica owes hosts that repair, and desks that take tickets: told until answered, written down once."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.loop import run_virtual
from chaos.simulate.store import SimCluster
from controlplane.shell.apply import Applier, Fence
from controlplane.shell.ledgertime import LedgerTime
from controlplane.shell.mirror import Mirror
from controlplane.shell.tickets import Tickets
from gridkeeper import codec
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.keys import region_root
from gridkeeper.policy.model import Policy, RepairPolicy
from gridkeeper.ports.store import PutOp, Store
from gridkeeper.ports.tickets import TicketRefused, TicketUnavailable
from gridkeeper.records.care import RepairKind, RepairRecord, RepairState
from gridkeeper.records.common import Stamp
from gridkeeper.records.faults import LeaderRecord
from gridkeeper.snapshot import Settings
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import AgentFrame, HostReport
from tests.fixtures import records
from tests.unit.ingestbench import EAST, KEYS, bench, hello, until

DONE = records_pb2.REPAIR_STATE_DONE
AHEAD_MS = 3_600_000
"""How far ledger time, in which the leader dates repairs, is ahead of this replica's wall clock."""


def under_way(now_ms: int) -> RepairRecord:
    stages = (Stamp("running", now_ms),)
    base = replace(records.repair(RepairState.RUNNING), node=NodeId("n1"), device=DeviceId("n1/gpu0"))
    return replace(base, deadline_ms=now_ms + 600_000, stages=stages)


async def stored(reader: Store, name: str) -> RepairRecord:
    kv, _ = await reader.get(KEYS.repair(name))
    assert kv is not None
    return codec.decode(RepairRecord, kv.value)


def test_a_host_is_told_until_it_has_answered_and_only_its_own_answer_counts() -> None:
    async def main() -> None:
        async with bench() as b:
            mine, other = await b.open(hello()), await b.open(hello("n2"), node="n2")
            await until(mine, "welcome")
            await until(other, "welcome")
            record = under_way(b.clock.wall_ms() + AHEAD_MS)
            await b.reader.txn([], [PutOp(KEYS.repair(record.id), codec.encode(record))])
            first = (await until(mine, "host_command")).host_command
            assert (first.id, first.slot, first.timeout_ms) == (record.id, "gpu0", 600_000) and first.term > 0
            assert (await until(mine, "host_command")).host_command == first, "and again, until it has answered"
            await other.send(AgentFrame(host=HostReport(id=record.id, state=DONE, detail="I am another")))
            await mine.send(AgentFrame(host=HostReport(id="unheard of", state=DONE)))
            await b.clock.sleep(3_000)
            assert (await stored(b.reader, record.id)).state is RepairState.RUNNING
            await mine.send(AgentFrame(host=HostReport(id=record.id, state=DONE, detail="reset\x1b[2J")))
            await b.clock.sleep(3_000)
            ended = await stored(b.reader, record.id)
            assert 4_000 <= ended.stages[-1].at_ms - record.stages[-1].at_ms <= 6_000, "dated as the leader counts time"
            assert ended.state is RepairState.DONE and ended.result == "reset [2J", "control characters go nowhere"
            await mine.send(AgentFrame(host=HostReport(id=record.id, state=records_pb2.REPAIR_STATE_FAILED)))
            await b.clock.sleep(3_000)
            assert await stored(b.reader, record.id) == ended, "an answer is written once"

    run_virtual(main())


class Desk:
    """Says what it is told to say, and keeps what it was told."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.keys: list[str] = []
        self.bodies: list[bytes] = []

    async def open_ticket(self, url: str, key: str, body: bytes) -> str:
        assert url == "https://desk.example/t"
        self.keys.append(key)
        self.bodies.append(body)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("desk", "state", "asked", "result"),
    [
        (Desk("T-7"), RepairState.DONE, 1, "ticket T-7 is open"),
        (Desk(TicketUnavailable("away"), TicketUnavailable("away"), ""), RepairState.DONE, 3, "the ticket is open"),
        (Desk(TicketRefused("answers 422")), RepairState.FAILED, 1, "answers 422"),
        (Desk(TicketUnavailable("away")), RepairState.FAILED, 6, "away"),
    ],
)
def test_a_ticket_is_asked_for_until_the_desk_has_answered_always_under_one_key(
    desk: Desk, state: RepairState, asked: int, result: str
) -> None:
    async def main() -> None:
        clock = SimClock(asyncio.get_running_loop())
        cluster = SimCluster(clock, SimRng(1))
        store = cluster.client("a")
        mirror = Mirror(store, region_root(EAST), clock)
        applier = Applier(store, mirror, KEYS.audit, SimRng(2), clock.wall_ms)
        running = [asyncio.ensure_future(mirror.run())]
        leader = codec.encode(LeaderRecord("a", "a", 0))  # type: ignore[arg-type]
        term = (await store.txn([], [PutOp(KEYS.leader, leader)])).revision
        time = LedgerTime(clock, clock.wall_ms() + AHEAD_MS)
        stamp = Stamp("approved", time.now().ledger_ms)
        record = replace(
            records.repair(RepairState.APPROVED), kind=RepairKind.TICKET, command="https://desk.example/t",
            stages=(stamp,),
        )  # fmt: skip
        await store.txn([], [PutOp(KEYS.repair(record.id), codec.encode(record))])
        await mirror.wait_loaded()
        settings = Settings(policy=Policy(repair=RepairPolicy(timeout_ms=30_000)))
        fence = Fence(KEYS.leader, term)
        tickets = Tickets(EAST, fence, "machine/a", mirror, applier, desk, lambda: settings, clock, time)
        running.append(asyncio.ensure_future(tickets.run()))
        await clock.sleep(120_000)
        ended = await stored(store, record.id)
        assert 0 <= ended.stages[-1].at_ms - stamp.at_ms <= 60_000, "dated in the ledger time of the leader"
        assert (ended.state, len(desk.keys)) == (state, asked) and result in ended.result
        assert set(desk.keys) == {record.id} and json.loads(desk.bodies[0])["reason"] == record.reason
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await cluster.close()

    run_virtual(main())
