"""``explain`` tells one story: everything that led to an object, nothing of other stories, oldest first."""

from __future__ import annotations

import dataclasses

import pytest

from controlplane.rpc.explain import chain, duration
from controlplane.rpc.grid import GridService
from controlplane.rpc.refusal import Refusal
from controlplane.rpc.thread import thread_of
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.ids import DeviceId, IncidentId, JobId, MigrationId, NodeId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.records.books import AuditRecord, EntryRecord, UptimeClass
from gridkeeper.records.faults import BudgetHold, BudgetRecord, Confidence, DrainCost, DrainMode, HoldKind, JobCost
from gridkeeper.records.fleet import HealthState
from gridkeeper.records.limits import BreakerRecord, BreakerState
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Link
from tests.fixtures import records
from tests.fixtures.grid import FakeGrid

EVENT = records.event()


def _story() -> FakeGrid:
    """XID 48 on gpu0 moved job train; another incident on gpu1 has nothing to do with it."""
    grid = FakeGrid("east")
    grid.put(grid.keys.node(NodeId("east-1")), records.node())
    for name in ("east-1/gpu0", "east-1/gpu1"):
        grid.put(grid.keys.device(records.device(name).id), records.device(name))
    health = records.health(state=HealthState.DRAINING, incident="i1", drain="d1", evidence="f1", reason="XID 48")
    grid.put(grid.keys.health(health.device), health)
    grid.put(grid.keys.event(EVENT.id), EVENT)
    grid.put(grid.keys.finding("f1"), records.finding(evidence=(EVENT.id,)))
    grid.put(grid.keys.incident("i1"), records.incident(findings=("f1",), drain="d1"))
    grid.put(grid.keys.drain("d1"), records.drain(evidence=(EVENT.id,)))
    grid.put(grid.keys.account("device/east-1/gpu0"), records.account())
    grid.put(KEYS.job(JobId("train")), records.job())
    grid.put(KEYS.migration(MigrationId("m1")), records.migration())
    other = dataclasses.replace(records.incident("i2", "east-1/gpu1"), trace="")
    grid.put(grid.keys.incident("i2"), other)
    grid.put(grid.keys.finding("f2"), records.finding("f2", "east-1/gpu1"))
    return grid


def _chain(grid: FakeGrid, kind: int, name: str, entries: tuple[EntryRecord, ...] = ()) -> tuple[Link, ...]:
    thread = thread_of(kind, name, grid.region(), grid.world())
    assert thread is not None
    return chain(thread, grid.region(), grid.world(), entries)


def test_the_path_of_one_fault_oldest_first() -> None:
    links = _chain(_story(), api_pb2.KIND_INCIDENT, "i1")
    assert [link.at_ms for link in links] == sorted(link.at_ms for link in links)
    steps = list(dict.fromkeys(link.step for link in links))
    assert steps == [
        "backend.events",
        "detect.classify",
        "health.step",
        "incident.open",
        "budget.reserve",
        "drain.plan",
        "sla.fold",
        "drain.evacuating",
        "migrate.plan",
        "place.reserve",
        "executor.stop",
        "verify.manifest",
        "fence.bump_epoch",
        "executor.start",
        "migrate.confirm",
    ]
    said = " | ".join(link.sentence for link in links)
    assert "nvml and kmsg saw xid 48 on east-1/gpu0, 2 sightings" in said
    assert "budgets: region, rack-r1" in said
    assert "RTO 9.0 s, RPO 2 steps, 1.5 s" in said


def test_every_object_of_the_story_tells_the_same_story() -> None:
    grid = _story()
    whole = _chain(grid, api_pb2.KIND_INCIDENT, "i1")
    for kind, name in (
        (api_pb2.KIND_EVENT, EVENT.id),
        (api_pb2.KIND_FINDING, "f1"),
        (api_pb2.KIND_DRAIN, "d1"),
        (api_pb2.KIND_DEVICE, "east-1/gpu0"),
        (api_pb2.KIND_MIGRATION, "m1"),
        (api_pb2.KIND_JOB, "train"),
    ):
        assert _chain(grid, kind, name) == whole, name


def test_another_fault_is_not_part_of_it() -> None:
    links = _chain(_story(), api_pb2.KIND_DEVICE, "east-1/gpu0")
    assert {link.object for link in links}.isdisjoint({"incident/i2", "finding/f2", "device/east-1/gpu1"})


