"""Protects: what happens is told once, in words, and what is merely repeated is not told."""

from __future__ import annotations

from typing import Any

from gridkeeper.cli.demo_report import drain_lines, migration_lines
from gridkeeper.cli.local.weather import busy_share
from gridkeeper.cli.narrate import Narrator
from gridkeeper.client import Gone, Partial, Put
from gridkeeper.codec import from_message
from gridkeeper.records.faults import DrainRecord
from gridkeeper.records.jobs import MigrationRecord
from gridkeeper.v1 import api_pb2, records_pb2
from gridkeeper.v1.api_pb2 import Object


def device(state: int, reason: str = "because") -> Put:
    health = records_pb2.HealthRecord(device="east-1/gpu3", state=state, before_unknown=1, reason=reason)  # type: ignore[arg-type]
    return Put(Object(kind=api_pb2.KIND_DEVICE, name="east-1/gpu3", device=api_pb2.DeviceView(health=health)))


def test_a_device_is_told_when_it_leaves_health_and_comes_back() -> None:
    tell = Narrator().tell
    assert tell(device(records_pb2.HEALTH_STATE_UNKNOWN)) == ()
    assert tell(device(records_pb2.HEALTH_STATE_HEALTHY)) == ()
    assert tell(device(records_pb2.HEALTH_STATE_DRAINING)) == ("device east-1/gpu3: healthy → draining: because",)
    assert tell(device(records_pb2.HEALTH_STATE_DRAINING, "still")) == ()
    assert tell(device(records_pb2.HEALTH_STATE_HEALTHY)) == ("device east-1/gpu3: draining → healthy: because",)


def test_a_state_of_a_newer_version_is_passed_over() -> None:
    narrator = Narrator()
    assert narrator.tell(device(99)) == ()
    assert narrator.tell(Put(Object(kind=api_pb2.KIND_DEVICE, name="x"))) == ()
    assert narrator.tell(Put(Object(kind=api_pb2.KIND_EVENT, name="x"))) == ()


def test_what_is_gone_is_news_when_it_returns() -> None:
    live = records_pb2.LivenessRecord(node="east-1", state=records_pb2.NODE_STATE_UNREACHABLE, reason="silent for 4 s")
    put = Put(Object(kind=api_pb2.KIND_NODE, name="east-1", node=api_pb2.NodeView(liveness=live)))
    narrator = Narrator()
    assert narrator.tell(put) == ("node east-1 is unreachable: silent for 4 s",)
    assert narrator.tell(put) == ()
    assert narrator.tell(Gone(api_pb2.KIND_NODE, "east-1")) == ()
    assert narrator.tell(put) == ("node east-1 is unreachable: silent for 4 s",)


def test_missing_parts_of_the_view_are_told() -> None:
    narrator = Narrator()
    assert narrator.tell(Partial(("region west does not answer",))) == ("incomplete: region west does not answer",)
    assert narrator.tell(Partial(())) == ("complete again",)


def _migration(**more: Any) -> records_pb2.MigrationRecord:
    fields: dict[str, Any] = {
        "id": "m1",
        "job": "train",
        "kind": records_pb2.MIGRATION_KIND_RECOVERY,
        "state": records_pb2.MIGRATION_STATE_FENCING,
        "reason": "xid 48",
        "source_epoch": records_pb2.Epoch(generation=1, number=1),
        "target_epoch": records_pb2.Epoch(generation=1, number=2),
        "source_node": "east-1",
        "source_region": "east",
        "target_node": "west-1",
        "target_region": "west",
        "rpo_steps": -1,
        "rto_ms": -1,
        "fault_ms": 1_000,
        "stages": [records_pb2.Stamp(name="fencing", at_ms=1_200), records_pb2.Stamp(name="done", at_ms=4_000)],
    }
    return records_pb2.MigrationRecord(**{**fields, **more})


def test_a_migration_is_told_stage_by_stage_with_its_outcome() -> None:
    narrator = Narrator()
    said = []
    for more in (
        {},
        {"state": records_pb2.MIGRATION_STATE_OWNERSHIP_MOVED},
        {"state": records_pb2.MIGRATION_STATE_DONE, "rto_ms": 3_000, "rpo_steps": 4, "rpo_ms": 400},
    ):
        put = Put(Object(kind=api_pb2.KIND_MIGRATION, name="m1", migration=_migration(**more)))
        said += [*narrator.tell(put), *narrator.tell(put)]
    assert said == [
        "recovery of train from east-1 to west-1: fencing",
        "recovery of train from east-1 to west-1: ownership moved",
        "recovery of train from east-1 to west-1: done, RTO 3s, RPO 4 steps (400ms)",
    ]


def test_the_report_dates_stages_from_the_fault_and_says_what_is_unknown() -> None:
    lines = "\n".join(migration_lines([from_message(MigrationRecord, _migration())]))
    assert "RTO unknown, RPO unknown" in lines
    assert "fencing +200ms, done +3s" in lines
    drain = records_pb2.DrainRecord(
        id="d1", device="east-1/gpu0", state=records_pb2.DRAIN_STATE_REFUSED, reason="no budget", budgets=["region"]
    )
    assert "reason: no budget" in "\n".join(drain_lines([from_message(DrainRecord, drain)]))


def test_only_devices_in_use_are_busy() -> None:
    assert all(busy_share(False, index, tick) < 0.1 for index in range(8) for tick in range(50))
    assert all(0.7 < busy_share(True, index, tick) <= 1 for index in range(8) for tick in range(50))
