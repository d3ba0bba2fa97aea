"""Nodes, devices and how they do. Region store; written by ingest (facts) and by the region's leader (judgement)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gridkeeper.ids import DeviceId, DrainId, EventId, IncidentId, NodeId, RegionId, ReplicaId, SpoolId
from gridkeeper.records.common import Label


class NodeState(enum.StrEnum):
    """Life of a node. ``unreachable`` is silence; ``failed`` is silence with positive evidence that what ran there is
    gone (a kernel panic, another boot id)."""

    ALIVE = "alive"
    UNREACHABLE = "unreachable"
    FAILED = "failed"


class HealthState(enum.StrEnum):
    """Life of a device (architecture §5). ``unknown``: no trustworthy evidence."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEGRADED = "degraded"
    DRAINING = "draining"
    DRAINED = "drained"
    REPAIRING = "repairing"
    PROBATION = "probation"
    RETIRED = "retired"
    UNKNOWN = "unknown"


class EventKind(enum.StrEnum):
    """What kind of thing an agent saw."""

    XID = "xid"  # code = XID number, whether from NVML or from the kernel log
    SXID = "sxid"
    DEVICE_MISSING = "device_missing"  # inventory has fewer devices than before, or NVML says GPU is lost
    DEVICE_FOUND = "device_found"
    DRIVER_HANG = "driver_hang"  # a driver call has not come back within its limit
    OVERFLOW = "overflow"  # the spool dropped events: its devices become unknown
    BOOT = "boot"  # the host started anew; the gap before is unknown
    HOST = "host"  # from the host backend
    REPLAY = "replay"
    AMD = "amd"  # code = AFID, or a code of ours for ECC blocks and bad pages (see the catalogue)
    ASCEND = "ascend"  # code = Huawei's fault code, 32 bits
    CAMBRICON = "cambricon"  # code = CNDev's XID-like number
    PPU = "ppu"  # T-Head
    SELF_TEST = "self_test"  # code 0: passed


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """nodes/<node>: what the agent said of itself in its last Hello."""

    name: NodeId
    region: RegionId
    rack: str
    labels: tuple[Label, ...]
    boot_id: str
    agent_version: str
    backends: tuple[str, ...]
    devices: tuple[DeviceId, ...]
    registered_wall_ms: int  # receiver's wall clock, shown only
    zone: str = ""
    probe_address: str = ""  # host:port where peers' probes are answered; "": nowhere
    scheduler: str = ""  # the batch system whose gate its agent keeps; "": none


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """devices/<node>/<slot>: the inventory. ``present=False``: missing now, and still counted in denominators."""

    id: DeviceId
    node: NodeId
    slot: str
    uuid: str
    vendor: str
    model: str
    architecture: str
    pci_bus_id: str
    serial: str
    memory_mib: int
    driver_version: str
    rack: str
    region: RegionId
    present: bool
    zone: str = ""


@dataclass(frozen=True, slots=True)
class CursorRecord:
    """cursors/<node>: the highest event sequence that is durable, per spool. An older spool is never reopened."""

    node: NodeId
    spool: SpoolId
    sequence: int


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """sessions/<node>: which replica holds the node's stream. ``open=False`` when that replica saw
    it end, or heard nothing on it for the unreachable limit. A node is alive while its session is open
    and the replica's leased key exists."""

    node: NodeId
    replica: ReplicaId
    session: str
    open: bool
    at_wall_ms: int
    silent_ms: int = 0  # how long nothing had been heard when this was written, by that replica's boot-time clock


@dataclass(frozen=True, slots=True)
class LivenessRecord:
    """liveness/<node>: the leader's judgement of a node, dated in ledger time."""

    node: NodeId
    state: NodeState
    since_ms: int
    reason: str
    heard_ms: int = 0  # ledger time at which a silent node was last heard, best known; 0: it is heard, or not known
    witnesses: tuple[str, ...] = ()  # one sentence each: who says what, how old
    pattern: str = ""  # "" a single node, else what is silent together: "rack r1", "zone z1", "region", "everything"
    boot_id: str = ""  # of the host when it was judged


@dataclass(frozen=True, slots=True)
class EventRecord:
    """events/<node>/<spool>/<sequence>: one deduplicated thing that an agent saw.

    ``age_ms`` is the sender's boot-time age of the first sighting when it was sent; ``observed_ms`` is the receiver's
    wall time at commit minus that age. ``count`` sightings were merged into this record by the agent within its window.
    """

    id: EventId
    node: NodeId
    spool: SpoolId
    sequence: int
    device: DeviceId  # "" when the event is about the node
    kind: EventKind
    code: int
    message: str
    sources: tuple[str, ...]  # e.g. ("nvml", "kmsg")
    count: int
    pid: int
    job: str
    age_ms: int
    observed_ms: int
    trace: str  # W3C traceparent


@dataclass(frozen=True, slots=True)
class HealthRecord:
    """health/<node>/<slot>: the device's state, why, and what it rests on."""

    device: DeviceId
    node: NodeId
    uuid: str
    state: HealthState
    since_ms: int  # ledger time
    reason: str
    evidence: tuple[str, ...]  # finding and event ids
    incident: IncidentId  # "" if none
    drain: DrainId  # "" if none
    rule: str
    rule_version: int
    flaps: int
    before_unknown: HealthState  # state to come back to when trustworthy evidence returns; draining: what it was before
    trace: str
    tested_ms: int = 0  # ledger time of the newest passed self-test
    drained_ms: tuple[int, ...] = ()  # when machine drains of it began lately, for damping


@dataclass(frozen=True, slots=True)
class CordonReason:
    """One reason why nothing new is placed here. ``expires_ms`` 0: never."""

    owner: str
    reason: str
    created_ms: int
    expires_ms: int


@dataclass(frozen=True, slots=True)
class CordonRecord:
    """cordons/<node> or cordons/<node>/<slot>: a set of reasons; empty set = key deleted."""

    target: str  # node id or device id
    reasons: tuple[CordonReason, ...]
