"""Whether a region is lost, and what becomes of its jobs. Pure; decided by the global leader.

A region whose grant was not extended for ``region_loss.after_ms`` is *suspected*; a human has ``veto_window_ms`` to say
no, or may say yes at once. Then it is *declared* lost: its grant is revoked, durably, in one transaction with the
verdict. From there no replica of it renews anything and no leader of it writes globally. Its jobs get recoveries, in
order of priority, as many as there is room for; each waits for R after the durable commit of its own revoke intent
(``migrate``), as every recovery does. Nothing goes back by itself when the region returns (``grants``).

What is silence is measured on this process's clock from when it first saw the last extension, so a new decider waits
the full time anew, and what is asked of a human is asked in the store, where every leader sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from failover.domain.births import MACHINE, Cause, begin
from failover.domain.indexes import (
    BEFORE_STOP,
    LANDED,
    active_migrations,
    confirmed_stopped,
    current_offer,
    run_key,
    run_of,
    unreadable,
    wants_to_run,
)
from failover.domain.landing import stamped
from failover.domain.promises import promised_ms
from gridkeeper.decision import ABSENT, Decision, Guard, Now, Put, Versioned, guards_of
from gridkeeper.ids import JobId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.policy.model import Mode
from gridkeeper.records.jobs import (
    TERMINAL_JOB,
    GrantRecord,
    MigrationKind,
    MigrationRecord,
    MigrationState,
    OwnershipRecord,
)
from gridkeeper.records.regions import LossRecord, LossState
from gridkeeper.snapshot import GlobalState, Settings

Grant = Versioned[GrantRecord]
Loss = Versioned[LossRecord]
Owner = Versioned[OwnershipRecord]

OPEN = frozenset({LossState.SUSPECTED, LossState.VETOED, LossState.APPROVED})


def decide_losses(world: GlobalState, settings: Settings, now: Now, here: RegionId) -> tuple[Decision, ...]:
    """At most one decision per region and one per job of a lost one. ``here``: the decider's own region, which is never
    lost while it decides."""
    if not world.fresh:
        return ()
    silent = {
        region for region, grant in world.grants.items() if region != here and _silent(world, grant, settings, now)
    }
    decisions: list[Decision] = []
    for region, grant in sorted(world.grants.items()):
        if KEYS.grant(region) in world.suspect_keys or KEYS.loss(region) in world.suspect_keys:
            continue
        loss = world.losses.get(region)
        if grant.record.revoked:
            continue
        if loss is not None and loss.record.state in OPEN:
            decision = _settle(world, grant, loss, settings, now, len(silent) == 1 and region != here)
        else:
            decision = _suspect(world, grant, loss, settings, now) if region in silent else None
        if decision is not None:
            decisions.append(decision)
    return (*decisions, *_take_over(world, now))


def _silent(world: GlobalState, grant: Grant, settings: Settings, now: Now) -> bool:
    """Counted from when this process began to keep its own time: after an outage of the store, or of itself, it is the
    observer that was broken. A region that lives on promises, ours among them, is not silent."""
    since = max(grant.seen_ms, now.steady_ms, promised_ms(world, grant.record.region) or 0)
    return not grant.record.revoked and now.mono_ms - since >= settings.policy.region_loss.after_ms


def _suspect(world: GlobalState, grant: Grant, loss: Loss | None, settings: Settings, now: Now) -> Decision:
    policy, region = settings.policy.region_loss, grant.record.region
    last = grant.record.extended_ms or grant.record.granted_ms
    jobs = sum(1 for _ in _owners(world, region))
    reason = f"its grant was not extended within {policy.after_ms} ms (last by {grant.record.replica})"
    record = LossRecord(
        region, LossState.SUSPECTED, reason, last, now.ledger_ms, policy.veto_window_ms, int(grant.revision), "", 0,
        jobs, 0, loss.record.trace if loss else "",
    )  # fmt: skip
    put = Put(KEYS.loss(region), record, loss.revision if loss else ABSENT)
    how = f"its {jobs} jobs are taken over in {policy.veto_window_ms} ms unless a human vetoes"
    if not policy.automatic or settings.policy.mode is not Mode.ACT:
        how = f"its {jobs} jobs are taken over when a human approves"
    sentence = f"region {region} may be lost: {reason}; {how}"
    guards = (Guard(KEYS.grant(region), grant.revision),)
    return Decision("region.suspect", sentence, (put,), guards, f"region/{region}")


def _settle(
    world: GlobalState, grant: Grant, loss: Loss, settings: Settings, now: Now, may_decide: bool
) -> Decision | None:
    record, policy = loss.record, settings.policy.region_loss
    region = record.region
    guards = (Guard(KEYS.grant(region), grant.revision),)
    if record.grant_revision != grant.revision:
        heard = replace(record, state=LossState.RETURNED, returned_ms=now.ledger_ms, decided_by=record.decided_by)
        put = Put(KEYS.loss(region), heard, loss.revision)
        sentence = f"region {region} is heard again before anything was taken over"
        return Decision("region.heard", sentence, (put,), guards, f"region/{region}")
    by = record.decided_by
    if record.state is LossState.SUSPECTED:
        automatic = policy.automatic and settings.policy.mode is Mode.ACT and may_decide
        window = now.mono_ms - max(loss.seen_ms, now.steady_ms) >= record.veto_window_ms
        if not automatic or not window or not _silent(world, grant, settings, now):
            return None
        by = MACHINE
    elif record.state is not LossState.APPROVED:
        return None
    jobs = sum(1 for _ in _owners(world, region))
    said = f"approved by {by}" if by != MACHINE else f"nobody vetoed within {record.veto_window_ms} ms"
    reason = f"{record.reason}; {said}"
    declared = replace(record, state=LossState.DECLARED, decided_by=by, decided_ms=now.ledger_ms, jobs=jobs)
    writes = (
        Put(KEYS.loss(region), declared, loss.revision),
        Put(KEYS.grant(region), replace(grant.record, revoked=reason), grant.revision),
    )
    sentence = (
        f"region {region} is declared lost: {reason}; its grant is revoked and its {jobs} jobs are recovered "
        f"elsewhere, none before R = {settings.timings.takeover_ms} ms"
    )
    return Decision("region.lost", sentence, writes, (), f"region/{region}", (), record.trace)


def _owners(world: GlobalState, region: RegionId) -> Iterator[Owner]:
    """Ownerships in the region of jobs that have not ended."""
    for job, owner in world.ownership.items():
        held = world.jobs.get(job)
        if owner.record.region == region and held is not None and held.record.state not in TERMINAL_JOB:
            yield owner


def _take_over(world: GlobalState, now: Now) -> Iterator[Decision]:
    """Recoveries for the jobs of lost regions: higher priority first, then who was submitted first, and no more than
    there is room for; the rest stays in the queue, of which ``queued`` tells."""
    lost = {region for region, grant in world.grants.items() if grant.record.revoked}
    if not lost:
        return
    begun, _ = _queue(world, lost)
    active = active_migrations(world)
    for job in begun:
        yield _recover(world, job, active.get(job), now)


def _queue(world: GlobalState, lost: set[RegionId]) -> tuple[list[JobId], dict[JobId, str]]:
    """(jobs to recover now, job -> why it waits) of the jobs that lost regions own and nothing moves yet."""
    active = active_migrations(world)
    waiting: list[tuple[int, int, JobId]] = []
    asked = 0
    for region in lost:
        for owner in _owners(world, region):
            job = owner.record.job
            if not wants_to_run(world, job) or unreadable(world, job) or _over(world, owner):
                continue
            migration = active.get(job)
            if migration is not None and _is_moving(migration):
                offer = current_offer(world, migration.record)
                reserved = offer is not None and not offer.record.refusal  # the room that is left does not count it
                asked += 0 if reserved else owner.record.spec.all_devices
            else:
                record = world.jobs[job].record
                waiting.append((-record.spec.priority, record.submitted_ms, job))
    room = {
        r: v.record for r, v in world.regions.items() if r in world.grants and r not in lost and not v.record.in_doubt
    }
    left = sum(record.free for record in room.values()) - asked
    begun: list[JobId] = []
    queued: dict[JobId, str] = {}
    ahead = ""
    for _, _, job in sorted(waiting):
        spec = world.jobs[job].record.spec
        need, together = spec.all_devices, max(1, spec.devices)
        largest = max((v.largest_free for r, v in room.items() if not spec.regions or r in spec.regions), default=0)
        if together <= largest and need <= left and not ahead:
            begun.append(job)
            left -= need
        elif together > largest:
            where = f" of {', '.join(spec.regions)}" if spec.regions else ""
            queued[job] = f"no node of another region{where} has {together} free devices"
        else:
            queued[job] = f"{ahead or 'jobs that are recovered already'} goes first and there is not room for all"
            ahead = ahead or str(job)
    return begun, queued


def queued(world: GlobalState) -> dict[JobId, str]:
    """Why each job of a lost region that nothing moves yet has to wait."""
    lost = {region for region, grant in world.grants.items() if grant.record.revoked}
    if not lost:
        return {}
    reasons = _queue(world, lost)[1]
    return {job: f"region {world.ownership[job].record.region} is lost, and {why}" for job, why in reasons.items()}


def _over(world: GlobalState, owner: Owner) -> bool:
    """It ended by itself with success: the job's own decision closes it."""
    run = run_of(world, owner.record.job, owner.record.epoch)
    if run is None or not confirmed_stopped(run) or run.record.stopped_by_us:
        return False
    return run.record.exit_code == 0 and run.record.exit_signal == 0