def test_a_move_is_not_explained_by_the_other_jobs_of_its_drain() -> None:
    grid = _story()
    grid.put(KEYS.job(JobId("other")), records.job("other"))
    grid.put(KEYS.migration(MigrationId("m2")), records.migration("m2", job="other"))
    assert "migration/m2" not in {link.object for link in _chain(grid, api_pb2.KIND_JOB, "train")}
    assert "migration/m2" in {link.object for link in _chain(grid, api_pb2.KIND_DRAIN, "d1")}


def test_a_migration_of_a_fault_in_another_region_is_explained_as_far_as_known_here() -> None:
    grid = FakeGrid("west")
    grid.put(KEYS.job(JobId("train")), records.job())
    grid.put(KEYS.migration(MigrationId("m1")), records.migration())
    links = _chain(grid, api_pb2.KIND_MIGRATION, "m1")
    assert {link.object for link in links} == {"migration/m1"}


def test_only_ledger_entries_that_cite_the_story_are_told() -> None:
    cites = EntryRecord("job/train", 1, "2026-11", records.T0, records.T0 + 9_000, UptimeClass.DOWN, "moved", ("m1",))
    silent = dataclasses.replace(cites, sequence=2, refs=("m9",), reason="another move")
    links = _chain(_story(), api_pb2.KIND_INCIDENT, "i1", (cites, silent))
    booked = [link for link in links if link.step == "ledger.append"]
    assert [link.sentence for link in booked] == ["job/train was down for 9.0 s: moved"]


def test_a_healthy_device_explains_its_state_by_its_last_incident_or_alone() -> None:
    grid = _story()
    fresh = records.device("east-1/gpu2")
    grid.put(grid.keys.device(fresh.id), fresh)
    grid.put(grid.keys.health(fresh.id), records.health(fresh.id))
    assert [link.step for link in _chain(grid, api_pb2.KIND_DEVICE, fresh.id)] == ["health.step"]


def test_records_that_are_gone_are_left_out_and_break_nothing() -> None:
    grid = _story()
    grid.delete(grid.keys.event(EVENT.id))
    grid.delete(grid.keys.finding("f1"))
    grid.delete(grid.keys.incident(IncidentId("i1")))
    assert next(link.object for link in _chain(grid, api_pb2.KIND_DRAIN, "d1")) == "device/east-1/gpu0"


def test_what_has_no_story_has_none() -> None:
    grid = _story()
    assert thread_of(api_pb2.KIND_INCIDENT, "nope", grid.region(), grid.world()) is None
    assert thread_of(api_pb2.KIND_REGION, "west", grid.region(), grid.world()) is None
    for name in ("train/41", "train", "train/x", "other/40", f"train/{'9' * 30}"):
        assert thread_of(api_pb2.KIND_CHECKPOINT, name, grid.region(), grid.world()) is None
    assert thread_of(api_pb2.KIND_SLA, "device/none/gpu0", grid.region(), grid.world()) is None


def test_a_drain_names_evidence_policy_limits_and_cost() -> None:
    """Protects: whoever has to answer for a drain finds in one place what it rested on and what it would cost."""
    grid = _story()
    cost = DrainCost((JobCost(JobId("train"), 1, 44, 40, 90_000, RegionId("west")),), 14, 16, ("rack-r1 1/4",))
    drain = dataclasses.replace(
        records.drain(evidence=(EVENT.id,)), cost=cost, policy_version=7, mode=DrainMode.DEADLINE, priority=2,
        budgets=("region", "breaker-rack-r1"),
    )  # fmt: skip
    grid.put(grid.keys.drain("d1"), drain)
    breaker = BreakerRecord("rack-r1", BreakerState.HALF_OPEN, records.T0, "16 drains in 10 min", (), (), 1)
    grid.put(grid.keys.breaker("rack-r1"), breaker)
    finding = dataclasses.replace(
        records.finding(evidence=(EVENT.id, "clock_sm=1155", "median=1980")), source="NVIDIA r595, 2026-03",
        confidence=Confidence.MEDIUM, count=3, shadow=True,
    )  # fmt: skip
    grid.put(grid.keys.finding("f1"), finding)
    said = {link.step: link.sentence for link in _chain(grid, api_pb2.KIND_DRAIN, "d1")}
    assert "before it was sent" in said["backend.events"]
    assert said["fleet.sample"] == "clock_sm=1155, median=1980"
    assert "3 sightings" in said["detect.classify"] and "(only watched: nothing acts on it)" in said["detect.classify"]
    assert "by NVIDIA r595, 2026-03, confidence medium]" in said["detect.classify"]
    assert (
        f"(mode deadline; policy v7; evidence 20 ms old: {EVENT.id}; store revision 10; priority 2)"
        in said["drain.plan"]
    )
    assert said["drain.cost"] == (
        "it costs: train (1 devices, step 44, checkpoint of step 40, 1 min 30 s old, would go to west); 14 of 16 "
        "devices stay usable; budgets after it: rack-r1 1/4"
    )
    assert said["breaker.state"] == "breaker rack-r1 is half open: 16 drains in 10 min"


