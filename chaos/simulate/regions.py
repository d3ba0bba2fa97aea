"""Scenarios of whole regions: killed, or cut off from the global store and the others; and what is left when they come
back. Each region has a store of its own, the global one is a third."""

from __future__ import annotations

from dataclasses import replace

from chaos.simulate.executor import SimJob
from chaos.simulate.grid import Shape, SimGrid
from chaos.simulate.history import GLOBAL_STORE, Started, Stepped
from chaos.simulate.network import BOTH, DOWN, UP
from chaos.simulate.play import Claim, Story
from chaos.simulate.stories import (
    EVERY,
    JOB,
    SOON_MS,
    STEP_MS,
    STEPS,
    finished,
    job_ended,
    moves_of_job,
    nothing_drained,
    recovered,
    steady,
)
from controlplane.domain.taken import TAKEN
from gridkeeper import codec
from gridkeeper.ids import NodeId, RegionId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import RegionLossPolicy
from gridkeeper.ports.store import PutOp
from gridkeeper.records.faults import IncidentRecord, IncidentState, LeaderRecord
from gridkeeper.records.jobs import GrantRecord, OwnershipRecord
from gridkeeper.records.regions import LossRecord, LossState

HASTY = replace(default_policy(), region_loss=RegionLossPolicy(after_ms=6_000, veto_window_ms=2_000))
SHAPE = Shape(policy=HASTY, jobs={JOB: SimJob(STEP_MS, EVERY, STEPS)})


async def region_killed(grid: SimGrid) -> tuple[Claim, ...]:
    """Every node and every replica of the job's region dies at once; then all of them come back."""
    owner = await steady(grid)
    await _kill(grid, owner.region)
    killed = grid.now_ms
    await grid.until(lambda: _loss(grid, owner, LossState.DECLARED), f"{owner.region} declared lost", SOON_MS)
    declared_ms = grid.now_ms - killed
    await recovered(grid)
    _start(grid, owner.region)
    back = await grid.until(lambda: _loss(grid, owner, LossState.RETURNED), f"the return of {owner.region}", SOON_MS)
    grant = grid.one(GLOBAL_STORE, KEYS.grant(owner.region), GrantRecord)
    await finished(grid)
    policy = HASTY.region_loss
    return (
        *await job_ended(grid),
        nothing_drained(grid),
        *_moved_once(grid, owner),
        Claim("it was declared after its silence and the window", declared_ms >= policy.after_ms, f"{declared_ms} ms"),
        Claim("the verdict counts its jobs", back.jobs == 1, f"{back.jobs}"),
        *_said(grid, owner),
        Claim("the region holds its grant again", grant is not None and not grant.revoked, f"{grant}"),
    )


async def region_cut_off(grid: SimGrid) -> tuple[Claim, ...]:
    """The job's region reaches neither the global store nor the other one, or is not answered by it: its processes go
    on, its job ends by F, and is taken over; then the network heals."""
    owner = await steady(grid)
    (other,) = (name for name in grid.shape.regions if name != owner.region)
    ways = (BOTH, UP, DOWN)
    grid.cut_regions(owner.region, other, ways[int(grid.rng.uniform(0, len(ways)))])
    grid.cut_off_globally(owner.region)
    cut_ms = grid.now_ms
    await grid.until(lambda: _loss(grid, owner, LossState.DECLARED), f"{owner.region} declared lost", SOON_MS)
    declared_ms = grid.now_ms - cut_ms
    await recovered(grid)
    grid.heal_region(owner.region)
    await grid.until(lambda: _loss(grid, owner, LossState.RETURNED), f"the return of {owner.region}", SOON_MS)
    await finished(grid)
    timings, policy = grid.shape.timings, HASTY.region_loss
    last_ms = max(e.at_ms for e in grid.history if isinstance(e, Stepped) and e.epoch == owner.epoch)
    return (
        *await job_ended(grid),
        nothing_drained(grid),
        *_moved_once(grid, owner, cut_ms),
        Claim("its old epoch ended by F", last_ms - cut_ms <= timings.fence_ms, f"{last_ms - cut_ms} ms"),
        *_said(grid, owner),
        Claim("it was declared after its silence and the window", declared_ms >= policy.after_ms, f"{declared_ms} ms"),
    )