def _is_moving(migration: Versioned[MigrationRecord]) -> bool:
    """It is on its way out of its epoch, by itself: a planned move that has not asked for the stop yet waits for the
    lost region for ever."""
    if migration.record.state in LANDED:
        return False
    return not (migration.record.kind is MigrationKind.PLANNED and migration.record.state in BEFORE_STOP)


def _recover(world: GlobalState, job: JobId, migration: Versioned[MigrationRecord] | None, now: Now) -> Decision:
    owner, record = world.ownership[job], world.jobs[job]
    region = owner.record.region
    grant, loss = world.grants[region], world.losses.get(region)
    run = run_of(world, job, owner.record.epoch)
    guards = (
        Guard(KEYS.grant(region), grant.revision),
        *guards_of([(run_key(job, owner.record.epoch), run)]),
    )
    reason = f"region {region} is lost: {grant.record.revoked}"
    if migration is not None and migration.record.state in BEFORE_STOP:
        changed = replace(
            migration.record, kind=MigrationKind.RECOVERY, reason=f"{migration.record.reason}; then {reason}"
        )
        put = Put(KEYS.migration(changed.id), stamped(changed, MigrationState.PLANNED, now), migration.revision)
        sentence = f"migration {changed.id} becomes a recovery: {reason}"
        own = (*guards, Guard(KEYS.ownership(job), owner.revision))
        return Decision("migrate.plan", sentence, (put,), own, f"migration/{changed.id}", (), changed.trace)
    fault_ms = loss.record.silent_ms if loss else now.ledger_ms
    cause = Cause(MigrationKind.RECOVERY, reason, fault_ms, evidence=(f"loss/{region}",), trace=owner.record.trace)
    return begin(world, record, owner, cause, now, guards)


