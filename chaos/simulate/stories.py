"""Scenarios: what is done to a simulated grid, and what must have come of it besides the invariants."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress

from chaos.simulate.executor import SimJob, loss_of, state_after
from chaos.simulate.gray import STORIES as GRAY
from chaos.simulate.grid import NotSeen, Shape, SimGrid
from chaos.simulate.history import GLOBAL_STORE, Gone, Started, Stepped
from chaos.simulate.limits_story import SHARED_BUDGET
from chaos.simulate.play import Claim, Story
from chaos.simulate.storm import STORM
from gridkeeper.ids import DeviceId, JobId, NodeId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.records.books import AccountRecord
from gridkeeper.records.faults import DrainRecord, DrainState, IncidentRecord
from gridkeeper.records.fleet import HealthRecord, HealthState, LivenessRecord, NodeState
from gridkeeper.records.jobs import (
    HeadRecord,
    JobRecord,
    JobState,
    MigrationRecord,
    MigrationState,
    OwnershipRecord,
    ReservationRecord,
    RunRecord,
)
from gridkeeper.v1 import records_pb2

JOB = JobId("train")
STEPS = 160
STEP_MS = 100
EVERY = 20
DEVICES = 4
STEADY_MS = 20_000
SOON_MS = 60_000
"""Architecture §4.8: R + 60 s after the last fault everything has found its end; the stories' faults are few."""
ECC_STEP = 25
ECC_EVERY_MS = 250
REMAP_AFTER_MS = 1_500
SHAPE = Shape(jobs={JOB: SimJob(STEP_MS, EVERY, STEPS)})


# -- stories


async def planned_move(grid: SimGrid) -> tuple[Claim, ...]:
    """A device has a row remap pending and its corrected errors rise."""
    owner = await steady(grid)
    device = _pick(grid, owner)
    grid.set_metrics(device, remap_pending=1)
    async with _background(_rising_errors(grid, device)):
        await _moved(grid, device)
    await finished(grid)
    counts = Counter(entry.step for entry in _steps(grid))
    twice = sorted(step for step, count in counts.items() if count > 1)
    return (
        *await _end_of_move(grid, device),
        Claim("no step is done twice", not twice, f"{twice[:5]}", calm=True),
    )


async def crash(grid: SimGrid) -> tuple[Claim, ...]:
    """An uncorrectable memory error kills the job's process."""
    owner = await steady(grid)
    device = _pick(grid, owner)
    pid = await grid.pid(owner.node, JOB)
    grid.set_metrics(device, ecc_uncorrected=1)
    grid.xid(device, 48)
    grid.xid(device, 94, pid=pid)
    grid.crash_job(JOB)
    async with _background(_row_remapped(grid, device)):
        await _moved(grid, device)
    await finished(grid)
    counts = Counter(entry.step for entry in _steps(grid))
    redone = sum(count - 1 for count in counts.values())
    return (
        *await _end_of_move(grid, device),
        Claim("at most one checkpoint interval is redone", redone <= EVERY, f"{redone} steps", calm=True),
    )


async def node_lost(grid: SimGrid) -> tuple[Claim, ...]:
    """A node loses power: unreachable, its job recovered after R, its devices not drained; then it comes back."""
    owner = await steady(grid)
    await grid.kill_node(owner.node)
    await recovered(grid)
    silent = grid.one(owner.region, RegionKeys(owner.region).liveness(owner.node), LivenessRecord)
    states = _health(grid, owner)
    grid.boot_node(owner.node)
    await finished(grid)
    await grid.until(lambda: is_alive(grid, owner), f"{owner.node} alive again", SOON_MS)
    await grid.until(lambda: _all_known(grid, owner), f"the devices of {owner.node} known again", SOON_MS)
    return (
        *await job_ended(grid),
        *_two_epochs(grid),
        Claim("one migration", len(moves_of_job(grid)) == 1, ", ".join(m.id for m in moves_of_job(grid)), calm=True),
        nothing_drained(grid),
        Claim(
            "the node was unreachable, not failed", silent is not None and silent.state is NodeState.UNREACHABLE,
            silent.reason if silent else "no record",
        ),
        Claim("its devices were unknown meanwhile", states == {"unknown"}, ", ".join(sorted(states))),
    )  # fmt: skip


