"""What the pure cores look at: both stores as mirrored by one process, and the policy in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gridkeeper.decision import ABSENT, Versioned
from gridkeeper.ids import DeviceId, Extent, JobId, MigrationId, NodeId, RegionId, Revision
from gridkeeper.memo import Memo
from gridkeeper.policy.model import Policy
from gridkeeper.records.books import AccountRecord
from gridkeeper.records.care import MaintenanceRecord, ProbeRecord, RepairRecord, WitnessRecord
from gridkeeper.records.documents import DocumentRecord
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
from gridkeeper.records.identity import JoinTokenRecord, RevocationRecord
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
from gridkeeper.records.limits import BreakerRecord, EscrowRecord, RepeatRecord, ShareRecord
from gridkeeper.records.objectives import SloAlertRecord, SloHourRecord
from gridkeeper.records.policy import PolicyRecord
from gridkeeper.records.regions import FenceRecord, LossRecord, PromiseRecord
from gridkeeper.records.settlement import ClosingRecord, ExclusionRecord, LedgerHeadRecord
from gridkeeper.timings import Timings


@dataclass(frozen=True, slots=True)
class Inventory:
    """Every device and node of a region: what budgets and breakers are shares of."""

    nodes: Mapping[NodeId, Versioned[NodeRecord]]
    devices: Mapping[DeviceId, Versioned[DeviceRecord]]


@dataclass(frozen=True, slots=True)
class RegionState:
    """A region's store at one revision. Mappings are keyed by the last part(s) of the key. ``suspect_keys``: keys whose
    value did not decode; what they stood for is unknown. ``whole``: the inventory, where ``nodes`` and ``devices`` hold
    only those about which there is something to decide (a backtest); None: they are all."""

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
    breakers: Mapping[str, Versioned[BreakerRecord]] = field(default_factory=dict)
    shares: Mapping[str, Versioned[ShareRecord]] = field(default_factory=dict)
    repeats: Mapping[str, Versioned[RepeatRecord]] = field(default_factory=dict)
    repairs: Mapping[str, Versioned[RepairRecord]] = field(default_factory=dict)
    maintenance: Mapping[str, Versioned[MaintenanceRecord]] = field(default_factory=dict)
    probes: Mapping[NodeId, Versioned[ProbeRecord]] = field(default_factory=dict)
    witnesses: Mapping[str, Versioned[WitnessRecord]] = field(default_factory=dict)
    policy: Versioned[PolicyRecord] | None = None
    closings: Mapping[str, Versioned[ClosingRecord]] = field(default_factory=dict)
    ledger_heads: Mapping[str, Versioned[LedgerHeadRecord]] = field(default_factory=dict)
    slo_hours: Mapping[str, Versioned[SloHourRecord]] = field(default_factory=dict)
    slo_alerts: Mapping[str, Versioned[SloAlertRecord]] = field(default_factory=dict)
    suspect_keys: frozenset[str] = frozenset()
    whole: Inventory | None = None
    revocations: Mapping[str, Versioned[RevocationRecord]] = field(default_factory=dict)
    tokens: Mapping[str, Versioned[JoinTokenRecord]] = field(default_factory=dict)
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Failsafe:
    """What stands between the decider's region and the jobs of others (``failover.domain.promises``), as its own
    region's store has it. ``raised``: how far each fence was raised and when this process first saw it there, oldest
    first; both ascend. A fence is raised for one intent after the other, and none waits longer for those that follow.
    ``named``: regions whose grant names ours, and since when this process has seen it do so without a break. ``torn``:
    fences that do not decode, with the revision under which they stand.
    """

    here: RegionId
    fences: Mapping[RegionId, Versioned[FenceRecord]] = field(default_factory=dict)
    raised: Mapping[RegionId, tuple[tuple[Extent, int], ...]] = field(default_factory=dict)
    promises: Mapping[RegionId, Versioned[PromiseRecord]] = field(default_factory=dict)
    named: Mapping[RegionId, int] = field(default_factory=dict)
    torn: Mapping[RegionId, Revision] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GlobalState:
    """The global store at one revision. ``runs`` is keyed by ``<job>/<epoch key>``, ``checkpoints`` by
    ``<job>/<step key>``, as in the store. ``fresh``: False while this process cannot reach the global store; then
    nothing that needs it is decided. ``failsafe``: None for who only shows it, and decides on no job's next owner."""

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
    escrow: Mapping[str, Versioned[EscrowRecord]] = field(default_factory=dict)
    share_acks: Mapping[str, Versioned[ShareRecord]] = field(default_factory=dict)
    policy: Versioned[PolicyRecord] | None = None
    policies: Mapping[str, Versioned[PolicyRecord]] = field(default_factory=dict)
    documents: Mapping[str, Versioned[DocumentRecord]] = field(default_factory=dict)
    losses: Mapping[RegionId, Versioned[LossRecord]] = field(default_factory=dict)
    exclusions: Mapping[str, Versioned[ExclusionRecord]] = field(default_factory=dict)
    closings: Mapping[str, Versioned[ClosingRecord]] = field(default_factory=dict)
    ledger_heads: Mapping[str, Versioned[LedgerHeadRecord]] = field(default_factory=dict)
    slo_hours: Mapping[str, Versioned[SloHourRecord]] = field(default_factory=dict)
    slo_alerts: Mapping[str, Versioned[SloAlertRecord]] = field(default_factory=dict)
    suspect_keys: frozenset[str] = frozenset()
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)
    failsafe: Failsafe | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Handed to every decision next to the state."""

    timings: Timings = field(default_factory=Timings)
    policy: Policy = field(default_factory=Policy)