async def region_by_promises(grid: SimGrid) -> tuple[Claim, ...]:
    """The job's region does not reach the global store, but the other one: far beyond the time after which it would be
    lost and its job elsewhere, the job goes on in its epoch, and so it does when the network has healed."""
    owner = await steady(grid)
    grid.cut_off_globally(owner.region)
    cut_ms = grid.now_ms
    patience = HASTY.region_loss
    await grid.clock.sleep(patience.after_ms + patience.veto_window_ms + 2 * grid.shape.timings.takeover_ms)
    steps = [e for e in grid.history if isinstance(e, Stepped) and e.at_ms >= cut_ms]
    doubts = grid.all(GLOBAL_STORE, KEYS.prefix("losses"), LossRecord)
    grid.heal_region(owner.region)
    await finished(grid)
    starts = [entry for entry in grid.history if isinstance(entry, Started)]
    lasted_ms = steps[-1].at_ms - cut_ms if steps else 0
    return (
        *await job_ended(grid),
        nothing_drained(grid),
        Claim("it went on all the time", lasted_ms >= 2 * grid.shape.timings.takeover_ms, f"{lasted_ms} ms", calm=True),
        Claim("nobody took its region for lost", not doubts, f"{doubts}", calm=True),
        Claim("the job ran in one epoch", len(starts) == 1, f"{len(starts)} starts", calm=True),
    )


async def promises_end(grid: SimGrid) -> tuple[Claim, ...]:
    """Of three regions the job's lives on the promises of the others, until one of them falls silent to it: one is
    enough for its job to end by F and to be taken over."""
    owner = await steady(grid)
    grid.cut_off_globally(owner.region)
    await grid.clock.sleep(2 * grid.shape.timings.fence_ms)
    steps = [e.at_ms for e in grid.history if isinstance(e, Stepped)]
    lived = grid.now_ms - max(steps) < grid.shape.timings.fence_ms
    others = sorted(name for name in grid.shape.regions if name != owner.region)
    ways = (BOTH, UP, DOWN)
    silent = others[int(grid.rng.uniform(0, len(others)))]
    grid.cut_regions(owner.region, silent, ways[int(grid.rng.uniform(0, len(ways)))])
    silent_ms = grid.now_ms
    await recovered(grid)
    grid.heal_region(owner.region)
    await grid.until(lambda: _loss(grid, owner, LossState.RETURNED), f"the return of {owner.region}", SOON_MS)
    await finished(grid)
    last_ms = max(e.at_ms for e in grid.history if isinstance(e, Stepped) and e.epoch == owner.epoch)
    ended_ms, fence_ms = last_ms - silent_ms, grid.shape.timings.fence_ms
    return (
        *await job_ended(grid),
        nothing_drained(grid),
        Claim("it lived on promises at first", lived, f"last step at {max(steps)} ms", calm=True),
        Claim("its old epoch ended by F", ended_ms <= fence_ms + grid.shape.timings.stale_ms, f"{ended_ms} ms"),
    )


async def promises_revoked(grid: SimGrid) -> tuple[Claim, ...]:
    """While the job lives on promises, a human wants it elsewhere. Its region cannot be told; the other one takes its
    promise back, and R later the job is its own."""
    owner = await steady(grid)
    grid.cut_off_globally(owner.region)
    cut_ms = grid.now_ms
    await grid.clock.sleep(grid.shape.timings.fence_ms)
    await grid.migrate(JOB, "the region is to be emptied")
    await recovered(grid)
    grid.heal_region(owner.region)
    await finished(grid)
    old = [e.at_ms for e in grid.history if isinstance(e, Stepped) and e.epoch == owner.epoch]
    lived_ms = max(old) - cut_ms
    return (
        *await job_ended(grid),
        nothing_drained(grid),
        Claim("it lived on promises first", lived_ms > 2 * grid.shape.timings.fence_ms, f"{lived_ms} ms", calm=True),
        Claim("and ended elsewhere", bool(_away(grid, owner)), f"{_away(grid, owner)}"),
    )


async def not_named(grid: SimGrid) -> tuple[Claim, ...]:
    """The job's region dies, and its grant names only one of the others: another one that has come to lead the world
    could wait for ever for R to pass."""
    owner = await steady(grid)
    await _kill(grid, owner.region)

    def leader() -> RegionId | None:
        record = grid.one(GLOBAL_STORE, KEYS.leader, LeaderRecord)
        region = grid.servers[record.replica].region if record else owner.region
        return region if region != owner.region else None

    leading = await grid.until(leader, "a leader of the world", SOON_MS)
    grant = grid.one(GLOBAL_STORE, KEYS.grant(owner.region), GrantRecord)
    assert grant is not None
    (named,) = (region for region in grant.peers if region != leading)
    value = codec.encode(replace(grant, peers=(named,)))
    await grid.stores[GLOBAL_STORE].client("the story").txn([], [PutOp(KEYS.grant(owner.region), value)])
    await recovered(grid)
    decided = leader()
    _start(grid, owner.region)
    await finished(grid)
    return (
        *await job_ended(grid),
        nothing_drained(grid),
        *_moved_once(grid, owner),
        Claim("the region that is named leads the world", decided == named, f"{decided}; named: {named}", calm=True),
    )


