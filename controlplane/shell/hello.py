"""What an agent says of itself, checked and turned into inventory records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gridkeeper.decision import Decision, Draft, Versioned
from gridkeeper.ids import BadName, DeviceId, NodeId, RegionId, ReplicaId, SpoolId, checked_name, device_id
from gridkeeper.keys import RegionKeys
from gridkeeper.records.common import Label
from gridkeeper.records.fleet import CursorRecord, DeviceRecord, NodeRecord, SessionRecord
from gridkeeper.telemetry import SCHEMA_VERSION
from gridkeeper.v1.agent_pb2 import Hello

MAX_DEVICES = 60  # one registration is one transaction of at most 128 operations
MAX_TEXT = 256
MAX_LABELS = 64
MAX_BACKENDS = 16


class BadHello(ValueError):
    """The hello cannot be accepted; the message names the field, the value and the remedy."""


@dataclass(frozen=True, slots=True)
class Registration:
    """The transaction that registers a stream, and what the stream then works with."""

    decision: Decision
    devices: tuple[DeviceId, ...]
    cursor: CursorRecord


@dataclass(frozen=True, slots=True)
class Known:
    """What the region store has of this node already. A record None: it does not decode, and is written anew."""

    node: Versioned[NodeRecord | None] | None
    session: Versioned[SessionRecord | None] | None
    cursor: Versioned[CursorRecord | None] | None
    devices: Mapping[DeviceId, Versioned[DeviceRecord | None]]


def _text(field: str, value: str) -> str:
    if len(value) > MAX_TEXT or not value.isprintable():
        raise BadHello(f"{field}: {value[:60]!r} is not printable text of at most {MAX_TEXT} characters")
    return value


def check_hello(hello: Hello, node: str, region: str) -> tuple[DeviceId, ...]:
    """The device ids, in row order. ``node`` and ``region`` are those of the certificate. Raises ``BadHello``."""
    if hello.node != node:
        raise BadHello(f"hello.node: {hello.node[:80]!r} is not {node!r}, the node in the certificate; fix the config")
    if hello.region != region:
        raise BadHello(
            f"hello.region: {hello.region[:80]!r} is not this region, {region!r}; fix agent servers or region"
        )
    if hello.metric_schema != SCHEMA_VERSION:
        raise BadHello(
            f"hello.metric_schema: {hello.metric_schema} is not {SCHEMA_VERSION}; upgrade agent or control plane"
        )
    if len(hello.devices) > MAX_DEVICES:
        raise BadHello(f"hello.devices: {len(hello.devices)} are more than {MAX_DEVICES}")
    try:
        checked_name("hello.rack", hello.rack)
        checked_name("hello.spool", hello.spool)
        if hello.scheduler:
            checked_name("hello.scheduler", hello.scheduler)
        if hello.zone:
            checked_name("hello.zone", hello.zone)
        ids = tuple(device_id(NodeId(hello.node), d.slot) for d in hello.devices)
    except BadName as error:
        raise BadHello(str(error)) from error
    if len(set(ids)) != len(ids):
        raise BadHello("hello.devices: a slot is named twice")
    for d in hello.devices:
        for name in ("uuid", "vendor", "model", "architecture", "pci_bus_id", "serial", "driver_version"):
            _text(f"hello.devices[{d.slot}].{name}", getattr(d, name))
    if len(hello.labels) > MAX_LABELS or len(hello.backends) > MAX_BACKENDS:
        raise BadHello(
            f"hello.labels: {len(hello.labels)} labels and {len(hello.backends)} backends; at most {MAX_LABELS} and "
            f"{MAX_BACKENDS} are taken"
        )
    for backend in hello.backends:
        _text("hello.backends", backend)
    for label in hello.labels:
        _text("hello.labels.key", label.key)
        _text("hello.labels.value", label.value)
    _text("hello.boot_id", hello.boot_id)
    _text("hello.agent_version", hello.agent_version)
    _text("hello.probe_address", hello.probe_address)
    return ids


def register(
    hello: Hello,
    ids: tuple[DeviceId, ...],
    known: Known,
    keys: RegionKeys,
    replica: ReplicaId,
    session: str,
    wall_ms: int,
) -> Registration:
    """One transaction: node, new, changed and missing devices, the event cursor of this spool, and the session."""
    node, region = NodeId(hello.node), RegionId(hello.region)
    draft = Draft()
    before = known.node.record if known.node else None
    record = NodeRecord(
        name=node,
        region=region,
        rack=hello.rack,
        labels=tuple(Label(label.key, label.value) for label in hello.labels),
        boot_id=hello.boot_id,
        agent_version=hello.agent_version,
        backends=tuple(hello.backends),
        devices=tuple(sorted({*ids, *(known.devices)})),
        registered_wall_ms=wall_ms,
        zone=hello.zone,
        probe_address=hello.probe_address,
        scheduler=hello.scheduler,
    )
    draft.put(keys.node(node), record, known.node)
    for device, info in zip(ids, hello.devices, strict=True):
        entry = DeviceRecord(
            id=device,
            node=node,
            slot=info.slot,
            uuid=info.uuid,
            vendor=info.vendor,
            model=info.model,
            architecture=info.architecture,
            pci_bus_id=info.pci_bus_id,
            serial=info.serial,
            memory_mib=info.memory_mib,
            driver_version=info.driver_version,
            rack=hello.rack,
            region=region,
            present=True,
            zone=hello.zone,
        )
        old = known.devices.get(device)
        if old is None or old.record != entry:
            draft.put(keys.device(device), entry, old)
    for device, old in known.devices.items():
        if device not in ids and old.record is not None and old.record.present:
            draft.put(keys.device(device), replace(old.record, present=False), old)
    cursor = known.cursor.record if known.cursor else None
    if cursor is None or cursor.spool != hello.spool:
        cursor = CursorRecord(node, SpoolId(hello.spool), 0)
    draft.put(keys.cursor(node), cursor, known.cursor)
    draft.put(keys.session(node), SessionRecord(node, replica, session, True, wall_ms), known.session)
    rebooted = before is not None and before.boot_id != hello.boot_id
    sentence = f"agent of {node} connected to {replica}" + (", after a reboot" if rebooted else "")
    return Registration(
        Decision("ingest.hello", sentence, draft.writes(), subject=f"node/{node}", audit=False), ids, cursor
    )