def decide_vote(
    world: GlobalState, region: RegionId, approve: bool, actor: str, reason: str, trace: str, now: Now
) -> Decision | str:
    """A human's word on a region that may be lost; a sentence instead: why there is nothing to decide."""
    grant, loss = world.grants.get(region), world.losses.get(region)
    if grant is None:
        return f"there is no region {region} in the grid"
    if grant.record.revoked:
        return f"region {region} is declared lost already; its jobs are not given back by themselves"
    if loss is None or loss.record.state not in OPEN or loss.record.grant_revision != grant.revision:
        return (
            f"region {region} is not suspected of being lost: its grant is extended, or, if the global store is away, "
            "it lives on the promises of the other regions"
        )
    state = LossState.APPROVED if approve else LossState.VETOED
    if loss.record.state is state:
        return f"region {region} is {state.value} already, by {loss.record.decided_by}"
    record = replace(loss.record, state=state, decided_by=actor, decided_ms=now.ledger_ms, trace=trace)
    what = "is to be taken for lost" if approve else "is not to be taken for lost"
    sentence = f"region {region} {what}: {reason}"
    put = Put(KEYS.loss(region), record, loss.revision)
    guards = (Guard(KEYS.grant(region), grant.revision),)
    return Decision("region.vote", sentence, (put,), guards, f"region/{region}", (actor,), trace)
