"""How a migration begins: always in one transaction with the job's record. Pure.

*Never two active migrations of one job*: whoever creates one rewrites ``JobRecord.migration`` (comparing its revision)
and compares the revision of the job's last migration, which must have ended (or ends in the same transaction).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from failover.domain.indexes import free_migration_id, is_active
from failover.domain.targets import first_ask
from gridkeeper.decision import Decision, Draft, Guard, Now, Versioned, guards_of
from gridkeeper.ids import DrainId, Epoch, IncidentId, JobId, NodeId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.policy.model import PlacementPolicy
from gridkeeper.records.common import Stamp
from gridkeeper.records.jobs import (
    JobRecord,
    MigrationKind,
    MigrationRecord,
    MigrationState,
    OwnershipRecord,
)
from gridkeeper.snapshot import GlobalState

MACHINE = "machine"
NO_DRAIN = DrainId("")
NO_INCIDENT = IncidentId("")
NO_REGION = RegionId("")


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a job is to be started or moved."""

    kind: MigrationKind
    reason: str
    fault_ms: int
    drain: DrainId = NO_DRAIN
    incident: IncidentId = NO_INCIDENT
    evidence: tuple[str, ...] = ()
    trace: str = ""
    requested_by: str = MACHINE
    wanted_region: RegionId = NO_REGION
    own_crash: bool = False  # no sign of a device fault: counts against max_restarts
    silent_revision: int = 0  # see MigrationRecord


def new_migration(
    world: GlobalState, job: JobId, ownership: Versioned[OwnershipRecord] | None, cause: Cause, trace: str, now: Now
) -> MigrationRecord:
    """A migration in its first state, from the epoch that owns the job now (``<generation>.0``: none yet)."""
    source = ownership.record if ownership else None
    epoch = source.epoch if source else Epoch(world.generation, 0)
    return MigrationRecord(
        id=free_migration_id(world, job, epoch),
        job=job,
        kind=cause.kind,
        state=MigrationState.PLANNED,
        reason=cause.reason,
        requested_by=cause.requested_by,
        drain=cause.drain,
        incident=cause.incident,
        source_epoch=epoch,
        source_region=source.region if source else RegionId(""),
        source_node=source.node if source else NodeId(""),
        target_region=RegionId(""),
        target_node=NodeId(""),
        target_devices=(),
        wanted_region=cause.wanted_region,
        refused=(),
        target_epoch=Epoch(0, 0),
        attempt=0,
        resume_step=-1,
        last_source_step=-1,
        fault_ms=cause.fault_ms,
        requested_ms=now.ledger_ms,
        rpo_steps=-1,
        rpo_ms=-1,
        rto_ms=-1,
        stages=(Stamp(MigrationState.PLANNED.value, now.ledger_ms),),
        trace=trace,
        silent_revision=cause.silent_revision,
    )


def begin(
    world: GlobalState,
    job: Versioned[JobRecord],
    ownership: Versioned[OwnershipRecord] | None,
    cause: Cause,
    now: Now,
    guards: tuple[Guard, ...] = (),
    policy: PlacementPolicy | None = None,
) -> Decision:
    """The transaction that creates a migration, and asks a first region for devices if ``policy`` says how to choose.

    ``guards``: the caller's right to decide (its region's grant) and what else it relied on. A migration that still
    is active (its target never got to a first step) ends as failed in the same transaction; the new one then inherits
    its fault time, since the job has been away since then.
    """
    name = job.record.spec.name
    draft = Draft()
    last = world.migrations.get(job.record.migration)
    guarded = list(guards)
    if last is not None and is_active(last.record):
        failed = f"{last.record.reason}; given up: {cause.reason}"
        draft.put(KEYS.migration(last.record.id), ended(last.record, MigrationState.FAILED, failed, now), last)
        if last.record.kind is not MigrationKind.START:
            cause = replace(cause, fault_ms=min(cause.fault_ms, last.record.fault_ms))
    elif last is not None:
        guarded.append(Guard(KEYS.migration(last.record.id), last.revision))
    trace = cause.trace or job.record.trace
    migration = new_migration(world, name, ownership, cause, trace, now)
    asked = first_ask(world, job.record.spec, migration, policy) if policy else None
    migration = asked.record if asked else migration
    draft.put(KEYS.migration(migration.id), migration, None)
    restarts = job.record.restarts + (1 if cause.own_crash else 0)
    draft.put(KEYS.job(name), replace(job.record, migration=migration.id, restarts=restarts), job)
    guarded += guards_of([(KEYS.ownership(name), ownership)])
    what = {MigrationKind.START: "start", MigrationKind.PLANNED: "move", MigrationKind.RECOVERY: "recover"}
    sentence = f"{what[cause.kind]} {name} by migration {migration.id}: {cause.reason}"
    sentence += f"; region {migration.target_region} is asked for devices" if asked else ""
    evidence = tuple(item for item in (cause.drain, cause.incident, *cause.evidence) if item)
    return Decision(
        "migrate.plan", sentence, draft.writes(), tuple(guarded), f"migration/{migration.id}", evidence, trace
    )


def ended(record: MigrationRecord, state: MigrationState, reason: str, now: Now) -> MigrationRecord:
    """The migration in a terminal state."""
    return replace(record, state=state, reason=reason, stages=(*record.stages, Stamp(state.value, now.ledger_ms)))