async def agent_frozen(grid: SimGrid) -> tuple[Claim, ...]:
    """An agent is stopped without ending: its guardian ends the job at the deadline, before anyone starts it elsewhere;
    the agent that wakes up later starts nothing."""
    owner = await steady(grid)
    grid.freeze_agent(owner.node)
    await recovered(grid)
    grid.thaw_agent(owner.node)
    await finished(grid)
    await grid.until(lambda: is_alive(grid, owner), f"{owner.node} alive again", SOON_MS)
    starts = [entry for entry in grid.history if isinstance(entry, Started)]
    ends = [entry for entry in grid.history if isinstance(entry, Gone) and entry.epoch == owner.epoch]
    before = bool(ends) and all(ends[0].at_ms <= start.at_ms for start in starts[1:])
    return (
        *await job_ended(grid),
        *_two_epochs(grid),
        Claim("one migration", len(moves_of_job(grid)) == 1, ", ".join(m.id for m in moves_of_job(grid)), calm=True),
        nothing_drained(grid),
        Claim("the old epoch was gone before the new one started", before, f"{len(ends)} ends, {len(starts)} starts"),
    )


async def view_lost(grid: SimGrid) -> tuple[Claim, ...]:
    """The replica that holds the stream of a job's node loses the global store: the agent has the job renewed by the
    other replica of the region before its deadline, and nothing is stopped or moved."""
    owner = await steady(grid)
    replica = grid.replica_of(owner.node)
    grid.partition_store(replica, "global")
    await finished(grid)
    now = grid.replica_of(owner.node)
    grid.heal_store(replica, "global")
    starts = [entry for entry in grid.history if isinstance(entry, Started)]
    return (
        *await job_ended(grid),
        nothing_drained(grid),
        Claim("the job ran in one epoch", len(starts) == 1, f"{len(starts)} starts", calm=True),
        Claim("its node went to the other replica", now not in ("", replica), f"{replica}, then {now}", calm=True),
    )


async def leader_frozen(grid: SimGrid) -> tuple[Claim, ...]:
    """The replica that leads the world is stopped while it waits for R, and goes on after it: another one has waited
    anew, and nothing that the first was about to do is done."""
    owner = await steady(grid)
    await grid.kill_node(owner.node)

    def fencing() -> bool:
        moves = moves_of_job(grid)
        return bool(moves) and moves[-1].state is MigrationState.FENCING

    await grid.until(fencing, f"a revoke intent on {JOB}", SOON_MS)
    leader = await grid.until(lambda: _leader(grid), "a leader of the world", SOON_MS)
    grid.freeze_replica(leader)
    frozen_ms = grid.now_ms
    await recovered(grid)
    other = await grid.until(lambda: _leader(grid, leader), "another leader of the world", SOON_MS)
    grid.thaw_replica(leader)
    grid.boot_node(owner.node)
    await finished(grid)
    starts = [entry for entry in grid.history if isinstance(entry, Started) and entry.epoch > owner.epoch]
    waited_ms = starts[0].at_ms - frozen_ms
    return (
        *await job_ended(grid),
        nothing_drained(grid),
        Claim("the job ran in two epochs", len(starts) == 1, f"{len(starts) + 1} starts", calm=True),
        Claim("another replica led", other != leader, f"{leader}, then {other}"),
        Claim("and waited the whole R", waited_ms >= grid.shape.timings.takeover_ms, f"{waited_ms} ms"),
    )


def _leader(grid: SimGrid, but: str = "") -> str | None:
    """The replica that leads the world, as far as it knows; any other one than ``but``."""
    return next((name for name, s in grid.servers.items() if s.replica.leads_world and name != but), None)


FAULTS: dict[str, Story] = {
    story.name: story
    for story in (
        Story("planned-move", "a row remap is pending and corrected errors rise", planned_move, SHAPE),
        Story("crash", "an uncorrectable memory error kills the process", crash, SHAPE),
        Story("node-lost", "a node loses power, and comes back", node_lost, SHAPE),
        Story("agent-frozen", "an agent is frozen, and thaws", agent_frozen, SHAPE),
        Story("leader-frozen", "a replica that leads the world is frozen, and thaws", leader_frozen, SHAPE),
        Story("view-lost", "a replica loses the global store", view_lost, SHAPE),
        STORM,
        *GRAY,
        SHARED_BUDGET,
    )
}


# -- faults


