"""Pure: a human's wish to move a job, or word on a region that may be lost."""

from __future__ import annotations

from controlplane.rpc.intents import Plan, Wish
from controlplane.rpc.refusal import invalid, not_found, precondition
from failover.domain.births import Cause, begin
from failover.domain.indexes import active_migrations, run_key, run_of, unreadable
from failover.domain.losses import decide_vote
from gridkeeper.decision import Decision, Now, guards_of
from gridkeeper.ids import JobId, RegionId
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import TERMINAL_JOB, MigrationKind, RunPhase
from gridkeeper.records.regions import LossState
from gridkeeper.snapshot import GlobalState


def migrate_job(name: str, to_region: str, wish: Wish, world: GlobalState, now: Now) -> Plan:
    """A planned move of a running job, from here on the same as one for a drain. Asking twice for the same move changes
    nothing. Raises ``Refusal``."""
    job = JobId(name)
    held = world.jobs.get(job)
    if held is None:
        raise not_found("job", name, world.jobs.keys(), "in the grid")
    region = _checked_region(to_region, held.record.spec.regions, world)
    record = held.record
    active = active_migrations(world).get(job)
    if active is not None:
        moving = active.record
        if moving.requested_by == wish.actor and moving.wanted_region == region:
            return Plan(f"job {name} is being moved already, by migration {moving.id}", _objects(name, moving.id))
        raise precondition(
            f"job {name} is in migration {moving.id} ({moving.state.value}): wait until it is over, then ask again"
        )
    if record.state in TERMINAL_JOB or record.desired is Desired.STOP:
        raise precondition(f"job {name} is {record.state.value} and is to stop or has ended; only a running job moves")
    corrupt = unreadable(world, job)
    if corrupt:
        raise precondition(f"job {name} cannot be moved: {corrupt}")
    ownership = world.ownership.get(job)
    run = run_of(world, job, ownership.record.epoch) if ownership else None
    if ownership is None or run is None or run.record.phase is not RunPhase.RUNNING:
        raise precondition(f"job {name} is {record.state.value}, not running yet; ask again when it runs")
    where = f" to {region}" if region else ""
    cause = Cause(
        MigrationKind.PLANNED,
        f"{wish.actor} asked for a move{where}: {wish.reason}",
        now.ledger_ms,
        trace=wish.trace,
        requested_by=wish.actor,
        wanted_region=region,
    )
    guards = guards_of([(run_key(job, ownership.record.epoch), run)])
    decision = begin(world, held, ownership, cause, now, guards)
    migration = decision.subject.removeprefix("migration/")
    return Plan(f"job {name} is being moved{where} by migration {migration}", _objects(name, migration), decision)


def _objects(job: str, migration: str) -> tuple[str, ...]:
    return (f"job/{job}", f"migration/{migration}")


def _checked_region(to_region: str, allowed: tuple[RegionId, ...], world: GlobalState) -> RegionId:
    region = RegionId(to_region)
    if not to_region:
        return region
    if region not in world.regions:
        raise invalid(
            f"to_region: there is no region {to_region[:80]!r}; use one of {', '.join(sorted(world.regions))}"
        )
    if allowed and region not in allowed:
        raise invalid(f"to_region: the job's spec allows {', '.join(allowed)} only; use one of these")
    return region


def decide_loss(region: RegionId, approve: bool, wish: Wish, world: GlobalState, now: Now) -> Plan:
    """A human's word on a region that may be lost."""
    objects = (f"loss/{region}",)
    if region not in world.grants:
        raise not_found("region", region, world.grants.keys(), "in the grid")
    decided = decide_vote(world, region, approve, wish.actor, wish.reason, wish.trace, now)
    if isinstance(decided, Decision):
        return Plan(decided.sentence, objects, decided)
    held, revoked = world.losses.get(region), world.grants[region].record.revoked
    wanted = LossState.APPROVED if approve else LossState.VETOED
    if (approve and revoked) or (held is not None and held.record.state is wanted):
        return Plan(decided, objects)
    raise precondition(decided)
