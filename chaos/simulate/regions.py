"""Scenarios of whole regions: killed, or cut off from the global store and the others; and what is left when they come
back. Each region has a store of its own, the global one is a third."""

from __future__ import annotations

from dataclasses import replace

from chaos.simulate.executor import SimJob
from chaos.simulate.grid import Shape, SimGrid
from chaos.simulate.history import GLOBAL_STORE, Started, Stepped
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
from gridkeeper.ids import NodeId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import RegionLossPolicy
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
        Claim("the region holds its grant again", grant is not None and not grant.revoked, f"{grant}"),
    )


REGIONS: dict[str, Story] = {
    story.name: story
    for story in (Story("region-killed", "every process of a region dies, and comes back", region_killed, SHAPE),)
}


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


def _moved_once(grid: SimGrid, owner: OwnershipRecord) -> tuple[Claim, ...]:
    starts = [entry for entry in grid.history if isinstance(entry, Started)]
    where = ", ".join(f"{s.epoch} on {s.node} at {s.at_ms} ms" for s in starts)
    away = [s for s in starts if grid.hosts[NodeId(s.node)].region != owner.region]
    done = [entry.step for entry in grid.history if isinstance(entry, Stepped)]
    redone = len(done) - len(set(done))
    return (
        Claim("the job ran in two epochs, and did not go back by itself", len(starts) == 2, where, calm=True),
        Claim("it was recovered in another region", bool(away), where),
        Claim("at most one checkpoint interval is redone", redone <= EVERY, f"{redone} steps", calm=True),
        Claim("one migration", len(moves_of_job(grid)) == 1, ", ".join(m.id for m in moves_of_job(grid)), calm=True),
    )