def test_a_region_is_explained_by_what_is_out_and_what_is_open() -> None:
    grid = _story()
    grid.put(KEYS.region(RegionId("east")), records.region())
    hold = BudgetHold(DeviceId("east-1/gpu0"), HoldKind.DRAIN, "d1")
    grid.put(grid.keys.budget("region"), BudgetRecord("region", (hold, hold), 4, 16))
    links = _chain(grid, api_pb2.KIND_REGION, "east")
    said = " | ".join(link.sentence for link in links)
    assert "2 of 2 nodes alive, 15 of 16 devices usable, 8 free, led by east-a" in said
    assert "budget region: 1 of 4 out (east-1/gpu0)" in said
    assert {"incident/i1", "incident/i2", "drain/d1"} <= {link.object for link in links}


def test_a_checkpoint_is_explained_by_who_wrote_it_and_who_resumed_from_it() -> None:
    grid = _story()
    grid.put(KEYS.checkpoint(JobId("train"), 40), dataclasses.replace(records.checkpoint(), suspect=True))
    grid.put(KEYS.head(JobId("train")), records.head())
    resumed = dataclasses.replace(records.migration(), resume_step=40)
    grid.put(KEYS.migration(MigrationId("m1")), resumed)
    links = _chain(grid, api_pb2.KIND_CHECKPOINT, "train/40")
    assert [(link.step, link.object) for link in links] == [
        ("replicate", "checkpoint/train/40"),
        ("verify.manifest", "checkpoint/train/40"),
        ("migrate.plan", "migration/m1"),
    ]
    assert "suspect" in links[1].sentence and "committed by epoch 1.1" in links[1].sentence
    moves = _chain(grid, api_pb2.KIND_MIGRATION, "m1")
    said = next(link.sentence for link in moves if link.step == "verify.manifest")
    assert ": step 40, committed by epoch 1.1 " in said, "a move names what it resumes from"


def test_an_account_tells_all_that_is_booked_on_it_and_what_holds_now() -> None:
    grid = _story()
    scope = "device/east-1/gpu0"
    grid.put(grid.keys.account(scope), dataclasses.replace(records.account(), refs=("i1",)))
    entry = EntryRecord(scope, 1, "2026-11", records.T0, records.T0 + 9_000, UptimeClass.UP, "in service", ())
    links = _chain(grid, api_pb2.KIND_SLA, scope, (entry,))
    assert {"ledger.append", "sla.fold", "incident.open", "detect.classify", "backend.events"} <= {
        link.step for link in links
    }


async def test_an_audit_entry_is_explained_by_its_object_and_its_evidence() -> None:
    grid = _story()
    entry = AuditRecord(
        "0001", records.T0 + 5, "machine/east-1", "drain.plan", "drain/d1", "gpu0 is drained", "applied", 9,
        ("f1",), records.TRACE,
    )  # fmt: skip
    grid.put(grid.keys.audit("0001"), entry)
    service = GridService(grid, grid, SystemClock(), SystemRng())
    answer = await service.explain(api_pb2.GetRequest(kind=api_pb2.KIND_AUDIT, name="0001"))
    assert {"audit/0001", "drain/d1", "finding/f1", f"event/{EVENT.id}"} <= {link.object for link in answer.chain}
    said = next(link.sentence for link in answer.chain if link.step == "audit")
    assert said == ("machine/east-1 applied drain.plan on drain/d1: gpu0 is drained; evidence: f1 (store revision 9)")
    with pytest.raises(Refusal, match="audit 'nope' is not in the trail"):
        await service.explain(api_pb2.GetRequest(kind=api_pb2.KIND_AUDIT, name="nope"))


def test_durations_read_well() -> None:
    assert [duration(ms) for ms in (850, 12_340, 245_000, 7_380_000)] == ["850 ms", "12.3 s", "4 min 5 s", "2 h 3 min"]
