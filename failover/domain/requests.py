"""Which jobs of a region must leave where they are, and why. Pure; decided by the region's leader, written to the
*global* store under the region's grant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from failover.domain import evidence
from failover.domain.births import Cause, begin, ended
from failover.domain.gang import is_broken, nodes_of, unheard_members
from failover.domain.grants import grant_guard
from failover.domain.indexes import (
    BEFORE_STOP,
    LANDED,
    active_migrations,
    confirmed_stopped,
    run_key,
    run_of,
    succeeded,
    unreadable,
    wants_to_run,
)
from failover.domain.withdrawal import THEN, withdraw
from gridkeeper.decision import Decision, Guard, Now, Put, Versioned, guards_of
from gridkeeper.ids import DrainId, Epoch, IncidentId, JobId, MigrationId
from gridkeeper.keys import KEYS
from gridkeeper.records.common import Desired
from gridkeeper.records.faults import DrainMode, DrainRecord, DrainState
from gridkeeper.records.fleet import LivenessRecord, NodeState
from gridkeeper.records.jobs import (
    MigrationKind,
    MigrationRecord,
    MigrationState,
    OwnershipRecord,
    RunPhase,
    RunRecord,
)
from gridkeeper.snapshot import GlobalState, RegionState, Settings

SILENT = frozenset({NodeState.UNREACHABLE, NodeState.FAILED})
GIVEN_UP = frozenset({DrainState.CANCELLED, DrainState.REFUSED, DrainState.FAILED})


def decide_requests(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """At most one decision per job that this region owns. Nothing while the global store is not fresh."""
    grant = grant_guard(world, state.region)
    if not world.fresh or grant is None:
        return ()
    active = active_migrations(world)
    decisions: list[Decision] = []
    for job, ownership in sorted(world.ownership.items()):
        if ownership.record.region != state.region or not wants_to_run(world, job) or unreadable(world, job):
            continue
        migration = active.get(job)
        if migration is None or migration.record.state in LANDED:
            decision = _leave(state, world, settings, now, ownership, migration, grant)
        elif migration.record.state in BEFORE_STOP and migration.record.kind is MigrationKind.PLANNED:
            decision = _amend(state, ownership, migration, now, grant)
        else:
            decision = withdraw(state, world, settings, now, ownership, migration, grant)
        if decision is not None:
            decisions.append(decision)
    return tuple(decisions)


def _leave(
    state: RegionState,
    world: GlobalState,
    settings: Settings,
    now: Now,
    ownership: Versioned[OwnershipRecord],
    migration: Versioned[MigrationRecord] | None,
    grant: Guard,
) -> Decision | None:
    """A new migration away from the owning epoch, if there is cause. ``migration``: one that has landed here and still
    waits for its first step; it is superseded."""
    owner = ownership.record
    job = world.jobs[owner.job]
    if job.record.restarts > job.record.spec.max_restarts:
        return None  # given up already; the global leader stops what is left and fails the job
    run = run_of(world, owner.job, owner.epoch)
    cause: Cause | None
    if confirmed_stopped(run) or (is_broken(run) and owner.desired is Desired.RUN):
        # A landed migration whose run ended is first closed by the global leader, who knows whether it arrived.
        cause = None if migration else _after_exit(state, world, settings, now, owner, run)
    else:
        cause = _while_alive(state, world, owner, run, migration, settings, now)
    if cause is None:
        return None
    guards = (grant, *guards_of([(run_key(owner.job, owner.epoch), run)]))
    if cause.own_crash and job.record.restarts >= job.record.spec.max_restarts:
        return _exhausted(world, ownership, cause, guards)
    return begin(world, job, ownership, cause, now, guards, settings.policy.placement)


def _after_exit(
    state: RegionState,
    world: GlobalState,
    settings: Settings,
    now: Now,
    owner: OwnershipRecord,
    run: Versioned[RunRecord] | None,
) -> Cause | None:
    if run is None or succeeded(run):
        return None
    record = run.record
    status = f"signal {record.exit_signal}" if record.exit_signal else f"exit status {record.exit_code}"
    at_ms = record.ended_ms or now.ledger_ms
    found = evidence.of_exit(state, owner.node, owner.devices, at_ms)
    if record.stopped_by_us:
        if owner.desired is Desired.STOP:
            return None
        reason = f"epoch {owner.epoch} was stopped on {owner.node} without anyone asking ({record.reason or status})"
        return _caused(found, reason, own_crash=False, trace=owner.trace)
    settled = now.mono_ms - run.seen_ms >= settings.timings.settle_ms
    if not settled and found.drain is None:
        return None
    if found.of_device:
        why = f"; {_named(found)} explains it"
    else:
        why = f"; no fault of {', '.join(owner.devices)} is known after {settings.timings.settle_ms} ms"
    reason = f"epoch {owner.epoch} ended on {owner.node} with {status}{why}"
    return _caused(found, reason, own_crash=not found.of_device, trace=owner.trace)


def _named(found: evidence.Evidence) -> str:
    names = [f"drain {found.drain.id}"] if found.drain else []
    if found.incident:
        names.append(f"incident {found.incident.id}")
    return " and ".join(names)


def _caused(found: evidence.Evidence, reason: str, own_crash: bool, trace: str) -> Cause:
    incident, drain = found.incident, found.drain
    return Cause(
        MigrationKind.RECOVERY,
        reason,
        found.fault_ms,
        drain=drain.id if drain else DrainId(""),
        incident=incident.id if incident else (drain.incident if drain else IncidentId("")),
        evidence=incident.findings if incident else (),
        trace=(drain.trace if drain else "") or (incident.trace if incident else "") or trace,
        own_crash=own_crash,
    )


def _while_alive(
    state: RegionState,
    world: GlobalState,
    owner: OwnershipRecord,
    run: Versioned[RunRecord] | None,
    migration: Versioned[MigrationRecord] | None,
    settings: Settings,
    now: Now,
) -> Cause | None:
    silent = _silence(state, owner)
    if silent is not None:
        reason = f"node {silent.record.node} is {silent.record.state.value}: {silent.record.reason}"
        return _silent_cause(state, owner, silent, reason)
    if migration is None and owner.revoke is not None:
        reason = f"epoch {owner.epoch} is revoked ({owner.revoke.reason}) and nothing moves the job"
        return Cause(MigrationKind.RECOVERY, reason, owner.revoke.at_ms, trace=owner.trace)
    if migration is None and (run is None or unheard_members(run.record)):
        last = world.migrations.get(owner.migration)
        where = ", ".join(unheard_members(run.record)) if run else owner.node
        reason = f"epoch {owner.epoch} never started on {where}" + (f": {last.record.reason}" if last else "")
        fault_ms = last.record.fault_ms if last else now.ledger_ms
        return Cause(MigrationKind.RECOVERY, reason, fault_ms, trace=owner.trace)
    if run is None:
        return None
    if run.record.phase in (RunPhase.STOPPING, RunPhase.EXITED):
        limit = owner.spec.grace_ms + 2 * settings.timings.fence_ms
        waited = _stopping_ms(run, now)
        if owner.desired is Desired.RUN and waited >= limit:
            reason = f"epoch {owner.epoch} on {owner.node} is stopping for {waited} ms and its end is not confirmed"
            return Cause(MigrationKind.RECOVERY, reason, now.ledger_ms - waited, trace=owner.trace)
        return None
    if owner.desired is not Desired.RUN:
        return None
    drain = _evacuation(state, world, owner, now)
    return _drain_cause(state, drain, owner, now) if drain else None


def _stopping_ms(run: Versioned[RunRecord], now: Now) -> int:
    """How long that run is stopping. A gang's record is written anew with every step of its other members, so a member
    whose process has ended counts from that end on: by stored times, but nothing is safe only because of it."""
    ends = [m.ended_ms for m in run.record.members if m.phase is RunPhase.STOPPING and m.ended_ms]
    return max(now.mono_ms - run.seen_ms, now.ledger_ms - min(ends, default=now.ledger_ms))


def _silence(state: RegionState, owner: OwnershipRecord) -> Versioned[LivenessRecord] | None:
    """The first of its nodes that is silent."""
    for node in nodes_of(owner):
        liveness = state.liveness.get(node)
        if liveness and liveness.record.state in SILENT:
            return liveness
    return None


def _silent_cause(state: RegionState, owner: OwnershipRecord, silent: Versioned[LivenessRecord], reason: str) -> Cause:
    incidents = list(evidence.open_incidents(state, owner.node, owner.devices))
    newest = max(incidents, key=lambda i: (i.observed_ms, i.id), default=None)
    return Cause(
        MigrationKind.RECOVERY,
        reason,
        silent.record.heard_ms or silent.record.since_ms,
        incident=newest.id if newest else IncidentId(""),
        trace=(newest.trace if newest else "") or owner.trace,
        silent_revision=silent.revision,
    )


def _evacuation(state: RegionState, world: GlobalState, owner: OwnershipRecord, now: Now) -> DrainRecord | None:
    """The oldest drain that wants the job off its devices now. A move for it that a human cancelled is not asked
    again."""
    declined = world.memo.once(_declined, world.migrations).get((owner.job, owner.epoch), set())
    wanted = [
        d
        for d in evidence.drains_on(state, owner.devices)
        if d.state in evidence.EVACUATING and d.id not in declined and _moves_jobs(d, now)
    ]
    return min(wanted, key=lambda d: (d.planned_ms, d.id), default=None)


def _moves_jobs(drain: DrainRecord, now: Now) -> bool:
    """A drain that waits leaves jobs to their own end, ``deadline`` until its time has come."""
    match drain.mode:
        case DrainMode.CHECKPOINT:
            return True
        case DrainMode.WAIT:
            return False
        case DrainMode.DEADLINE:
            return now.ledger_ms >= drain.wait_until_ms


def _declined(migrations: Mapping[MigrationId, Versioned[MigrationRecord]]) -> dict[tuple[JobId, Epoch], set[DrainId]]:
    """Drains for which a move of that epoch was cancelled."""
    found: dict[tuple[JobId, Epoch], set[DrainId]] = {}
    for migration in migrations.values():
        record = migration.record
        if record.state is MigrationState.CANCELLED:
            found.setdefault((record.job, record.source_epoch), set()).add(record.drain)
    return found


def _drain_cause(state: RegionState, drain: DrainRecord, owner: OwnershipRecord, now: Now) -> Cause:
    incident = state.incidents.get(drain.incident)
    fault_ms = incident.record.observed_ms if incident else drain.planned_ms
    age = max(0, now.ledger_ms - drain.planned_ms)
    return Cause(
        MigrationKind.PLANNED,
        f"drain {drain.id} takes {drain.device} out (planned {age} ms ago): {drain.reason}",
        fault_ms,
        drain=drain.id,
        incident=drain.incident,
        evidence=drain.evidence,
        trace=drain.trace or owner.trace,
    )


def _amend(
    state: RegionState,
    ownership: Versioned[OwnershipRecord],
    migration: Versioned[MigrationRecord],
    now: Now,
    grant: Guard,
) -> Decision | None:
    """A planned move whose source went silent becomes a recovery; one whose drain was given up is cancelled."""
    owner, record = ownership.record, migration.record
    silent = _silence(state, owner)
    drain = state.drains.get(record.drain) if record.drain else None
    if silent is not None:
        reason = f"{record.reason}{THEN}{silent.record.node} became {silent.record.state.value}: {silent.record.reason}"
        changed = replace(
            record,
            kind=MigrationKind.RECOVERY,
            state=MigrationState.PLANNED,
            reason=reason,
            silent_revision=silent.revision,
        )
        sentence = f"migration {record.id} becomes a recovery: {reason}"
    elif drain is not None and drain.record.state in GIVEN_UP:
        reason = f"{record.reason}; drain {drain.record.id} is {drain.record.state.value}, so the job stays"
        changed = ended(record, MigrationState.CANCELLED, reason, now)
        sentence = f"migration {record.id} is cancelled: {reason}"
    else:
        return None
    put = Put(KEYS.migration(record.id), changed, migration.revision)
    guards = (grant, Guard(KEYS.ownership(owner.job), ownership.revision))
    return Decision("migrate.plan", sentence, (put,), guards, f"migration/{record.id}", (), record.trace)


def _exhausted(
    world: GlobalState, ownership: Versioned[OwnershipRecord], cause: Cause, guards: tuple[Guard, ...]
) -> Decision:
    """One crash too many: the count passes the limit, and the global leader fails the job on it."""
    owner = ownership.record
    job = world.jobs[owner.job]
    limit = job.record.spec.max_restarts
    reason = f"{cause.reason}; that is one more than spec.max_restarts = {limit} allows"
    put = Put(KEYS.job(owner.job), replace(job.record, restarts=limit + 1, reason=reason), job.revision)
    every = (*guards, Guard(KEYS.ownership(owner.job), ownership.revision))
    return Decision("migrate.plan", f"{owner.job} is given up: {reason}", (put,), every, f"job/{owner.job}")
