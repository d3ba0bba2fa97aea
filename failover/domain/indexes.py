"""Look-ups that several decisions share. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from failover.domain.fencing import takeover_allowed
from failover.domain.promises import waiting_since
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, Epoch, JobId, MigrationId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import (
    TERMINAL_JOB,
    TERMINAL_MIGRATION,
    JobRecord,
    MigrationRecord,
    MigrationState,
    OfferRecord,
    OwnershipRecord,
    RunPhase,
    RunRecord,
)
from gridkeeper.snapshot import GlobalState
from gridkeeper.timings import Timings

BEFORE_STOP = frozenset({MigrationState.PLANNED, MigrationState.PRE_COPYING})
"""The source still runs undisturbed: the migration may be cancelled."""

LANDED = frozenset({MigrationState.OWNERSHIP_MOVED, MigrationState.STARTING, MigrationState.RUNNING})
"""The job is owned at the target epoch."""


def run_key(job: JobId, epoch: Epoch) -> str:
    """The store key of the record of one run."""
    return KEYS.run(job, epoch.generation, epoch.number)


def run_of(world: GlobalState, job: JobId, epoch: Epoch) -> Versioned[RunRecord] | None:
    """What the agent reported of that epoch; None: nothing (or nothing that decodes, see ``run_unknown``)."""
    return world.runs.get(KEYS.run_name(job, epoch.generation, epoch.number))


def is_active(migration: MigrationRecord) -> bool:
    """It still holds the job: no other migration of the same job may begin."""
    return migration.state not in TERMINAL_MIGRATION


def active_migrations(world: GlobalState) -> Mapping[JobId, Versioned[MigrationRecord]]:
    """The active migration of each job that has one: the one that the job's own record names."""
    return world.memo.once(_active_migrations, world.jobs, world.migrations)


def _active_migrations(
    jobs: Mapping[JobId, Versioned[JobRecord]], migrations: Mapping[MigrationId, Versioned[MigrationRecord]]
) -> dict[JobId, Versioned[MigrationRecord]]:
    found: dict[JobId, Versioned[MigrationRecord]] = {}
    for job, record in jobs.items():
        migration = migrations.get(record.record.migration)
        if migration is not None and is_active(migration.record):
            found[job] = migration
    return found


def current_offer(world: GlobalState, migration: MigrationRecord) -> Versioned[OfferRecord] | None:
    """The target region's answer to this attempt; an answer to an earlier attempt counts for nothing."""
    offer = world.offers.get(migration.id)
    if offer is None or offer.record.attempt != migration.attempt or offer.record.region != migration.target_region:
        return None
    return offer


def confirmed_stopped(run: Versioned[RunRecord] | None) -> bool:
    """The whole process tree of that epoch is gone and its last checkpoint was announced."""
    return run is not None and run.record.phase is RunPhase.EXITED and run.record.stop_confirmed


def succeeded(run: Versioned[RunRecord] | None) -> bool:
    """It ended by itself with exit status 0."""
    if run is None or not confirmed_stopped(run):
        return False
    record = run.record
    return record.exit_code == 0 and record.exit_signal == 0 and not record.stopped_by_us


def released(
    world: GlobalState,
    ownership: Versioned[OwnershipRecord],
    run: Versioned[RunRecord] | None,
    mono_ms: int,
    timings: Timings,
) -> str:
    """Why no process of the owning epoch can be alive any more, as a sentence; "" while one may be.

    Either its stop is confirmed, or R has passed since this process saw the durable revoke intent, and its region's
    fence raised to it (``promises``). Any later change of the ownership record starts the wait anew.
    """
    record = ownership.record
    if run is not None and run.record.epoch == record.epoch and confirmed_stopped(run):
        return f"epoch {record.epoch} is confirmed stopped on {record.node}"
    if record.revoke is None:
        return ""
    since_ms = waiting_since(world, ownership)
    if since_ms is not None and takeover_allowed(since_ms, mono_ms, timings):
        waited = mono_ms - since_ms
        return f"the revoke intent on epoch {record.epoch} has stood for {waited} ms ≥ R = {timings.takeover_ms} ms"
    return ""


def living_owners(world: GlobalState, mono_ms: int, timings: Timings) -> Iterator[Versioned[OwnershipRecord]]:
    """Ownerships whose processes may be alive, in order of job."""
    for job in world.memo.once(_sorted_jobs, world.ownership):
        ownership = world.ownership[job]
        record = world.jobs.get(job)
        if record is not None and record.record.state in TERMINAL_JOB:
            continue
        run = run_of(world, job, ownership.record.epoch)
        if not released(world, ownership, run, mono_ms, timings):
            yield ownership


def _sorted_jobs(ownership: Mapping[JobId, Versioned[OwnershipRecord]]) -> list[JobId]:
    return sorted(ownership)


def living_devices(
    world: GlobalState, mono_ms: int, timings: Timings
) -> Mapping[tuple[RegionId, DeviceId], set[JobId]]:
    """Devices that ``living_owners`` name, with the jobs that own them."""
    return world.memo.once(_living_devices, world, mono_ms, timings)


def _living_devices(world: GlobalState, mono_ms: int, timings: Timings) -> dict[tuple[RegionId, DeviceId], set[JobId]]:
    found: dict[tuple[RegionId, DeviceId], set[JobId]] = {}
    for owner in living_owners(world, mono_ms, timings):
        for device in owner.record.devices:
            found.setdefault((owner.record.region, device), set()).add(owner.record.job)
    return found


def next_epoch(world: GlobalState, ownership: Versioned[OwnershipRecord] | None) -> Epoch:
    """The epoch of the job's next start: number and generation never fall, and a restored store's new generation is
    taken up."""
    if ownership is None:
        return Epoch(world.generation, 1)
    epoch = ownership.record.epoch
    return Epoch(max(epoch.generation, world.generation), epoch.number + 1)


def free_migration_id(world: GlobalState, job: JobId, source: Epoch) -> MigrationId:
    """``<job>-e<source epoch>``, with ``-2``, ``-3`` … when earlier ones of that epoch have ended."""
    base = f"{job}-e{source}"
    name, number = base, 1
    while MigrationId(name) in world.migrations or KEYS.migration(MigrationId(name)) in world.suspect_keys:
        number += 1
        name = f"{base}-{number}"
    return MigrationId(name)


def wants_to_run(world: GlobalState, job: JobId) -> bool:
    """A human wants it to run and it has not ended."""
    record = world.jobs.get(job)
    return record is not None and record.record.desired is Desired.RUN and record.record.state not in TERMINAL_JOB


def refused_regions(migration: MigrationRecord) -> tuple[RegionId, ...]:
    """Regions that had no room, longest ago first."""
    return tuple(RegionId(entry.partition(":")[0]) for entry in migration.refused)


def unreadable(world: GlobalState, job: JobId) -> str:
    """The first key about this job that does not decode; "" if all do. What it stood for is unknown, so nothing is
    decided on it: neither that the job runs nor that it does not."""
    if not world.suspect_keys:
        return ""
    record, ownership = world.jobs.get(job), world.ownership.get(job)
    keys = [KEYS.job(job), KEYS.ownership(job), KEYS.head(job)]
    if record is not None and record.record.migration:
        keys.append(KEYS.migration(record.record.migration))
    if ownership is not None:
        keys.append(run_key(job, ownership.record.epoch))
    return next((key for key in keys if key in world.suspect_keys), "")
