"""Jobs, their ownership, checkpoints and migrations. Global store (reservations: region store)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from gridkeeper.ids import DeviceId, DrainId, Epoch, IncidentId, JobId, MigrationId, NodeId, RegionId, ReplicaId
from gridkeeper.records.common import Desired, Label, Stamp


class JobState(enum.StrEnum):
    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class RunPhase(enum.StrEnum):
    """What the agent reports of one epoch of a job."""

    STARTING = "starting"
    RUNNING = "running"  # alive, at least one renewal acknowledged
    STOPPING = "stopping"
    EXITED = "exited"  # the whole process tree is gone iff stop_confirmed


class MigrationKind(enum.StrEnum):
    START = "start"  # a job's first start
    PLANNED = "planned"  # the source still runs
    RECOVERY = "recovery"  # the source is dead, silent, or its process crashed


class MigrationState(enum.StrEnum):
    """Life of a migration (architecture §5)."""

    PLANNED = "planned"
    PRE_COPYING = "pre_copying"
    STOPPING = "stopping"
    FENCING = "fencing"
    SOURCE_FENCED = "source_fenced"
    COPYING = "copying"
    VERIFIED = "verified"
    OWNERSHIP_MOVED = "ownership_moved"
    STARTING = "starting"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


TERMINAL_MIGRATION = frozenset(
    {MigrationState.DONE, MigrationState.CANCELLED, MigrationState.ROLLED_BACK, MigrationState.FAILED}
)
TERMINAL_JOB = frozenset({JobState.STOPPED, JobState.SUCCEEDED, JobState.FAILED})


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a user submits."""

    name: JobId
    namespace: str
    command: tuple[str, ...]
    env: tuple[Label, ...]
    workdir: str  # "" = a fresh directory per epoch on the agent
    devices: int  # devices on one node
    model: str  # "" = any
    regions: tuple[RegionId, ...]  # allowed; empty = any
    prefer_other_region: bool  # a displaced job goes to another region if one has room
    handles_sigusr1: bool  # SIGUSR1 asks for a checkpoint
    grace_ms: int  # between SIGTERM and SIGKILL on a graceful stop
    max_restarts: int  # restarts after a crash of its own doing (no device fault) before the job is failed
    priority: int = 0  # higher goes first where there is not room for all
    residency: str = ""  # job and checkpoints only in regions that the policy lists with this word; "" = anywhere
    nodes: int = 1  # members of the gang, each on a node of its own with ``devices`` devices; 0 (older records): 1

    @property
    def members(self) -> int:
        return max(1, self.nodes)

    @property
    def all_devices(self) -> int:
        """Of the whole gang."""
        return self.members * max(1, self.devices)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A region or node that was considered as a job's place. ``total``: weighted mean of its scores, 0 to 1000."""

    name: str
    refused: str  # the filter that leaves it out; "" = it fits
    total: int
    scores: str  # "health 875×60, packing 500×20": points of 1000 × weight


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far a checkpoint is on its way to the target region. Times are ledger times."""

    step: int
    source: RegionId
    bytes_total: int
    bytes_here: int  # those that were there before included
    began_ms: int
    seen_ms: int
    eta_ms: int  # until the rest is here, at the pace of late; -1: not known yet


@dataclass(frozen=True, slots=True)
class JobRecord:
    """global/jobs/<job>."""

    spec: JobSpec
    state: JobState
    desired: Desired
    reason: str
    submitted_by: str
    submitted_ms: int
    migration: MigrationId  # the newest one
    restarts: int
    ended_ms: int
    trace: str


@dataclass(frozen=True, slots=True)
class Revoke:
    """The durable intent to take a job from its owner: from here no renewal is acknowledged, and R after this was
    seen committed the job may start elsewhere."""

    migration: MigrationId
    reason: str
    at_ms: int
    withdrawable: bool = False  # its only cause is its node's silence: no stop is sent, as the node may come back


@dataclass(frozen=True, slots=True)
class OwnershipRecord:
    """global/ownership/<job>: the one owner. Never deleted; its epoch only grows.

    A gang is owned as a whole, at one epoch: ``devices`` are those of all members, rank by rank, and a device's id
    names its node (``failover.domain.gang``)."""

    job: JobId
    epoch: Epoch
    region: RegionId
    node: NodeId  # of rank 0
    devices: tuple[DeviceId, ...]
    desired: Desired
    checkpoint_request: int  # grows by one per SIGUSR1 wanted
    revoke: Revoke | None
    resume_step: int  # -1: from scratch
    resume_digest: str
    migration: MigrationId
    spec: JobSpec
    trace: str
    rendezvous: str = ""  # host:port where rank 0 of a gang is met; "": a job on one node


@dataclass(frozen=True, slots=True)
class MemberRun:
    """One member of a gang in one epoch, as its node's agent reported it. Its rank is its place in the list."""

    node: NodeId
    reported: bool  # its agent has spoken of this epoch
    phase: RunPhase
    exit_code: int
    exit_signal: int
    stop_confirmed: bool
    stopped_by_us: bool
    first_step: int  # -1: none yet
    last_step: int
    first_step_ms: int
    last_step_ms: int
    started_ms: int
    ended_ms: int  # its leading process ended; its last checkpoint may still be being stored
    last_loss: float
    reason: str
    part_step: int  # its newest stored and verified part of a checkpoint; -1: none
    part_digest: str
    part_bytes: int
    part_suspect: bool


