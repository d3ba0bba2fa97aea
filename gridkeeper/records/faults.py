"""From findings to drains. Region store, written by the region's leader (findings also by replicas' rules)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gridkeeper.ids import DeviceId, DrainId, FindingId, IncidentId, JobId, NodeId, RegionId, ReplicaId
from gridkeeper.records.common import Action, Scope, Severity, Stamp


class IncidentState(enum.StrEnum):
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


class DrainState(enum.StrEnum):
    """Life of a drain (architecture §5). ``drained``: every job confirmed stopped or fenced."""

    PLANNED = "planned"
    ADMITTED = "admitted"
    EVACUATING = "evacuating"
    DRAINED = "drained"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FAILED = "failed"
    EXPIRED = "expired"
    SHADOW = "shadow"  # what would have been drained: decided and recorded, not acted on


class Confidence(enum.StrEnum):
    """How sure a finding is: ``high`` the driver's or vendor's own verdict; ``medium`` sources differ, or our rule over
    documented figures; ``low`` an unknown code, or thin public facts."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class DrainMode(enum.StrEnum):
    """``checkpoint``: ask for a checkpoint, then stop. ``wait``: for the job's own end. ``deadline``: wait, and at the
    drain's ``wait_until_ms`` go on as ``checkpoint``."""

    CHECKPOINT = "checkpoint"
    WAIT = "wait"
    DEADLINE = "deadline"


class HoldKind(enum.StrEnum):
    """Why a device counts against a budget."""

    DRAIN = "drain"
    CORDON = "cordon"


@dataclass(frozen=True, slots=True)
class FindingRecord:
    """findings/<id>: what detection concluded from evidence. A level rule's finding is rewritten with ``active=False``
    when its condition has cleared."""

    id: FindingId
    region: RegionId
    node: NodeId
    device: DeviceId  # "" for a node finding
    scope: Scope
    fault_class: str  # e.g. "memory", "bus", "link", "thermal": incidents merge by (device or node, fault class)
    code: str  # e.g. "xid-48" or the rule's name
    severity: Severity
    action: Action
    sentence: str
    evidence: tuple[str, ...]  # event ids, or "metric=value" of the row
    observed_ms: int  # when the fault was seen, ledger or receiver's wall time
    rule: str
    rule_version: int
    active: bool
    trace: str
    source: str = ""  # whose verdict, with version and date
    confidence: Confidence = Confidence.HIGH
    shadow: bool = False  # its rule only watches: nothing acts on it
    count: int = 1  # sightings
    job: str = ""  # it is about this job and none of its devices
    last_ms: int = 0  # when it was seen last; 0: once, at observed_ms


@dataclass(frozen=True, slots=True)
class IncidentRecord:
    """incidents/<id>: what a human sees; one per (subject, fault class) until resolved."""

    id: IncidentId
    region: RegionId
    subject: str  # device or node id; "job:<name>"; "rack:<name>", "zone:<name>", "region:<name>" of a silence
    fault_class: str
    state: IncidentState
    severity: Severity
    title: str
    opened_ms: int  # ledger time
    observed_ms: int  # when the first evidence was seen
    last_ms: int
    count: int
    findings: tuple[FindingId, ...]
    drain: DrainId
    acknowledged_by: str
    resolved_ms: int
    resolution: str
    trace: str


@dataclass(frozen=True, slots=True)
class JobCost:
    """A job that a drain hits. ``checkpoint_step`` -1: it has none; then everything since its start would be lost."""

    job: JobId
    devices: int
    step: int
    checkpoint_step: int
    checkpoint_age_ms: int
    target_region: str  # where it would go as far as is known now; "" if nowhere


@dataclass(frozen=True, slots=True)
class DrainCost:
    """What a drain costs, named before it acts. ``capacity_left``: usable devices of the region afterwards."""

    jobs: tuple[JobCost, ...]
    capacity_left: int
    capacity_total: int
    budgets: tuple[str, ...]  # "<name> <used after>/<limit>"


@dataclass(frozen=True, slots=True)
class DrainRecord:
    """drains/<id>: the decision to take one device out, and how far it got."""

    id: DrainId
    region: RegionId
    node: NodeId
    device: DeviceId
    uuid: str
    incident: IncidentId
    state: DrainState
    reason: str  # one sentence with evidence ids and age
    evidence: tuple[str, ...]
    evidence_age_ms: int
    decided_revision: int
    rule: str
    rule_version: int
    budgets: tuple[str, ...]  # names of budgets reserved (or that refused)
    jobs: tuple[JobId, ...]  # jobs on the device when it was admitted
    requested_by: str  # "machine" or the human's identity
    planned_ms: int
    deadline_ms: int
    stages: tuple[Stamp, ...]
    trace: str
    mode: DrainMode = DrainMode.CHECKPOINT
    wait_until_ms: int = 0  # of the mode ``deadline``, ledger time
    priority: int = 0  # higher first
    policy_version: int = 0
    cost: DrainCost | None = None
    maintenance: str = ""  # the window that it is for


@dataclass(frozen=True, slots=True)
class DrainRequestRecord:
    """drain-requests/<node>/<slot>: a human's wish to drain; the leader plans it under the same budgets."""

    device: DeviceId
    requested_by: str
    reason: str
    requested_ms: int
    trace: str
    mode: DrainMode = DrainMode.CHECKPOINT
    wait_ms: int = 0
    priority: int = 0
    not_before_ms: int = 0
    maintenance: str = ""


@dataclass(frozen=True, slots=True)
class BudgetHold:
    """One device counted out of service in a budget. One device may be held twice; it counts once."""

    device: DeviceId
    kind: HoldKind
    ref: str  # drain id or cordon owner


@dataclass(frozen=True, slots=True)
class BudgetRecord:
    """budgets/<name>: the serialisation point of "never too much". Every drain and every cordon rewrites the records
    of all budgets that cover its device in its own transaction."""

    name: str  # "region", "rack-<rack>", "vendor-<vendor>"
    holds: tuple[BudgetHold, ...]
    limit: int  # devices that may be out at once, as computed at the last write
    total: int  # durable inventory then
    begun_ms: tuple[int, ...] = ()  # of a budget per time window: when its drains were admitted, ledger time


@dataclass(frozen=True, slots=True)
class DetectorRecord:
    """detector: create revision of the newest event that detection has digested."""

    revision: int


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """replicas/<id>: a live control-plane replica (leased)."""

    id: ReplicaId
    region: RegionId
    agent_address: str
    api_address: str
    version: str
    started_wall_ms: int


@dataclass(frozen=True, slots=True)
class LeaderRecord:
    """leader: who leads; the key's create revision is the term."""

    replica: ReplicaId
    address: str
    elected_wall_ms: int
