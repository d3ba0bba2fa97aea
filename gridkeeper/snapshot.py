"""What the pure cores look at: both stores as mirrored by one process, and the policy in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gridkeeper.decision import ABSENT, Versioned
from gridkeeper.ids import DeviceId, JobId, MigrationId, NodeId, RegionId, Revision
from gridkeeper.records.books import AccountRecord
from gridkeeper.records.faults import (
    BudgetRecord,
    DetectorRecord,
    DrainRecord,
    DrainRequestRecord,
    FindingRecord,
    IncidentRecord,
    ReplicaRecord,
)
from gridkeeper.records.fleet import (
    CordonRecord,
    DeviceRecord,
    EventRecord,
    HealthRecord,
    LivenessRecord,
    NodeRecord,
    SessionRecord,
)
from gridkeeper.records.jobs import (
    CheckpointRecord,
    GrantRecord,
    HeadRecord,
    JobRecord,
    MigrationRecord,
    OfferRecord,
    OwnershipRecord,
    RegionRecord,
    ReservationRecord,
    RunRecord,
)
from gridkeeper.timings import Timings


@dataclass(frozen=True, slots=True)
class RegionState:
    """A region's store at one revision. Mappings are keyed by the last part(s) of the key. ``suspect_keys``: keys whose
    value did not decode; what they stood for is unknown."""

    region: RegionId
    revision: Revision = ABSENT
    nodes: Mapping[NodeId, Versioned[NodeRecord]] = field(default_factory=dict)
    devices: Mapping[DeviceId, Versioned[DeviceRecord]] = field(default_factory=dict)
    sessions: Mapping[NodeId, Versioned[SessionRecord]] = field(default_factory=dict)
    liveness: Mapping[NodeId, Versioned[LivenessRecord]] = field(default_factory=dict)
    health: Mapping[DeviceId, Versioned[HealthRecord]] = field(default_factory=dict)
    cordons: Mapping[str, Versioned[CordonRecord]] = field(default_factory=dict)
    events: Mapping[str, Versioned[EventRecord]] = field(default_factory=dict)
    findings: Mapping[str, Versioned[FindingRecord]] = field(default_factory=dict)
    incidents: Mapping[str, Versioned[IncidentRecord]] = field(default_factory=dict)
    drains: Mapping[str, Versioned[DrainRecord]] = field(default_factory=dict)
    drain_requests: Mapping[DeviceId, Versioned[DrainRequestRecord]] = field(default_factory=dict)
    budgets: Mapping[str, Versioned[BudgetRecord]] = field(default_factory=dict)
    reservations: Mapping[JobId, Versioned[ReservationRecord]] = field(default_factory=dict)
    replicas: Mapping[str, Versioned[ReplicaRecord]] = field(default_factory=dict)
    accounts: Mapping[str, Versioned[AccountRecord]] = field(default_factory=dict)
    detector: Versioned[DetectorRecord] | None = None
    suspect_keys: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class GlobalState:
    """The global store at one revision. ``runs`` is keyed by ``<job>/<epoch key>``, ``checkpoints`` by
    ``<job>/<step key>``, as in the store. ``fresh``: False while this process cannot reach the global store; then
    nothing that needs it is decided."""

    revision: Revision = ABSENT
    fresh: bool = True
    generation: int = 1  # of the store (its meta record); an epoch begins with it
    jobs: Mapping[JobId, Versioned[JobRecord]] = field(default_factory=dict)
    ownership: Mapping[JobId, Versioned[OwnershipRecord]] = field(default_factory=dict)
    runs: Mapping[str, Versioned[RunRecord]] = field(default_factory=dict)
    heads: Mapping[JobId, Versioned[HeadRecord]] = field(default_factory=dict)
    checkpoints: Mapping[str, Versioned[CheckpointRecord]] = field(default_factory=dict)
    migrations: Mapping[MigrationId, Versioned[MigrationRecord]] = field(default_factory=dict)
    offers: Mapping[MigrationId, Versioned[OfferRecord]] = field(default_factory=dict)
    grants: Mapping[RegionId, Versioned[GrantRecord]] = field(default_factory=dict)
    regions: Mapping[RegionId, Versioned[RegionRecord]] = field(default_factory=dict)
    accounts: Mapping[str, Versioned[AccountRecord]] = field(default_factory=dict)
    suspect_keys: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    """At most ``max(minimum, floor(fraction × durable inventory))`` devices out of service at once."""

    kind: str  # "region", "rack", "vendor"
    fraction: float
    minimum: int


@dataclass(frozen=True, slots=True)
class Policy:
    """What operators may tune, besides timings."""

    version: int = 1
    budgets: tuple[BudgetPolicy, ...] = (
        BudgetPolicy("region", 0.25, 1),
        BudgetPolicy("rack", 0.5, 1),
        BudgetPolicy("vendor", 0.25, 1),
    )
    freeze_fraction: float = 0.5  # more nodes than this silent at once: the observer is what is broken
    probation_ms: int = 600_000
    repair_hold_ms: int = 60_000  # drained at least this long before clear evidence moves it on to probation


@dataclass(frozen=True, slots=True)
class Settings:
    """Handed to every decision next to the state."""

    timings: Timings = field(default_factory=Timings)
    policy: Policy = field(default_factory=Policy)
