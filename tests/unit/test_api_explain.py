"""``explain`` tells one story: everything that led to an object, nothing of other stories, oldest first."""

from __future__ import annotations

import dataclasses

from controlplane.rpc.explain import chain, duration
from controlplane.rpc.thread import thread_of
from gridkeeper.ids import IncidentId, JobId, MigrationId, NodeId
from gridkeeper.keys import KEYS
from gridkeeper.records.books import EntryRecord, UptimeClass
from gridkeeper.records.fleet import HealthState
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
    assert thread_of(api_pb2.KIND_REGION, "east", grid.region(), grid.world()) is None


def test_durations_read_well() -> None:
    assert [duration(ms) for ms in (850, 12_340, 245_000, 7_380_000)] == ["850 ms", "12.3 s", "4 min 5 s", "2 h 3 min"]