LONG = replace(SHAPE, nodes=1, devices=4, jobs={JOB: SimJob(3 * STEP_MS, EVERY, STEPS)})

REGIONS: dict[str, Story] = {
    story.name: story
    for story in (
        Story("region-killed", "every process of a region dies, and comes back", region_killed, SHAPE),
        Story("region-cut-off", "a region is cut off from everything, and healed", region_cut_off, LONG),
        Story("region-by-promises", "a region loses the global store alone", region_by_promises, LONG),
        Story(
            "promises-revoked", "a job that lives on promises is wanted elsewhere", promises_revoked,
            replace(LONG, jobs={JOB: SimJob(4 * STEP_MS, EVERY, STEPS)}),
        ),
        Story(
            "not-named", "a lost region's grant names one of the others only", not_named,
            replace(SHAPE, nodes=1, devices=4, regions=("east", "west", "north")),
        ),
        Story(
            "promises-end", "one of the regions that promised falls silent", promises_end,
            replace(LONG, regions=("east", "west", "north")),
        ),
    )
}  # fmt: skip


async def _kill(grid: SimGrid, region: RegionId) -> None:
    for node, host in grid.hosts.items():
        if host.region == region:
            await grid.kill_node(node)
    for name, server in grid.servers.items():
        if server.region == region:
            await grid.kill_replica(name)


def _start(grid: SimGrid, region: RegionId) -> None:
    for name, server in grid.servers.items():
        if server.region == region:
            grid.start_replica(name)
    for node, host in grid.hosts.items():
        if host.region == region:
            grid.boot_node(node)


def _loss(grid: SimGrid, owner: OwnershipRecord, state: LossState) -> LossRecord | None:
    record = grid.one(GLOBAL_STORE, KEYS.loss(owner.region), LossRecord)
    return record if record and record.state is state else None


def _moved_once(grid: SimGrid, owner: OwnershipRecord, fault_ms: int = 1 << 60) -> tuple[Claim, ...]:
    """``fault_ms``: what the old epoch does later is lost in any case."""
    starts = [entry for entry in grid.history if isinstance(entry, Started)]
    where = ", ".join(f"{s.epoch} on {s.node} at {s.at_ms} ms" for s in starts)
    away = _away(grid, owner)
    done = [
        entry.step
        for entry in grid.history
        if isinstance(entry, Stepped) and (entry.epoch > owner.epoch or entry.at_ms <= fault_ms)
    ]
    redone = len(done) - len(set(done))
    return (
        Claim("the job ran in two epochs, and did not go back by itself", len(starts) == 2, where, calm=True),
        Claim("it was recovered in another region", bool(away), where),
        Claim("at most one checkpoint interval is redone", redone <= EVERY, f"{redone} steps", calm=True),
        Claim("one migration", len(moves_of_job(grid)) == 1, ", ".join(m.id for m in moves_of_job(grid)), calm=True),
    )


def _said(grid: SimGrid, owner: OwnershipRecord) -> tuple[Claim, ...]:
    """The region that is back has told its own operators."""
    found = grid.all(owner.region, RegionKeys(owner.region).prefix("incidents"), IncidentRecord)
    told = [incident for incident in found if incident.fault_class == TAKEN]
    shown = "; ".join(f"{incident.title} ({incident.resolution or 'open'})" for incident in told)
    over = bool(told) and told[0].state is IncidentState.RESOLVED
    return (
        Claim("its incident tells what was done", len(told) == 1 and f"{JOB} to " in told[0].title, shown),
        Claim("and is over when nothing of it is left", over, shown),
    )


def _away(grid: SimGrid, owner: OwnershipRecord) -> list[Started]:
    """Starts of the job in other regions than its first owner's."""
    starts = [entry for entry in grid.history if isinstance(entry, Started)]
    return [s for s in starts if grid.hosts[NodeId(s.node)].region != owner.region]
