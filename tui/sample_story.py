"""The sample night's story: the incident, what the machine did about it, and the evidence."""

from __future__ import annotations

from gridkeeper.v1 import api_pb2
from gridkeeper.v1 import records_pb2 as pb
from gridkeeper.v1.api_pb2 import Link, Object

NOW_MS = 1_795_485_465_120  # 2026-11-24 01:57:45 UTC
MINUTE = 60_000
HOUR = 60 * MINUTE

HOT = "b2-n1/gpu5"
INCIDENT_ID = "inc-20261124-0154-b2-n1-gpu5-memory"
DRAIN_ID = "drain-b2-n1-gpu5-1"


def objects() -> list[Object]:
    """Incidents, drains, migrations, events and findings."""
    return [*_incidents(), _drain(), *_moves(), *_events(), *_findings()]


def _stamps(start_ms: int, *steps: tuple[str, int]) -> list[pb.Stamp]:
    return [pb.Stamp(name=name, at_ms=start_ms + after) for name, after in steps]


def incident_object(name: str, **fields: object) -> Object:
    """An incident of region ``east`` unless ``region`` is given."""
    record = pb.IncidentRecord(id=name, **{"region": "east", **fields})  # type: ignore[arg-type]
    labels = {"region": record.region, "subject": record.subject}
    return Object(
        kind=api_pb2.KIND_INCIDENT, name=name, region=record.region, revision=20, labels=labels, incident=record
    )


def _incidents() -> list[Object]:
    fault = NOW_MS - 3 * MINUTE
    return [
        incident_object(
            INCIDENT_ID,
            subject=HOT,
            fault_class="memory",
            state=pb.INCIDENT_STATE_OPEN,
            severity=pb.SEVERITY_FATAL,
            title="Double-bit memory error (XID 48), contained (94)",
            opened_ms=fault + 400,
            observed_ms=fault,
            last_ms=fault + 900,
            count=3,
            findings=["fi-xid48-b2-n1-gpu5"],
            drain=DRAIN_ID,
        ),
        incident_object(
            "inc-20261124-0156-b2-n3-silence",
            subject="b2-n3",
            fault_class="silence",
            state=pb.INCIDENT_STATE_ACKNOWLEDGED,
            severity=pb.SEVERITY_ERROR,
            title="Node silent for 1m 10s",
            opened_ms=NOW_MS - 60_000,
            observed_ms=NOW_MS - 70_000,
            last_ms=NOW_MS - 2_000,
            count=1,
            acknowledged_by="mara",
        ),
        incident_object(
            "inc-20261124-0121-a1-n3-gpu2-memory",
            subject="a1-n3/gpu2",
            fault_class="memory",
            state=pb.INCIDENT_STATE_OPEN,
            severity=pb.SEVERITY_WARNING,
            title="Corrected memory errors above 100 per hour",
            opened_ms=NOW_MS - 36 * MINUTE,
            observed_ms=NOW_MS - 37 * MINUTE,
            last_ms=NOW_MS - 40_000,
            count=126,
        ),
        incident_object(
            "inc-20261123-2112-k2-n1-gpu0-bus",
            region="west",
            subject="k2-n1/gpu0",
            fault_class="bus",
            state=pb.INCIDENT_STATE_RESOLVED,
            severity=pb.SEVERITY_FATAL,
            title="GPU has fallen off the bus (XID 79)",
            opened_ms=NOW_MS - 5 * HOUR,
            observed_ms=NOW_MS - 5 * HOUR,
            last_ms=NOW_MS - 5 * HOUR,
            count=1,
            resolved_ms=NOW_MS - 14 * MINUTE,
            resolution="card replaced, self-test passed",
        ),
    ]


def _drain() -> Object:
    fault = NOW_MS - 3 * MINUTE
    record = pb.DrainRecord(
        id=DRAIN_ID,
        region="east",
        node="b2-n1",
        device=HOT,
        incident=INCIDENT_ID,
        state=pb.DRAIN_STATE_DRAINED,
        reason="xid-48 v1: double-bit memory error on b2-n1/gpu5, evidence ev-b2-n1-118 0.4 s old",
        evidence=["ev-b2-n1-118", "ev-b2-n1-119"],
        evidence_age_ms=400,
        decided_revision=88_121,
        rule="xid-48",
        rule_version=1,
        budgets=["region", "rack-b2", "vendor-nvidia"],
        jobs=["llm-7b-cont"],
        requested_by="machine",
        planned_ms=fault + 450,
        deadline_ms=fault + 600_000,
        stages=_stamps(fault, ("planned", 450), ("admitted", 470), ("evacuating", 700), ("drained", 5_310)),
    )
    labels = {"region": "east", "node": "b2-n1", "device": HOT, "state": "drained", "incident": INCIDENT_ID}
    return Object(kind=api_pb2.KIND_DRAIN, name=DRAIN_ID, region="east", revision=21, labels=labels, drain=record)


