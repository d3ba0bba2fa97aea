"""Stories of a job on three nodes of four: one member is lost, the others stay, the spare takes its place."""

from __future__ import annotations

from collections import Counter

from chaos.simulate.executor import SimJob
from chaos.simulate.grid import Shape, SimGrid
from chaos.simulate.history import GLOBAL_STORE, Gone, Started, Stepped
from chaos.simulate.play import Claim, Story
from chaos.simulate.stories import (
    DEVICES,
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
from failover.domain.gang import Member, members_of, nodes_of
from gridkeeper.ids import Epoch
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.records.faults import DrainRecord, DrainState
from gridkeeper.records.jobs import CheckpointRecord, MigrationState, OwnershipRecord

NODES = 3
SHAPE = Shape(nodes=NODES + 1, devices=DEVICES, jobs={JOB: SimJob(STEP_MS, EVERY, STEPS)})


async def member_fails(grid: SimGrid) -> tuple[Claim, ...]:
    """An uncorrectable memory error kills the process of one rank; the others wait for it in vain."""
    owner = await steady(grid, NODES)
    bad = _one(grid, owner)
    device = bad.devices[int(grid.rng.uniform(0, DEVICES))]
    pid = await grid.pid(bad.node, JOB)
    grid.set_metrics(device, ecc_uncorrected=1)
    grid.xid(device, 48)
    grid.xid(device, 94, pid=pid)
    grid.crash_member(JOB, bad.node)
    await grid.until(lambda: _drained(grid, owner), f"{device} drained", SOON_MS)
    await recovered(grid)
    await finished(grid)
    return (*await job_ended(grid), *_replaced(grid, owner, bad), *_redone(grid, EVERY))


async def member_leaves(grid: SimGrid) -> tuple[Claim, ...]:
    """A device of one rank has a row remap pending and more corrected errors: all stop after the same step."""
    owner = await steady(grid, NODES)
    bad = _one(grid, owner)
    device = bad.devices[int(grid.rng.uniform(0, DEVICES))]
    grid.set_metrics(device, remap_pending=1)

    def drained() -> bool:
        grid.set_metrics(device, ecc_corrected=grid.metric(device, "ecc_corrected") + 2)
        return _drained(grid, owner)

    await grid.until(drained, f"{device} drained", SOON_MS)
    await recovered(grid)
    await finished(grid)
    return (*await job_ended(grid), *_replaced(grid, owner, bad), *_redone(grid, 0))


async def member_lost(grid: SimGrid) -> tuple[Claim, ...]:
    """The node of one rank loses power: nobody starts anew before R, though the other ranks are long stopped."""
    owner = await steady(grid, NODES)
    bad = _one(grid, owner)
    lost_ms = grid.now_ms
    await grid.kill_node(bad.node)
    await recovered(grid)
    starts = [entry.at_ms for entry in grid.history if isinstance(entry, Started) and entry.epoch != owner.epoch]
    grid.boot_node(bad.node)
    await finished(grid)
    waited = min(starts) - lost_ms
    return (
        *await job_ended(grid),
        nothing_drained(grid),
        *_replaced(grid, owner, bad),
        *_redone(grid, EVERY),
        Claim("the takeover waits R", waited >= grid.shape.timings.takeover_ms, f"{waited} ms"),
    )


GANGS: dict[str, Story] = {
    story.name: story
    for story in (
        Story("gang-member-fails", "a device of one member of a gang fails", member_fails, SHAPE),
        Story("gang-member-leaves", "a device of one member of a gang is to be drained", member_leaves, SHAPE),
        Story("gang-member-lost", "the node of one member of a gang loses power", member_lost, SHAPE),
    )
}


def _one(grid: SimGrid, owner: OwnershipRecord) -> Member:
    """One of the members, by the seed."""
    return members_of(owner.devices)[int(grid.rng.uniform(0, NODES))]


def _drained(grid: SimGrid, owner: OwnershipRecord) -> bool:
    every = grid.all(owner.region, RegionKeys(owner.region).prefix("drains"), DrainRecord)
    return any(drain.state is DrainState.DRAINED for drain in every)


def _replaced(grid: SimGrid, before: OwnershipRecord, bad: Member) -> tuple[Claim, ...]:
    """One new epoch: the bad member's rank is on the spare, the others are where they were; one checkpoint of all."""
    after = grid.owner(JOB)
    assert after is not None  # ownership is never deleted
    nodes, old = nodes_of(after), nodes_of(before)
    stay = [node for rank, node in enumerate(old) if rank != bad.rank and nodes[rank] == node]
    epochs = {entry.epoch for entry in grid.history if isinstance(entry, Started)}
    done = [move for move in moves_of_job(grid) if move.state is MigrationState.DONE]
    kept = grid.all(GLOBAL_STORE, KEYS.prefix("checkpoints"), CheckpointRecord)
    torn = [record.step for record in kept if _ranks_of(grid, record) != NODES]
    return (
        Claim("the gang stays in its region", after.region == before.region, after.region, calm=True),
        Claim("the good members stay, at their ranks", len(stay) == NODES - 1, f"{old} then {nodes}", calm=True),
        Claim("the bad member's node is left", bad.node not in nodes, ", ".join(nodes), calm=True),
        Claim(
            "two epochs, one migration", len(epochs) == 2 and len(done) == 1, f"{len(epochs)}, {len(done)}", calm=True
        ),
        Claim("epochs do not overlap", not _overlap(grid, before.epoch), _overlap(grid, before.epoch)),
        Claim("every checkpoint has all ranks' parts", bool(kept) and not torn, f"{len(kept)} kept, torn: {torn}"),
    )


def _overlap(grid: SimGrid, old: Epoch) -> str:
    """Of the first epoch and any later one, over all nodes; "" if none."""
    ends = [entry.at_ms for entry in grid.history if isinstance(entry, Gone) and entry.epoch == old]
    starts = [entry.at_ms for entry in grid.history if isinstance(entry, Started) and entry.epoch > old]
    late = [at for at in ends if starts and at > min(starts)]
    return f"a member of {old} ends at {late[0]} ms, after {min(starts)} ms" if late else ""


def _ranks_of(grid: SimGrid, record: CheckpointRecord) -> int:
    """How many ranks' files its manifest names."""
    for store in grid.checkpoints.values():
        data = store.manifests.get((record.job, record.step, record.digest))
        if data is not None:
            return data.count(b'"path":"state')
    return 0


def _redone(grid: SimGrid, limit: int) -> tuple[Claim, ...]:
    """Steps that were done in more than one epoch; each rank does each step, so ranks do not count."""
    done = {(entry.epoch, entry.step) for entry in grid.history if isinstance(entry, Stepped)}
    redone = sum(count - 1 for count in Counter(step for _, step in done).values())
    return (Claim(f"at most {limit} steps are done again", redone <= limit, f"{redone} steps", calm=True),)
