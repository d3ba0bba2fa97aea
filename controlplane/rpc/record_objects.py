"""Pure: the kinds that show one record each: incidents, drains, findings, breakers, events, moves, audit entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from google.protobuf.message import Message

from controlplane.domain.evidence import job_of
from controlplane.rpc.rows import Inputs, KindSpec, Scene, differing, message, new_object, word, yes
from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.ids import RegionId
from gridkeeper.records.books import AuditRecord
from gridkeeper.records.faults import IncidentRecord
from gridkeeper.records.jobs import MigrationRecord
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Kind, Object


def _device_labels(record: Any) -> dict[str, str]:
    return {"node": record.node, "device": record.device}


def incident_labels(record: IncidentRecord) -> dict[str, str]:
    job, on_device = job_of(record.subject), "/" in record.subject
    return {
        "state": word(record.state),
        "severity": word(record.severity),
        "class": record.fault_class,
        "node": "" if ":" in record.subject else record.subject.partition("/")[0],  # a rack or a job is of no one node
        "device": record.subject if on_device else "",
        "job": job or "",
        "drain": record.drain,
    }


def migration_labels(record: MigrationRecord) -> dict[str, str]:
    return {
        "region": record.target_region or record.source_region,
        "from": record.source_region,
        "to": record.target_region,
        "job": record.job,
        "state": word(record.state),
        "kind": word(record.kind),
        "drain": record.drain,
        "incident": record.incident,
    }


def _single(
    kind: Kind.ValueType,
    view: str,
    field: Callable[[Scene], Mapping[Any, Versioned[Any]]],
    labels_of: Callable[[Any], dict[str, str]],
    keys: tuple[str, ...],
    region_owned: bool = True,
    by_region: bool = False,
) -> KindSpec:
    """``by_region``: regions use the same names, so the object's is ``<region>/<name>``."""

    def build(region: RegionId, name: str, inputs: Inputs) -> Object:
        if by_region:
            name = f"{region}/{name}"
        labels = ({"region": region} if region_owned else {}) | labels_of(inputs[0].record)
        item = new_object(kind, name, labels.get("region", ""), inputs, labels)
        cast(Message, getattr(item, view)).CopyFrom(message(inputs[0]))
        return item

    def touched(before: Scene, now: Scene) -> set[str] | None:
        old, new = field(before), field(now)
        return set(differing(old, new)) if old.keys() == new.keys() else None

    return KindSpec(
        kind,
        ("region", *keys),
        lambda scene: (field(scene),),
        lambda scene: ((str(name), (v,)) for name, v in field(scene).items()),
        build,
        touched,
        lambda scene, key: (field(scene)[key],),
    )


def audit_object(region: str, name: str, record: AuditRecord, revision: int) -> Object:
    """An audit entry; ``region`` "" for one of the global store."""
    labels = {"region": region, "verb": record.verb, "actor": record.actor, "result": record.result}
    item = Object(kind=api_pb2.KIND_AUDIT, name=name, region=region, revision=revision, labels=labels)
    item.audit.CopyFrom(cast(Any, codec.to_message(record)))
    return item


AUDIT_LABELS = ("region", "verb", "actor", "result")


RECORDS: tuple[KindSpec, ...] = (
    _single(
        api_pb2.KIND_INCIDENT,
        "incident",
        lambda s: s.region.incidents,
        incident_labels,
        ("state", "severity", "class", "node", "device", "job", "drain"),
    ),
    _single(
        api_pb2.KIND_DRAIN,
        "drain",
        lambda s: s.region.drains,
        lambda r: _device_labels(r) | {"state": word(r.state), "incident": r.incident},
        ("node", "device", "state", "incident"),
    ),
    _single(
        api_pb2.KIND_FINDING,
        "finding",
        lambda s: s.region.findings,
        lambda r: (
            _device_labels(r)
            | {
                "job": r.job,
                "severity": word(r.severity),
                "class": r.fault_class,
                "code": r.code,
                "rule": r.rule,
                "action": word(r.action),
                "active": yes(r.active),
            }
        ),
        ("node", "device", "job", "severity", "class", "code", "rule", "action", "active"),
    ),
    _single(
        api_pb2.KIND_EVENT,
        "event",
        lambda s: s.region.events,
        lambda r: _device_labels(r) | {"kind": word(r.kind), "code": str(r.code), "job": r.job},
        ("node", "device", "kind", "code", "job"),
    ),
    _single(
        api_pb2.KIND_REPAIR,
        "repair",
        lambda s: s.region.repairs,
        lambda r: _device_labels(r) | {"kind": word(r.kind), "state": word(r.state), "drain": r.drain},
        ("node", "device", "kind", "state", "drain"),
    ),
    _single(
        api_pb2.KIND_LOSS,
        "loss",
        lambda s: s.world.losses,
        lambda r: {"region": r.region, "state": word(r.state), "decided_by": r.decided_by},
        ("state", "decided_by"),
        region_owned=False,
    ),
    _single(
        api_pb2.KIND_MAINTENANCE,
        "maintenance",
        lambda s: s.region.maintenance,
        lambda r: {"target": r.target, "node": r.target.partition("/")[0], "state": word(r.state)},
        ("target", "node", "state"),
    ),
    _single(
        api_pb2.KIND_MIGRATION,
        "migration",
        lambda s: s.world.migrations,
        migration_labels,
        ("from", "to", "job", "state", "kind", "drain", "incident"),
        region_owned=False,
    ),
    _single(
        api_pb2.KIND_BREAKER,
        "breaker",
        lambda s: s.region.breakers,
        lambda r: {"state": word(r.state)},
        ("state",),
        by_region=True,
    ),
)