def _moves() -> list[Object]:
    fault = NOW_MS - 3 * MINUTE
    done = pb.MigrationRecord(
        id="mig-llm-7b-cont-7",
        job="llm-7b-cont",
        kind=pb.MIGRATION_KIND_RECOVERY,
        state=pb.MIGRATION_STATE_DONE,
        reason="its device b2-n1/gpu5 is being drained",
        requested_by="machine",
        drain=DRAIN_ID,
        incident=INCIDENT_ID,
        source_epoch=pb.Epoch(generation=1, number=6),
        source_region="east",
        source_node="b2-n1",
        target_region="west",
        target_node="k1-n3",
        target_devices=[f"k1-n3/gpu{i}" for i in range(8)],
        target_epoch=pb.Epoch(generation=1, number=7),
        attempt=1,
        resume_step=48_200,
        last_source_step=48_207,
        fault_ms=fault,
        requested_ms=fault + 500,
        rpo_steps=7,
        rpo_ms=8_900,
        rto_ms=21_400,
        stages=_stamps(
            fault,
            ("planned", 500),
            ("fencing", 900),
            ("source_fenced", 4_700),
            ("verified", 5_300),
            ("ownership_moved", 5_600),
            ("starting", 6_100),
            ("running", 18_000),
            ("done", 21_400),
        ),
    )
    moving = pb.MigrationRecord(
        id="mig-speech-small-3",
        job="speech-small",
        kind=pb.MIGRATION_KIND_PLANNED,
        state=pb.MIGRATION_STATE_PRE_COPYING,
        reason="moved away from a1-n3 before it fails",
        requested_by="machine",
        source_epoch=pb.Epoch(generation=1, number=2),
        source_region="east",
        source_node="a2-n3",
        target_region="west",
        target_node="k2-n2",
        target_epoch=pb.Epoch(generation=1, number=3),
        attempt=1,
        resume_step=9_100,
        fault_ms=NOW_MS - 42_000,
        requested_ms=NOW_MS - 41_000,
        rpo_steps=-1,
        rpo_ms=-1,
        rto_ms=-1,
        refused=["east: no node has 8 free devices of one model"],
        stages=_stamps(NOW_MS - 41_000, ("planned", 0), ("pre_copying", 900)),
    )
    return [_move(done, "done"), _move(moving, "pre_copying")]


def _move(record: pb.MigrationRecord, state: str) -> Object:
    labels = {"job": record.job, "state": state, "from": record.source_region, "to": record.target_region}
    return Object(kind=api_pb2.KIND_MIGRATION, name=record.id, revision=22, labels=labels, migration=record)


def _events() -> list[Object]:
    fault = NOW_MS - 3 * MINUTE
    seen = (
        ("ev-b2-n1-118", HOT, 48, "Double Bit ECC Error", fault, ("nvml", "kmsg")),
        ("ev-b2-n1-119", HOT, 94, "Contained memory error", fault + 30, ("nvml",)),
        ("ev-b2-n1-120", HOT, 63, "Row remapping event", fault + 900, ("kmsg",)),
        ("ev-k2-n1-7", "k2-n1/gpu0", 79, "GPU has fallen off the bus", NOW_MS - 5 * HOUR, ("kmsg",)),
    )
    return [event_object(*one) for one in seen]


def event_object(name: str, device: str, code: int, message: str, at_ms: int, sources: tuple[str, ...]) -> Object:
    node = device.partition("/")[0]
    region = "west" if node.startswith("k") else "east"
    record = pb.EventRecord(
        id=name,
        node=node,
        device=device,
        kind=pb.EVENT_KIND_XID,
        code=code,
        message=message,
        sources=sources,
        count=1,
        observed_ms=at_ms,
    )
    labels = {"region": region, "node": node, "device": device, "kind": "xid", "code": str(code)}
    return Object(kind=api_pb2.KIND_EVENT, name=name, region=region, revision=19, labels=labels, event=record)


def _findings() -> list[Object]:
    record = pb.FindingRecord(
        id="fi-xid48-b2-n1-gpu5",
        region="east",
        node="b2-n1",
        device=HOT,
        scope=pb.SCOPE_DEVICE,
        fault_class="memory",
        code="xid-48",
        severity=pb.SEVERITY_FATAL,
        action=pb.ACTION_DRAIN,
        sentence="XID 48 means an uncorrectable memory error: drain the device",
        evidence=["ev-b2-n1-118"],
        observed_ms=NOW_MS - 3 * MINUTE,
        rule="xid-48",
        rule_version=1,
        active=True,
    )
    labels = {"region": "east", "node": "b2-n1", "device": HOT, "code": "xid-48"}
    return [
        Object(kind=api_pb2.KIND_FINDING, name=record.id, region="east", revision=19, labels=labels, finding=record)
    ]


def chain() -> list[Link]:
    """The evidence behind the sample's incident."""
    fault = NOW_MS - 3 * MINUTE
    told = (
        ("backend.events", "event/ev-b2-n1-118", 0, "NVML and the kernel log reported XID 48 on b2-n1/gpu5."),
        ("detect.classify", "finding/fi-xid48-b2-n1-gpu5", 380, "xid-48 v1: an uncorrectable memory error; drain."),
        ("health.step", f"device/{HOT}", 400, "healthy → draining."),
        ("drain.plan", f"drain/{DRAIN_ID}", 450, "Admitted: 1 of 18 devices of the region are out after it."),
        ("migrate.confirm", "migration/mig-llm-7b-cont-7", 21_400, "llm-7b-cont runs in west from step 48200."),
    )
    return [Link(step=step, object=ref, at_ms=fault + after, sentence=text) for step, ref, after, text in told]
