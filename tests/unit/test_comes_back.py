"""The promise "an agent that restarts within F re-adopts its jobs and kills none", on the whole system in virtual time:
the node was called unreachable and its job revoked before the agent was back."""

from __future__ import annotations

import pytest

from chaos.simulate.executor import SimJob
from chaos.simulate.grid import Shape, SimGrid
from chaos.simulate.history import GLOBAL_STORE, Started
from chaos.simulate.play import Claim, Outcome, Story, play
from gridkeeper.ids import JobId
from gridkeeper.keys import KEYS
from gridkeeper.records.jobs import JobRecord, JobState, MigrationRecord, MigrationState, OwnershipRecord, RunRecord
from gridkeeper.timings import Timings
from gridkeeper.v1 import records_pb2

JOB = JobId("train")
SHAPE = Shape(timings=Timings(), jobs={JOB: SimJob(100, 20, 600)})
SOON_MS = 30_000
BEFORE_TERM_MS = 13_500
"""After the cut; SIGTERM is due 15 s after the last renewal that was acknowledged."""


async def running(grid: SimGrid) -> OwnershipRecord:
    await grid.submit(records_pb2.JobSpec(name=JOB, command=["train"], devices=4, grace_ms=10_000, max_restarts=3))

    def stepping() -> OwnershipRecord | None:
        run = grid.one(GLOBAL_STORE, KEYS.run(JOB, 1, 1), RunRecord)
        return grid.owner(JOB) if run is not None and run.first_step >= 0 else None

    return await grid.until(stepping, "the first step", SOON_MS)


def revoked(grid: SimGrid) -> bool:
    owner = grid.owner(JOB)
    return owner is not None and owner.revoke is not None


async def agent_restarts(grid: SimGrid) -> tuple[Claim, ...]:
    owner = await running(grid)
    await grid.kill_agent(owner.node)
    await grid.until(lambda: revoked(grid), "the revoke intent", SOON_MS)
    grid.start_agent(owner.node)
    await grid.until(lambda: not revoked(grid), "its withdrawal", SOON_MS)
    return await claims(grid)


async def network_heals(grid: SimGrid) -> tuple[Claim, ...]:
    owner = await running(grid)
    began = grid.now_ms
    for other in (*grid.servers, *grid.hosts):  # peers that reached it would testify that it lives
        if other != owner.node:
            grid.cut(owner.node, other)
    await grid.until(lambda: revoked(grid), "the revoke intent", SOON_MS)
    await grid.clock.sleep(max(0, began + BEFORE_TERM_MS - grid.now_ms))
    grid.heal_cut(owner.node)
    await finished(grid)
    return ()


async def finished(grid: SimGrid) -> None:
    def succeeded() -> bool:
        job = grid.one(GLOBAL_STORE, KEYS.job(JOB), JobRecord)
        return job is not None and job.state is JobState.SUCCEEDED

    await grid.until(succeeded, "the end of the job", 120_000)


async def claims(grid: SimGrid) -> tuple[Claim, ...]:
    await finished(grid)
    starts = [entry for entry in grid.history if isinstance(entry, Started)]
    moves = grid.all(GLOBAL_STORE, KEYS.prefix("migrations"), MigrationRecord)
    states = [move.state for move in moves if move.source_node]
    return (
        Claim("the job was started once", len(starts) == 1, f"{len(starts)} starts"),
        Claim("its one recovery was cancelled", states == [MigrationState.CANCELLED], ", ".join(states)),
    )


def wrong(outcome: Outcome) -> list[str]:
    return [f"{claim.text}: {claim.detail}" for claim in outcome.false] + [str(v) for v in outcome.violations]


@pytest.mark.parametrize("seed", range(1, 4))
def test_an_agent_that_restarts_in_time_keeps_its_job_though_it_was_revoked(seed: int) -> None:
    assert not wrong(play(Story("agent-restarts", "", agent_restarts, SHAPE), seed))


@pytest.mark.parametrize("seed", range(1, 4))
def test_a_node_that_comes_back_about_when_it_fences_its_job_breaks_no_rule(seed: int) -> None:
    """The cut heals a little before SIGTERM is due: the job may be given back, or ended and recovered, or both."""
    assert not wrong(play(Story("network-heals", "", network_heals, SHAPE), seed))
