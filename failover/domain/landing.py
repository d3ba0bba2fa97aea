"""The end of a migration: ownership moves to a new epoch, the job starts there, its first step closes it. Pure."""

from __future__ import annotations

from dataclasses import replace

from failover.domain.births import ended
from failover.domain.gang import is_broken, rendezvous_port, unheard_members
from failover.domain.indexes import confirmed_stopped, next_epoch, run_key, run_of, succeeded
from gridkeeper.decision import Decision, Draft, Now, Put, Versioned, guards_of
from gridkeeper.ids import Epoch
from gridkeeper.keys import KEYS
from gridkeeper.records.common import Desired, Stamp
from gridkeeper.records.jobs import (
    CheckpointRecord,
    HeadRecord,
    JobRecord,
    MigrationKind,
    MigrationRecord,
    MigrationState,
    OfferRecord,
    OwnershipRecord,
    RunPhase,
    RunRecord,
)
from gridkeeper.snapshot import GlobalState, Settings


def move_ownership(
    world: GlobalState,
    job: Versioned[JobRecord],
    migration: Versioned[MigrationRecord],
    offer: Versioned[OfferRecord],
    now: Now,
) -> Decision:
    """One transaction: the new epoch's ownership on the offered devices, the migration, the offer used up.

    It compares the ownership it replaces, the head it resumes from (so no checkpoint of the old epoch is committed in
    between), the offer, and the job (so a human's stop wins). The caller has made sure that the old epoch is over.
    """
    record, spec = migration.record, job.record.spec
    owner, head = world.ownership.get(record.job), world.heads.get(record.job)
    epoch = next_epoch(world, owner)
    resume_step = head.record.step if head else -1
    draft = Draft()
    draft.put(
        KEYS.ownership(record.job),
        OwnershipRecord(
            job=record.job,
            epoch=epoch,
            region=offer.record.region,
            node=offer.record.node,
            devices=offer.record.devices,
            desired=Desired.RUN,
            checkpoint_request=0,
            revoke=None,
            resume_step=resume_step,
            resume_digest=head.record.digest if head else "",
            migration=record.id,
            spec=spec,
            trace=record.trace,
            rendezvous=_rendezvous(world, record, epoch, offer.record),
        ),
        owner,
    )
    source = run_of(world, record.job, record.source_epoch)
    last = max(record.last_source_step, source.record.last_step if source else -1)
    moved = replace(
        stamped(record, MigrationState.OWNERSHIP_MOVED, now),
        target_node=offer.record.node,
        target_devices=offer.record.devices,
        target_epoch=epoch,
        places=offer.record.places,
        resume_step=resume_step,
        last_source_step=last,
        rpo_steps=max(0, last - resume_step),
        rpo_ms=lost_ms(source, began_ms(source, head), last - resume_step),
        rpo_at_least=record.kind is not MigrationKind.START and not confirmed_stopped(source),
    )
    draft.put(KEYS.migration(record.id), moved, migration)
    draft.delete(KEYS.offer(record.id), offer)
    where = f"step {resume_step}" if head else "scratch"
    if head and head.record.instead:
        where += f" instead of {head.record.instead}"
    sentence = (
        f"{record.job} is owned by {offer.record.node} in {offer.record.region} at epoch {epoch}, "
        f"to go on from {where}: {record.reason}"
    )
    guards = guards_of(
        [
            (KEYS.head(record.job), head),
            (KEYS.job(record.job), job),
            (run_key(record.job, record.source_epoch), source),
        ]
    )
    return Decision(
        "fence.bump_epoch", sentence, draft.writes(), guards, f"migration/{record.id}", cited(record), record.trace
    )


def _rendezvous(world: GlobalState, record: MigrationRecord, epoch: Epoch, offer: OfferRecord) -> str:
    if not offer.address:
        return ""
    return f"{offer.address}:{rendezvous_port(world, record.job, epoch, offer.node)}"


def cited(record: MigrationRecord) -> tuple[str, ...]:
    return tuple(name for name in (record.drain, record.incident) if name)


def began_ms(source: Versioned[RunRecord] | None, head: Versioned[HeadRecord | CheckpointRecord] | None) -> int:
    """When the lost work began: with the commit of the checkpoint resumed from or, without one, the source's start."""
    if head is not None:
        return head.record.committed_ms
    return source.record.started_ms if source else 0


def lost_ms(source: Versioned[RunRecord] | None, began: int, steps: int) -> int:
    """Work lost in ms, from ``began`` to the last step of the source; −1: not known."""
    if steps <= 0:
        return 0
    if source is None or not source.record.last_step_ms:
        return -1
    return max(0, source.record.last_step_ms - began) if began else -1


