"""Protects: Slurm's users get no node with a device that is out of service; doubt alone neither takes nor gives one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TypeVar

import pytest

from chaos.simulate.clock import SimClock
from chaos.simulate.loop import run_virtual
from failover.domain.closing import why_closed
from failover.domain.holders import Holders
from failover.domain.leftout import nodes_left_out
from failover.domain.places import Request
from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, JobId, NodeId, Revision
from gridkeeper.keys import RegionKeys
from gridkeeper.ports.gate import GateError
from gridkeeper.ports.store import PutOp
from gridkeeper.records.fleet import CordonReason, CordonRecord, HealthState
from gridkeeper.v1.agent_pb2 import NodeGate
from nodeagent.gatekeeper import AGAIN_MS, RETRY_MS, Gatekeeper
from tests.fixtures import records
from tests.unit.ingestbench import EAST, KEYS, bench, hello, until
from tests.unit.test_placement import place, waiting

R = TypeVar("R")
NODE = NodeId("east-1")
DEVICES = (DeviceId("east-1/gpu0"), DeviceId("east-1/gpu1"))
HEALTHY = dict.fromkeys(DEVICES, HealthState.HEALTHY)
BOB = CordonReason("bob", "new fans", 0, 0)


def held(record: R) -> Versioned[R]:
    return Versioned(record, Revision(1), Revision(1), 0)


def why(states: dict[DeviceId, HealthState], cordoned: str = "", drained: str = "") -> str | None:
    health = {device: held(records.health(device, state)) for device, state in states.items()}
    cordons = {cordoned: held(CordonRecord(cordoned, (BOB,)))} if cordoned else {}
    return why_closed(NODE, DEVICES, cordons, health, {DeviceId(drained)})


@pytest.mark.parametrize("state", HealthState)
def test_one_device_out_of_service_closes_its_whole_node(state: HealthState) -> None:
    closed = why({**HEALTHY, DEVICES[1]: state})
    if state in (HealthState.HEALTHY, HealthState.SUSPECT):
        assert closed == ""
    elif state is HealthState.UNKNOWN:
        assert closed is None
    else:
        assert closed == f"east-1/gpu1 is {state.value}"


def test_cordons_and_drains_close_it_and_say_so() -> None:
    assert why(HEALTHY, cordoned="east-1") == "east-1 is cordoned (bob: new fans)"
    assert why(HEALTHY, cordoned="east-1/gpu1") == "east-1/gpu1 is cordoned (bob: new fans)"
    assert why(HEALTHY, drained="east-1/gpu0") == "east-1/gpu0 is being taken out of service"


def test_a_device_without_a_record_leaves_it_as_it_is_but_evidence_on_another_closes() -> None:
    assert why({DEVICES[0]: HealthState.HEALTHY}) is None
    assert why({DEVICES[1]: HealthState.DRAINED}) == "east-1/gpu1 is drained"


def test_nothing_is_placed_on_a_node_that_its_batch_system_keeps_closed() -> None:
    """Else its start would wait there for a repair, while another node is free."""
    for scheduler, expected in (("", ("east-1/gpu0", "east-1/gpu1")), ("slurm", ())):
        grid = waiting({"east": {"east-1": 3}})
        key = RegionKeys(EAST).node(NODE)
        grid.memory.put(key, replace(grid.memory.record(key), scheduler=scheduler))
        grid.set_health(DeviceId("east-1/gpu2"), HealthState.DRAINED)
        assert place(grid) == expected
    view = grid.leaders["east"]
    view.look(grid.time_ms)
    [left] = nodes_left_out(view.region(EAST), Request(JobId("train"), 2), Holders())
    assert "2 closed to slurm, because east-1/gpu2 is drained" in left.refused


class Gate:
    """``HostGate``: keeps what it was told. ``fails``: how often it does not answer."""

    title = "Slurm"

    def __init__(self) -> None:
        self.told: list[str] = []
        self.fails = 0

    async def close(self, reason: str) -> str:
        return self._take(reason)

    async def open(self) -> str:
        return self._take("open")

    def _take(self, what: str) -> str:
        if self.fails:
            self.fails -= 1
            raise GateError("slurmctld does not answer")
        self.told.append(what)
        return what


def test_the_gate_is_left_alone_until_a_wish_is_heard_and_then_kept() -> None:
    async def main() -> None:
        clock, gate = SimClock(asyncio.get_running_loop()), Gate()
        keeper = Gatekeeper(gate, clock)
        running = asyncio.ensure_future(keeper.run())
        await clock.sleep(3 * AGAIN_MS)
        assert gate.told == [], "an agent that has heard nothing opens and closes nothing"
        gate.fails = 1
        keeper.take(NodeGate(closed=True, reason="gpu0 is drained"))
        await clock.sleep(RETRY_MS - 1_000)
        assert gate.told == []
        await clock.sleep(2_000)
        assert gate.told == ["gpu0 is drained"], "what was not answered is tried again"
        await clock.sleep(AGAIN_MS)
        assert gate.told == ["gpu0 is drained"] * 2, "who opens it by hand finds it closed again"
        keeper.take(NodeGate())
        await clock.sleep(1_000)
        assert gate.told[2:] == ["open"]
        running.cancel()

    run_virtual(main())


def test_an_agent_in_a_batch_system_is_told_what_its_node_is_worth_and_others_are_not() -> None:
    async def main() -> None:
        async with bench() as b:
            mine, other = await b.open(hello(scheduler="slurm")), await b.open(hello("n2"), node="n2")
            await until(mine, "welcome")
            await until(other, "welcome")
            assert not (await until(mine, "node_gate")).node_gate.closed
            cordon = CordonRecord("n1", (BOB,))
            await b.reader.txn([], [PutOp(KEYS.cordon("n1"), codec.encode(cordon))])
            closed = (await until(mine, "node_gate")).node_gate
            assert (closed.closed, closed.reason) == (True, "n1 is cordoned (bob: new fans)")
            await b.reader.txn([], [PutOp(KEYS.cordon("n2"), codec.encode(replace(cordon, target="n2")))])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(5):
                    await until(other, "node_gate")

    run_virtual(main())
