"""The life of each job: its start, its end, and a human's stop. Pure; decided by the global leader."""

from __future__ import annotations

from dataclasses import replace

from failover.domain.births import Cause, begin, ended
from failover.domain.gang import is_broken, nodes_of
from failover.domain.indexes import (
    LANDED,
    active_migrations,
    confirmed_stopped,
    released,
    run_key,
    run_of,
    succeeded,
    unreadable,
)
from failover.domain.losses import queued
from failover.domain.targets import Ready, Wait, seek_target
from failover.domain.turns import Turns
from gridkeeper.decision import Decision, Draft, Guard, Now, Put, Versioned, guards_of
from gridkeeper.keys import KEYS
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import (
    TERMINAL_JOB,
    JobRecord,
    JobState,
    MigrationKind,
    MigrationRecord,
    MigrationState,
    OwnershipRecord,
    Revoke,
    RunPhase,
    RunRecord,
)
from gridkeeper.snapshot import GlobalState, Settings

REASON_MS = 2_000
"""How long what is said of a job stands before it is said in other words, its state being the same."""

Owner = Versioned[OwnershipRecord]
Run = Versioned[RunRecord]
Migration = Versioned[MigrationRecord]


def decide_jobs(world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """At most one decision per job."""
    if not world.fresh:
        return ()
    active, waits = active_migrations(world), queued(world)
    decisions: list[Decision] = []
    for job, record in sorted(world.jobs.items()):
        if record.record.state in TERMINAL_JOB or unreadable(world, job):
            continue
        decision = _one(world, settings, now, record, active.get(job), waits.get(job, ""))
        if decision is not None:
            decisions.append(decision)
    return tuple(decisions)


def _one(
    world: GlobalState,
    settings: Settings,
    now: Now,
    job: Versioned[JobRecord],
    active: Migration | None,
    waits: str,
) -> Decision | None:
    name = job.record.spec.name
    owner = world.ownership.get(name)
    run = run_of(world, name, owner.record.epoch) if owner else None
    if owner is not None and succeeded(run):
        return _succeed(job, owner, run, active, now)
    if job.record.desired is Desired.STOP:
        return _stop(world, settings, now, job, owner, run, active)
    if owner is None:
        return _start(world, settings, now, job, active)
    if active is None and job.record.restarts > job.record.spec.max_restarts:
        if confirmed_stopped(run):
            return _fail(job, owner, run, now)
        if is_broken(run):
            return _stop_the_rest(world, settings, now, job, owner, run)
    if active is None and owner.record.desired is Desired.STOP:
        # It was stopped by a migration or a human, and a human wants it to run: from its newest checkpoint, at a new
        # epoch.
        cause = Cause(MigrationKind.START, f"{name} is wanted to run again", now.ledger_ms, trace=job.record.trace)
        return begin(
            world,
            job,
            owner,
            cause,
            now,
            guards_of([(run_key(name, owner.record.epoch), run)]),
            settings.policy.placement,
        )
    state, reason = _seen(world, settings, now, job, owner, run, active, waits)
    return _told(job, state, reason, now)


def _start(
    world: GlobalState, settings: Settings, now: Now, job: Versioned[JobRecord], active: Migration | None
) -> Decision | None:
    if active is None:
        requested = f"{job.record.submitted_by} submitted it" if job.record.submitted_by else "it was submitted"
        cause = Cause(MigrationKind.START, requested, now.ledger_ms, trace=job.record.trace)
        return begin(world, job, None, cause, now, (), settings.policy.placement)
    reason = _waiting(world, settings, now, job, active) or "its devices are being found"
    return _told(job, JobState.PENDING, reason, now)


def _waiting(world: GlobalState, settings: Settings, now: Now, job: Versioned[JobRecord], active: Migration) -> str:
    """What an active migration waits for, if it is room."""
    if active.record.state in LANDED or active.record.state is MigrationState.STOPPING:
        return ""
    target = seek_target(world, job.record.spec, active, settings, now)
    if isinstance(target, Wait):
        return target.sentence
    begins = active.record.state in (MigrationState.PLANNED, MigrationState.SOURCE_FENCED)
    return Turns(world, settings.policy.moves).waits(active.record) if isinstance(target, Ready) and begins else ""


def _seen(
    world: GlobalState,
    settings: Settings,
    now: Now,
    job: Versioned[JobRecord],
    owner: Owner,
    run: Run | None,
    active: Migration | None,
    waits: str,
) -> tuple[JobState, str]:
    """State and reason of a job that is owned and wanted. The reason holds no ages: it changes only with its facts."""
    epoch, node = owner.record.epoch, ", ".join(nodes_of(owner.record))
    moving = f"migration {active.record.id} moves it" if active else "no migration yet"
    waiting = _waiting(world, settings, now, job, active) if active else ""
    if waiting:
        moving = f"{moving}, {waiting}"
    if waits and active is None:
        return JobState.STARTING, f"epoch {epoch} was on {node}; {waits}"
    if run is None:
        return JobState.STARTING, f"epoch {epoch} is to start on {node}; {moving}"
    match run.record.phase:
        case RunPhase.RUNNING if owner.record.desired is Desired.RUN and owner.record.revoke is None:
            leaving = f"; {moving}" if active and active.record.state not in LANDED else ""
            return JobState.RUNNING, f"epoch {epoch} runs on {node}{leaving}"
        case RunPhase.STARTING:
            why = f" ({run.record.reason})" if run.record.reason else ""
            return JobState.STARTING, f"epoch {epoch} starts on {node}{why}; {moving}"
        case RunPhase.STOPPING if is_broken(run):
            return JobState.STARTING, f"epoch {epoch} on {node} cannot go on ({run.record.reason}); {moving}"
        case RunPhase.STOPPING if owner.record.desired is Desired.RUN and not run.record.stopped_by_us:
            return JobState.RUNNING, f"epoch {epoch} ends on {node}; its last checkpoint is being stored"
        case RunPhase.RUNNING | RunPhase.STOPPING:
            return JobState.STOPPING, f"epoch {epoch} is being stopped on {node}; {moving}"
        case RunPhase.EXITED:
            return JobState.STARTING, f"epoch {epoch} ended on {node}; {moving}"


def _told(job: Versioned[JobRecord], state: JobState, reason: str, now: Now) -> Decision | None:
    """Write state and reason if they are new. Nothing else is guarded: it is what was seen, nobody acts on it, and what
    has changed meanwhile is told by the next look; hundreds of jobs move on between a look and its transaction. A
    reason alone is told when the last word has stood for ``REASON_MS``: on the way of a move it changes by the step."""
    changed = job.record.state is not state
    if not changed and (job.record.reason == reason or now.mono_ms - job.seen_ms < REASON_MS):
        return None
    name = job.record.spec.name
    put = Put(KEYS.job(name), replace(job.record, state=state, reason=reason), job.revision)
    sentence = f"{name} is {state.value}: {reason}"
    return Decision("job.state", sentence, (put,), (), f"job/{name}", (), job.record.trace, audit=changed)


def _stop(
    world: GlobalState,
    settings: Settings,
    now: Now,
    job: Versioned[JobRecord],
    owner: Owner | None,
    run: Run | None,
    active: Migration | None,
) -> Decision | None:
    """A human's stop wins over everything: migrations are cancelled, and the job counts as stopped when its processes
    are confirmed gone or fenced."""
    name = job.record.spec.name
    if owner is None:
        return _end(job, None, None, active, JobState.STOPPED, "stopped before it ever started", now)
    over = released(world, owner, run, now.mono_ms, settings.timings)
    if owner.record.desired is not Desired.STOP or active is not None:
        draft = Draft()
        if owner.record.desired is not Desired.STOP:
            draft.put(KEYS.ownership(name), replace(owner.record, desired=Desired.STOP), owner)
        reason = f"epoch {owner.record.epoch} on {owner.record.node} is asked to stop"
        draft.put(KEYS.job(name), replace(job.record, state=JobState.STOPPING, reason=reason), job)
        if active is not None:
            _close(draft, active, MigrationState.CANCELLED, f"{name} is to stop", now)
        sentence = f"{name} is to stop: {reason}"
        guards = guards_of([(KEYS.ownership(name), owner)])
        return Decision("executor.stop", sentence, draft.writes(), guards, f"job/{name}", (), job.record.trace)
    if over:
        return _end(job, owner, run, None, JobState.STOPPED, f"as wanted; {over}", now)
    return _late(settings, now, job, owner, run)


def _late(settings: Settings, now: Now, job: Versioned[JobRecord], owner: Owner, run: Run | None) -> Decision | None:
    """An owner that was asked to stop and does not confirm it is revoked: R after that it counts as stopped."""
    name, waited = job.record.spec.name, now.mono_ms - owner.seen_ms
    limit = owner.record.spec.grace_ms + 2 * settings.timings.fence_ms
    if owner.record.revoke is not None or waited < limit:
        return None
    why = f"its stop is not confirmed {waited} ms after it was asked (grace + 2 F = {limit} ms)"
    intent = Revoke(owner.record.migration, why, now.ledger_ms)
    put = Put(KEYS.ownership(name), replace(owner.record, revoke=intent), owner.revision)
    sentence = f"epoch {owner.record.epoch} of {name} on {owner.record.node} is revoked: {why}"
    guards = guards_of([(KEYS.job(name), job), (run_key(name, owner.record.epoch), run)])
    return Decision("executor.stop", sentence, (put,), guards, f"job/{name}", (), job.record.trace)


def _succeed(job: Versioned[JobRecord], owner: Owner, run: Run | None, active: Migration | None, now: Now) -> Decision:
    reason = f"epoch {owner.record.epoch} ended by itself on {owner.record.node} with exit status 0"
    return _end(job, owner, run, active, JobState.SUCCEEDED, reason, now)


def _stop_the_rest(
    world: GlobalState, settings: Settings, now: Now, job: Versioned[JobRecord], owner: Owner, run: Run | None
) -> Decision | None:
    """A gang that is given up has members that live: they are stopped or fenced before it counts as failed."""
    name = job.record.spec.name
    if released(world, owner, run, now.mono_ms, settings.timings):
        return _fail(job, owner, run, now)
    if owner.record.desired is Desired.STOP:
        return _late(settings, now, job, owner, run)
    put = Put(KEYS.ownership(name), replace(owner.record, desired=Desired.STOP), owner.revision)
    sentence = f"the other members of {name} epoch {owner.record.epoch} are asked to stop: {job.record.reason}"
    guards = guards_of([(KEYS.job(name), job), (run_key(name, owner.record.epoch), run)])
    return Decision("executor.stop", sentence, (put,), guards, f"job/{name}", (), job.record.trace)


def _fail(job: Versioned[JobRecord], owner: Owner, run: Run | None, now: Now) -> Decision:
    limit = job.record.spec.max_restarts
    ends = f"epoch {owner.record.epoch} crashed on {owner.record.node}"
    if run is not None:
        status = f"signal {run.record.exit_signal}" if run.record.exit_signal else f"status {run.record.exit_code}"
        ends = f"{ends} ({status})"
    reason = f"{ends} after {limit} restarts without a device fault, all that spec.max_restarts allows"
    return _end(job, owner, run, None, JobState.FAILED, reason, now)


def _end(
    job: Versioned[JobRecord],
    owner: Owner | None,
    run: Run | None,
    active: Migration | None,
    state: JobState,
    reason: str,
    now: Now,
) -> Decision:
    """The job in a terminal state, nothing left that would start it, its migration closed: one transaction."""
    name = job.record.spec.name
    draft = Draft()
    ended_ms = (run.record.ended_ms if run else 0) or now.ledger_ms
    draft.put(KEYS.job(name), replace(job.record, state=state, reason=reason, ended_ms=ended_ms), job)
    guards: list[Guard] = []
    if owner is None:
        guards += guards_of([(KEYS.ownership(name), None)])
    elif owner.record.desired is not Desired.STOP:
        draft.put(KEYS.ownership(name), replace(owner.record, desired=Desired.STOP), owner)
    else:
        guards.append(Guard(KEYS.ownership(name), owner.revision))
    if owner is not None:
        guards += guards_of([(run_key(name, owner.record.epoch), run)])
    if active is not None:
        arrived = active.record.state in LANDED and state is JobState.SUCCEEDED
        done = MigrationState.DONE if arrived else MigrationState.CANCELLED
        _close(draft, active, done, f"{name} has {state.value}: {reason}", now)
    sentence = f"{name} has {state.value}: {reason}"
    return Decision("job.state", sentence, draft.writes(), tuple(guards), f"job/{name}", (), job.record.trace)


def _close(draft: Draft, active: Migration, state: MigrationState, why: str, now: Now) -> None:
    draft.put(KEYS.migration(active.record.id), ended(active.record, state, why, now), active)
