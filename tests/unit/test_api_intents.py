"""What humans ask for becomes one guarded decision, or a refusal that says why; asking twice changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import grpc
import pytest

from controlplane.domain.health import OUT
from controlplane.rpc import care_intents, drain_intents, intents
from controlplane.rpc.drain_intents import Manner
from controlplane.rpc.intents import Plan, Wish
from controlplane.rpc.refusal import Refusal, near
from gridkeeper.ids import JobId, NodeId
from gridkeeper.keys import KEYS
from gridkeeper.policy.model import DrainPolicy
from gridkeeper.records.faults import DrainMode, IncidentState
from gridkeeper.records.fleet import HealthState
from gridkeeper.records.jobs import JobState
from gridkeeper.snapshot import Settings
from gridkeeper.v1 import api_pb2
from tests.fixtures import records
from tests.fixtures.filled import fleet
from tests.fixtures.grid import FakeGrid

WISH = Wish("user/ann", "by hand", records.TRACE)
NOW = Manner(DrainMode.CHECKPOINT, 0)


def _fleet() -> FakeGrid:
    grid = fleet()
    grid.put(grid.keys.node(NodeId("bare")), records.node("bare", devices=0))
    return grid


def _refused(act: Callable[[], Plan]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(Refusal) as refused:
        act()
    return refused.value.code, str(refused.value)


def test_a_drain_request_holds_only_while_the_device_is_as_it_was_seen() -> None:
    grid = _fleet()
    plan = drain_intents.drain("east-1/gpu0", NOW, WISH, grid.region(), grid.now())
    assert plan.decision is not None
    assert {guard.key for guard in plan.decision.guards} == {grid.keys.device(records.device().id)}
    assert (plan.decision.trace, plan.decision.subject) == (records.TRACE, "device/east-1/gpu0")


@pytest.mark.parametrize("state", sorted(OUT - {HealthState.PROBATION}))
def test_a_device_on_its_way_out_is_not_asked_for_again(state: HealthState) -> None:
    grid = _fleet()
    sick = records.health(state=state)
    grid.put(grid.keys.health(sick.device), sick)
    plan = drain_intents.drain("east-1/gpu0", NOW, WISH, grid.region(), grid.now())
    assert plan.decision is None and state.value in plan.sentence


def test_drains_of_what_is_not_there() -> None:
    grid = _fleet()
    state, now = grid.region(), grid.now()
    assert _refused(lambda: drain_intents.drain("", NOW, WISH, state, now))[1].startswith("target: it is empty")
    assert _refused(lambda: drain_intents.drain("east-2", NOW, WISH, state, now))[0] is grpc.StatusCode.NOT_FOUND
    assert "cordon it instead" in _refused(lambda: drain_intents.drain("bare", NOW, WISH, state, now))[1]


def test_a_resolved_incident_cannot_be_acknowledged() -> None:
    grid = FakeGrid("east")
    over = dataclasses.replace(records.incident(), state=IncidentState.RESOLVED, resolution="cleared")
    grid.put(grid.keys.incident("i1"), over)
    code, message = _refused(lambda: intents.ack_incident("i1", WISH, grid.region()))
    assert code is grpc.StatusCode.FAILED_PRECONDITION and "is resolved already (cleared)" in message


@pytest.mark.parametrize("state", [JobState.STOPPED, JobState.SUCCEEDED, JobState.FAILED])
def test_a_job_that_is_over_is_not_started_again_by_submitting_it(state: JobState) -> None:
    grid = FakeGrid("east")
    grid.put(KEYS.job(JobId("train")), records.job(state=state))
    plan = intents.submit_job(records.spec(), WISH, grid.world(), grid.now())
    assert plan.decision is None and "under another name to run it again" in plan.sentence
    assert intents.stop_job("train", WISH, grid.world()).decision is None


def test_a_job_from_before_there_were_gangs_is_submitted_already() -> None:
    """Protects: scripts that submit the same file again after an upgrade; the old record says 0 nodes where a new spec
    says 1."""
    grid = FakeGrid("east")
    old = records.job()
    grid.put(KEYS.job(JobId("train")), dataclasses.replace(old, spec=dataclasses.replace(old.spec, nodes=0)))
    plan = intents.submit_job(records.spec(), WISH, grid.world(), grid.now())
    assert plan.decision is None and "is submitted already" in plan.sentence


@pytest.mark.parametrize(
    ("reason", "message"), [("x" * 501, "501 characters"), ("a\nb", "line breaks"), ("\x1b[2J", "control")]
)
def test_reasons_are_one_printable_line(reason: str, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        intents.checked_reason(reason)
    assert intents.checked_reason("  ") == "by hand"


def test_names_that_come_near() -> None:
    names = {f"east-{i}/gpu{j}" for i in range(3) for j in range(3)}
    assert near("east-1/gpu", names) and all(name.startswith("east-1/gpu") for name in near("east-1/gpu", names))
    assert near("eats-1/gpu2", {"east-1/gpu2"}) == ["east-1/gpu2"]
    assert near("zzz", names) == []
    assert near("zzz", {str(i) for i in range(100_000)}) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": 9}, "mode: 9 is none"),
        ({"wait_ms": -1}, "wait_ms: -1"),
        ({"wait_ms": 5, "mode": 2}, "only the mode deadline"),
        ({"delay_ms": 1 << 40}, "delay_ms"),
        ({"priority": 1_001}, "priority"),
    ],
)
def test_a_manner_of_draining_that_makes_no_sense_is_refused_by_field(fields: dict[str, int], message: str) -> None:
    with pytest.raises(Refusal, match=message):
        drain_intents.checked_manner(api_pb2.DrainRequest(target="n1", **fields), DrainPolicy())  # type: ignore[arg-type]
    plain = drain_intents.checked_manner(api_pb2.DrainRequest(), DrainPolicy(mode="deadline", wait_ms=7))
    assert plain == Manner(DrainMode.DEADLINE, 7)


def _maintenance(**changes: object) -> api_pb2.MaintenanceRequest:
    values: dict[str, object] = {
        "target": "east-1", "from_ms": records.T0 + 60_000, "until_ms": records.T0 + 120_000, "lead_ms": 30_000
    }  # fmt: skip
    return api_pb2.MaintenanceRequest(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "east-9"}, "node 'east-9' is not"),
        ({"lead_ms": -1}, "lead_ms: -1"),
        ({"from_ms": records.T0 + 400 * 86_400_000}, "within the next year"),
        ({"until_ms": records.T0 + 91 * 86_400_000 + 60_000}, "at most"),
        ({"from_ms": records.T0}, "announced before it begins"),
        ({"until_ms": records.T0 + 60_000}, "not after its begin"),
        ({"id": "nothing"}, "maintenance 'nothing' is not"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused_by_field(changes: dict[str, object], message: str) -> None:
    grid = _fleet()
    with pytest.raises(Refusal, match=message):
        care_intents.plan_maintenance(_maintenance(**changes), WISH, grid.region(), grid.now())


def test_saying_the_same_of_a_window_again_changes_nothing() -> None:
    grid = _fleet()
    plan = care_intents.plan_maintenance(_maintenance(), WISH, grid.region(), grid.now())
    assert plan.decision is not None and plan.objects[1] == "node/east-1"
    grid.local.apply(plan.decision)
    assert care_intents.plan_maintenance(_maintenance(), WISH, grid.region(), grid.now()).decision is None
    name = plan.objects[0].removeprefix("maintenance/")
    moved = _maintenance(id=name, until_ms=records.T0 + 180_000)
    extended = care_intents.plan_maintenance(moved, WISH, grid.region(), grid.now())
    assert extended.decision is not None
    grid.local.apply(extended.decision)
    assert care_intents.plan_maintenance(moved, WISH, grid.region(), grid.now()).decision is None
    off = care_intents.cancel_maintenance(name, WISH, grid.region(), Settings(), grid.now())
    assert off.decision is not None
    grid.local.apply(off.decision)
    again = care_intents.cancel_maintenance(name, WISH, grid.region(), Settings(), grid.now())
    assert again.decision is None and "cancelled already" in again.sentence


def test_a_repair_that_is_not_there_cannot_be_decided_on() -> None:
    grid = _fleet()
    with pytest.raises(Refusal, match="repair 'r9' is not"):
        care_intents.decide_repair("r9", True, WISH, grid.region(), grid.now())