def stamped(record: MigrationRecord, state: MigrationState, now: Now) -> MigrationRecord:
    """The migration in another state, with the moment noted."""
    return replace(record, state=state, stages=(*record.stages, Stamp(state.value, now.ledger_ms)))


ORDER = (
    MigrationState.OWNERSHIP_MOVED,
    MigrationState.STARTING,
    MigrationState.RUNNING,
    MigrationState.DONE,
)


def follow_start(
    world: GlobalState, migration: Versioned[MigrationRecord], settings: Settings, now: Now
) -> Decision | None:
    """What the target's agent reports of the new epoch moves the migration on; stages passed unseen are stamped."""
    record = migration.record
    run = run_of(world, record.job, record.target_epoch)
    if run is None:
        waited, limit = now.mono_ms - migration.seen_ms, 2 * settings.timings.takeover_ms
        if waited < limit:
            return None
        why = f"{record.target_node} has not reported epoch {record.target_epoch} within {limit} ms"
        return _give_up(migration, None, why, now)
    facts, missing = run.record, ", ".join(unheard_members(run.record))
    if facts.first_step >= 0 and not missing:
        reached = MigrationState.DONE
    elif facts.phase is RunPhase.EXITED or is_broken(run):
        if succeeded(run):
            return None  # it finished without a step: the job's own decision closes both
        status = f"signal {facts.exit_signal}" if facts.exit_signal else f"exit status {facts.exit_code}"
        why = f"epoch {record.target_epoch} ended on {facts.node} before its first step ({status}; {facts.reason})"
        return _give_up(migration, run, why, now)
    elif missing and now.mono_ms - migration.seen_ms >= 2 * settings.timings.takeover_ms:
        why = f"{missing} has not reported epoch {record.target_epoch} within {2 * settings.timings.takeover_ms} ms"
        return _give_up(migration, run, why, now)
    elif facts.phase is RunPhase.STARTING:
        reached = MigrationState.STARTING
    elif facts.phase is RunPhase.RUNNING:
        unheard = record.state is MigrationState.RUNNING and now.mono_ms - migration.seen_ms >= step_patience(settings)
        reached = MigrationState.DONE if unheard else MigrationState.RUNNING
    else:
        return None
    if ORDER.index(reached) <= ORDER.index(record.state):
        return None
    changed = record
    for state in ORDER[ORDER.index(record.state) + 1 : ORDER.index(reached) + 1]:
        changed = stamped(changed, state, now)
    if facts.first_step >= 0:
        changed = replace(changed, rto_ms=max(0, facts.first_step_ms - record.fault_ms))
    step = "executor.start" if reached is MigrationState.STARTING else "migrate.confirm"
    return Decision(
        step,
        _told(changed, facts, settings),
        (Put(KEYS.migration(record.id), changed, migration.revision),),
        guards_of([(run_key(record.job, record.target_epoch), run)]),
        f"migration/{record.id}",
        cited(record),
        record.trace,
    )


def step_patience(settings: Settings) -> int:
    """A run that has told of no step for this long (ms) may be of a job that never will: progress lines are a job's
    choice, and a migration that waits for ever would keep the job from every other move."""
    return 2 * settings.timings.takeover_ms


def _told(record: MigrationRecord, run: RunRecord, settings: Settings) -> str:
    where = f"epoch {record.target_epoch} of {record.job} on {run.node}"
    if record.state is not MigrationState.DONE:
        return f"{where} is {record.state.value}"
    lost = f", {steps_lost(record)} to redo" if record.kind is not MigrationKind.START else ""
    if run.first_step < 0:
        limit = step_patience(settings)
        return f"{where} runs and has told of no step for {limit} ms, so the time to recover is not known{lost}"
    return f"{where} made its first step ({run.first_step}), {record.rto_ms} ms after {record.fault_ms}{lost}"


def steps_lost(record: MigrationRecord) -> str:
    """``at least 4 steps``."""
    return f"{'at least ' if record.rpo_at_least else ''}{record.rpo_steps} steps"


def _give_up(migration: Versioned[MigrationRecord], run: Versioned[RunRecord] | None, why: str, now: Now) -> Decision:
    """The new epoch came to nothing. The region that owns it now asks for a recovery from it."""
    record = migration.record
    put = Put(KEYS.migration(record.id), ended(record, MigrationState.FAILED, why, now), migration.revision)
    guards = guards_of([(run_key(record.job, record.target_epoch), run)])
    sentence = f"migration {record.id} failed: {why}"
    return Decision("migrate.confirm", sentence, (put,), guards, f"migration/{record.id}", cited(record), record.trace)