@dataclass(frozen=True, slots=True)
class RunRecord:
    """global/runs/<job>/<epoch>: facts about one epoch as its agent reported them, written by the replica that holds
    the node's stream, and only on change of anything but ``last_step`` (that one at most every few seconds). Of a gang:
    what its ``members`` come to together (``failover.domain.gang.folded``)."""

    job: JobId
    epoch: Epoch
    region: RegionId
    node: NodeId
    phase: RunPhase
    exit_code: int
    exit_signal: int
    stop_confirmed: bool
    stopped_by_us: bool  # exit followed our stop command or the guardian's fence
    resumed_step: int  # -1: from scratch
    first_step: int  # -1: none yet
    last_step: int
    first_step_ms: int  # wall ms at receiver minus age; 0: none yet
    last_step_ms: int
    started_ms: int
    ended_ms: int
    last_loss: float
    reason: str
    members: tuple[MemberRun, ...] = ()  # of a gang, by rank; (): a job on one node


def only_progress(old: RunRecord, new: RunRecord) -> bool:
    """Nothing has changed but how far it has come: its newest step, when that was, and its loss."""
    if len(old.members) != len(new.members):
        return False
    members = tuple(
        replace(now, last_step=before.last_step, last_step_ms=before.last_step_ms, last_loss=before.last_loss)
        for before, now in zip(old.members, new.members, strict=True)
    )
    same = replace(new, last_step=old.last_step, last_step_ms=old.last_step_ms, last_loss=old.last_loss)
    return replace(same, members=members) == old


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """global/heads/<job>: the newest verified checkpoint, and where its bytes were verified."""

    job: JobId
    step: int
    epoch: Epoch
    digest: str  # BLAKE3 of the manifest
    size_bytes: int
    regions: tuple[RegionId, ...]
    committed_ms: int
    instead: str = ""  # of which newer checkpoint, and why; "" = it is the newest that was committed


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """global/checkpoints/<job>/<step>: every committed checkpoint that is still kept."""

    job: JobId
    step: int
    epoch: Epoch
    digest: str
    size_bytes: int
    region: RegionId  # where it was written
    suspect: bool
    committed_ms: int
    regions: tuple[RegionId, ...] = ()  # where else it was verified
    damage: str = ""  # what is wrong with it, when no region has it whole; nothing resumes from it
    expires_ms: int = 0  # marked for deletion from this ledger time on; 0: it is kept


@dataclass(frozen=True, slots=True)
class MigrationRecord:
    """global/migrations/<id>: one start of a job at a new epoch, with everything that leads to it."""

    id: MigrationId
    job: JobId
    kind: MigrationKind
    state: MigrationState
    reason: str
    requested_by: str  # "machine" or a human
    drain: DrainId
    incident: IncidentId
    source_epoch: Epoch
    source_region: RegionId  # "" for a first start
    source_node: NodeId
    target_region: RegionId  # "" until chosen
    target_node: NodeId
    target_devices: tuple[DeviceId, ...]
    wanted_region: RegionId  # "" = any that the spec allows; a human's --to
    refused: tuple[str, ...]  # "region: reason" of targets that had no room
    target_epoch: Epoch
    attempt: int  # grows whenever a new target is chosen
    resume_step: int  # -1: from scratch
    last_source_step: int
    fault_ms: int  # ledger time of the first evidence (or of the request)
    requested_ms: int
    rpo_steps: int  # -1: not known yet
    rpo_ms: int
    rto_ms: int  # fault_ms to the first new step; -1: not known yet
    stages: tuple[Stamp, ...]
    trace: str
    silent_revision: int = 0  # of the liveness record that called the source node silent; 0: that is not the cause
    rpo_at_least: bool = False  # the source's end is not confirmed: it may have gone further than is known
    regions: tuple[Candidate, ...] = ()  # considered when target_region was chosen, best first, then those left out
    places: tuple[Candidate, ...] = ()  # nodes considered there, the chosen one first
    copy: CopyProgress | None = None  # of the checkpoint that it brings; None: nothing had to travel for long


@dataclass(frozen=True, slots=True)
class OfferRecord:
    """global/offers/<migration>: the target region's answer: devices it has reserved, or why it cannot."""

    migration: MigrationId
    attempt: int
    region: RegionId
    node: NodeId
    devices: tuple[DeviceId, ...]
    refusal: str  # "" = accepted
    term: int  # of the region's leader
    places: tuple[Candidate, ...] = ()  # considered, the chosen one first
    address: str = ""  # of a gang: where the other members reach rank 0's node


@dataclass(frozen=True, slots=True)
class ReservationRecord:
    """reservations/<job> (region store): devices held for one epoch of a job, from the offer until the job has left."""

    job: JobId
    migration: MigrationId
    node: NodeId
    devices: tuple[DeviceId, ...]
    made_ms: int
    places: tuple[Candidate, ...] = ()  # considered, the chosen one first


@dataclass(frozen=True, slots=True)
class GrantRecord:
    """global/grants/<region>: the right of a region to keep its jobs alive, held by its leader's term, and extended by
    it for as long as it is heard."""

    region: RegionId
    term: int
    replica: ReplicaId
    granted_ms: int
    extended_ms: int = 0  # 0: not since it was granted
    revoked: str = ""  # why the region is taken for lost; nobody of it renews anything, or writes globally
    peers: tuple[RegionId, ...] = ()  # regions that its replicas ask without fail when the global store is away
    addresses: tuple[str, ...] = ()  # of its replicas, for the other regions' questions


@dataclass(frozen=True, slots=True)
class RegionRecord:
    """global/regions/<region>: capacity as the region's leader last published it (on change only)."""

    region: RegionId
    leader: ReplicaId
    nodes: int
    nodes_alive: int
    devices: int  # durable inventory
    usable: int  # healthy or suspect, not cordoned, on a live node
    free: int  # usable and not reserved
    largest_free: int  # most free devices on one node
    in_doubt: bool  # frozen: too much looks dead at once
    updated_ms: int