@asynccontextmanager
async def _background(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _rising_errors(grid: SimGrid, device: DeviceId) -> None:
    while True:
        grid.set_metrics(device, ecc_corrected=grid.metric(device, "ecc_corrected") + ECC_STEP)
        await grid.clock.sleep(ECC_EVERY_MS)


async def _row_remapped(grid: SimGrid, device: DeviceId) -> None:
    await grid.clock.sleep(REMAP_AFTER_MS)
    grid.set_metrics(device, remapped_uncorrected=1, remap_pending=1)
    grid.xid(device, 63)


def _pick(grid: SimGrid, owner: OwnershipRecord) -> DeviceId:
    """One of the job's devices, by the seed."""
    return owner.devices[int(grid.rng.uniform(0, len(owner.devices)))]


# -- waiting


async def steady(grid: SimGrid, nodes: int = 1) -> OwnershipRecord:
    """Submitted, running, one checkpoint verified, and somewhere before the one after the next, by the seed."""
    spec = records_pb2.JobSpec(
        nodes=nodes,
        name=JOB,
        command=["train", "--steps", str(STEPS)],
        devices=DEVICES,
        prefer_other_region=True,
        handles_sigusr1=True,
        grace_ms=10_000,
        max_restarts=3,
    )
    await grid.submit(spec)

    def stored() -> OwnershipRecord | None:
        job = grid.one(GLOBAL_STORE, KEYS.job(JOB), JobRecord)
        head = grid.one(GLOBAL_STORE, KEYS.head(JOB), HeadRecord)
        return grid.owner(JOB) if job and job.state is JobState.RUNNING and head else None

    owner = await grid.until(stored, f"the first verified checkpoint of {JOB}", STEADY_MS)
    wanted = EVERY + 5 + int(grid.rng.uniform(0, EVERY - 10))
    await grid.until(lambda: _last_step(grid) >= wanted, f"step {wanted} of {JOB}", STEADY_MS)
    return owner


async def _moved(grid: SimGrid, device: DeviceId) -> None:
    """The device is drained and the job runs elsewhere."""

    def moved() -> bool:
        drains, moves = _drains(grid, device), moves_of_job(grid)
        return bool(
            drains and drains[-1].state is DrainState.DRAINED and moves and moves[-1].state is MigrationState.DONE
        )

    await grid.until(moved, f"{device} drained and {JOB} moved", SOON_MS)


async def recovered(grid: SimGrid) -> None:
    def recovered() -> bool:
        moves = moves_of_job(grid)
        return bool(moves and moves[-1].state is MigrationState.DONE)

    await grid.until(recovered, f"{JOB} running elsewhere", SOON_MS)


async def finished(grid: SimGrid) -> None:
    def ended() -> bool:
        job = grid.one(GLOBAL_STORE, KEYS.job(JOB), JobRecord)
        return job is not None and job.state in (JobState.SUCCEEDED, JobState.FAILED)

    await grid.until(ended, f"the end of {JOB}", SOON_MS)


# -- looking


def _last_step(grid: SimGrid) -> int:
    """Of the newest step entry."""
    return next((entry.step for entry in reversed(grid.history.entries) if isinstance(entry, Stepped)), -1)


def _steps(grid: SimGrid) -> list[Stepped]:
    return [entry for entry in grid.history if isinstance(entry, Stepped)]


def _drains(grid: SimGrid, device: DeviceId) -> tuple[DrainRecord, ...]:
    region, keys = grid.region_of(device)
    found = (d for d in grid.all(region, keys.prefix("drains"), DrainRecord) if d.device == device)
    return tuple(sorted(found, key=lambda drain: drain.planned_ms))


def moves_of_job(grid: SimGrid) -> tuple[MigrationRecord, ...]:
    """Migrations of the job away from somewhere."""
    every = grid.all(GLOBAL_STORE, KEYS.prefix("migrations"), MigrationRecord)
    return tuple(sorted((m for m in every if m.source_node), key=lambda move: move.requested_ms))


def _health(grid: SimGrid, owner: OwnershipRecord) -> set[str]:
    keys = RegionKeys(owner.region)
    found = (grid.one(owner.region, keys.health(device), HealthRecord) for device in owner.devices)
    return {record.state.value if record else "none" for record in found}


def is_alive(grid: SimGrid, owner: OwnershipRecord) -> bool:
    record = grid.one(owner.region, RegionKeys(owner.region).liveness(owner.node), LivenessRecord)
    return record is not None and record.state is NodeState.ALIVE


def _all_known(grid: SimGrid, owner: OwnershipRecord) -> bool:
    return HealthState.UNKNOWN.value not in _health(grid, owner)


# -- claims


async def _end_of_move(grid: SimGrid, device: DeviceId) -> tuple[Claim, ...]:
    region, keys = grid.region_of(device)
    incidents = [i for i in grid.all(region, keys.prefix("incidents"), IncidentRecord) if i.subject == device]
    every = [d for name in grid.shape.regions for d in _all_drains(grid, name)]
    moves = moves_of_job(grid)
    landed = [move for move in moves if move.state is MigrationState.DONE]  # one that is superseded is never measured
    unmeasured = [move.id for move in landed if move.rto_ms < 0 or move.rpo_steps < 0]
    accounts = {f"device/{device}": region, f"region/{region}": region, f"job/{JOB}": GLOBAL_STORE}
    known = [scope for scope, store in accounts.items() if _account(grid, store, keys, scope)]
    return (
        *await job_ended(grid),
        *_two_epochs(grid),
        Claim("one incident for the device", len(incidents) == 1, f"{[i.id for i in incidents]}"),
        Claim("one drain in the grid", len(every) == 1 and every[0].device == device, f"{[d.id for d in every]}"),
        Claim("one migration", len(moves) == 1, f"{[m.id for m in moves]}", calm=True),
        Claim("each finished migration knows its RPO and RTO", bool(landed) and not unmeasured, f"{unmeasured}"),
        Claim("the ledger knows device, region and job", len(known) == 3, ", ".join(known)),
    )


def _account(grid: SimGrid, store: str, keys: RegionKeys, scope: str) -> AccountRecord | None:
    key = KEYS.account(scope) if store == GLOBAL_STORE else keys.account(scope)
    return grid.one(store, key, AccountRecord)


def _all_drains(grid: SimGrid, region: str) -> tuple[DrainRecord, ...]:
    keys = next(RegionKeys(r) for r in grid.checkpoints if r == region)
    return grid.all(region, keys.prefix("drains"), DrainRecord)


def nothing_drained(grid: SimGrid) -> Claim:
    drains = [d.id for name in grid.shape.regions for d in _all_drains(grid, name)]
    return Claim("nothing was drained", not drains, ", ".join(drains))


def _two_epochs(grid: SimGrid) -> tuple[Claim, ...]:
    starts = [entry for entry in grid.history if isinstance(entry, Started)]
    where = ", ".join(f"{s.epoch} on {s.node} at {s.at_ms} ms" for s in starts)
    regions = {grid.hosts[NodeId(s.node)].region for s in starts}
    return (
        Claim("the job ran in two epochs on two nodes", len({s.node for s in starts}) == len(starts) == 2, where, True),
        Claim("it went to the other region", len(regions) == 2, ", ".join(sorted(regions)), calm=True),
    )


async def job_ended(grid: SimGrid) -> tuple[Claim, ...]:
    """The job is as if nothing had happened, and nothing is left behind."""
    job = grid.one(GLOBAL_STORE, KEYS.job(JOB), JobRecord)
    runs = grid.all(GLOBAL_STORE, KEYS.prefix("runs"), RunRecord)
    last = max(runs, key=lambda run: run.epoch, default=None)
    wanted = loss_of(state_after(JOB, STEPS - 1))
    missing = set(range(STEPS)) - {entry.step for entry in _steps(grid)}

    def held() -> list[ReservationRecord]:
        stores = ((str(r), RegionKeys(r).prefix("reservations")) for r in grid.checkpoints)
        return [record for store, prefix in stores for record in grid.all(store, prefix, ReservationRecord)]

    try:
        await grid.until(lambda: not held(), "no reservation left", SOON_MS)
        left = ""
    except NotSeen:
        left = ", ".join(f"{record.job} on {record.node}" for record in held())
    return (
        Claim("the job succeeded", job is not None and job.state is JobState.SUCCEEDED, job.reason if job else "none"),
        Claim(f"all {STEPS} steps are done", not missing, f"{len(missing)} missing"),
        Claim(
            "the final loss is the undisturbed run's, to the last bit",
            last is not None and last.last_loss == wanted,
            f"{last.last_loss if last else None!r}, undisturbed {wanted!r}",
        ),
        Claim("no reservation is left", not left, left),
    )
