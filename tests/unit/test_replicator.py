"""Protects the copies of checkpoints: the right ones, the urgent ones first, recorded only when they are verified."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from chaos.simulate.checkpoints import FileData, MemoryTree, SimCheckpointStore
from failover.checkpoint.replicate import Replicator, record_copy, wanted_copies
from gridkeeper.clock import SystemClock
from gridkeeper.decision import Guard, Put, Versioned
from gridkeeper.ids import Epoch, JobId, MigrationId, RegionId, ReplicaId, Revision
from gridkeeper.keys import KEYS
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import (
    GrantRecord,
    HeadRecord,
    JobRecord,
    JobState,
    MigrationKind,
    MigrationState,
)
from gridkeeper.snapshot import GlobalState
from tests.unit.failover_world import Grid, spec_of

EAST, WEST, NORTH = RegionId("east"), RegionId("west"), RegionId("north")
GRANT = Versioned(GrantRecord(WEST, 1, ReplicaId("w"), 0), Revision(5), Revision(5), 0)


def head(job: str, step: int = 10, digest: str = "d", regions: tuple[RegionId, ...] = (EAST,)) -> Versioned[HeadRecord]:
    return Versioned(HeadRecord(JobId(job), step, Epoch(1, 1), digest, 1, regions, 0), Revision(8), Revision(8), 0)


def job(name: str, state: JobState = JobState.RUNNING, **spec: object) -> Versioned[JobRecord]:
    record = JobRecord(spec_of(name, **spec), state, Desired.RUN, "", "", 0, MigrationId(f"{name}-m"), 0, 0, "")
    return Versioned(record, Revision(3), Revision(3), 0)


def world(**jobs: Versioned[JobRecord]) -> GlobalState:
    return GlobalState(
        jobs={JobId(n): j for n, j in jobs.items()},
        heads={JobId(n): head(n) for n in jobs},
        grants={WEST: GRANT},
    )


def test_standby_copies_are_of_living_jobs_that_may_run_here() -> None:
    state = world(
        anywhere=job("anywhere"),
        here=job("here", regions=(WEST,)),
        elsewhere=job("elsewhere", regions=(EAST,)),
        over=job("over", JobState.SUCCEEDED),
    )
    assert [t.job for t in wanted_copies(state, WEST)] == ["anywhere", "here"]
    assert wanted_copies(state, EAST) == (), "what is here is not copied"


def test_what_a_migration_waits_for_comes_first() -> None:
    state = world(alpha=job("alpha"), moving=job("moving"))
    template = Grid({"east": {"east-1": 2}})
    template.submit(spec_of("moving"))
    template.run(8)
    migration = replace(
        template.migrations("moving")[0],
        id=MigrationId("moving-m"),
        kind=MigrationKind.RECOVERY,
        state=MigrationState.COPYING,
        target_region=WEST,
    )
    held = Versioned(migration, Revision(9), Revision(9), 0)
    state = replace(state, migrations={migration.id: held})
    assert [(t.job, t.urgent) for t in wanted_copies(state, WEST)] == [("moving", True), ("alpha", False)]


def test_a_copy_is_recorded_against_the_heads_revision_and_the_grant() -> None:
    decision = record_copy(head("alpha"), WEST, GRANT)
    [write] = decision.writes
    assert isinstance(write, Put)
    assert (write.key, write.expected) == (KEYS.head(JobId("alpha")), 8)
    assert write.record.regions == (EAST, WEST)
    assert decision.guards == (Guard(KEYS.grant(WEST), Revision(5)),)


async def stored(tree: MemoryTree, store: SimCheckpointStore, name: str) -> Versioned[HeadRecord]:
    directory = Path(f"/{name}/step-10")
    tree.write(directory, {"model": FileData(0o644, name.encode())})
    digest, _ = await store.put(JobId(name), 10, Epoch(1, 1), directory)
    return head(name, 10, digest)


def test_copies_go_on_past_what_cannot_be_copied_and_are_recorded_one_by_one() -> None:
    async def story() -> None:
        tree = MemoryTree()
        east, west = SimCheckpointStore(tree), SimCheckpointStore(tree)
        state = world(alpha=job("alpha"), beta=job("beta"))
        good = await stored(tree, east, "beta")
        state = replace(state, heads={JobId("alpha"): head("alpha", digest="0" * 64), JobId("beta"): good})
        replicator = Replicator(WEST, {EAST: east, WEST: west}, SystemClock())
        [decision] = await replicator.copy(state)
        assert "beta" in decision.sentence
        await west.verify(JobId("beta"), 10, good.record.digest)
        state = replace(state, heads={JobId("alpha"): state.heads[JobId("alpha")]})
        assert await replicator.copy(state) == ()

    asyncio.run(story())


def test_another_source_is_tried_when_one_cannot_be_reached() -> None:
    async def story() -> None:
        tree = MemoryTree()
        east, west, north = (SimCheckpointStore(tree) for _ in range(3))
        first = await stored(tree, east, "alpha")
        await stored(tree, north, "alpha")
        east.reachable = False
        both = replace(first, record=replace(first.record, regions=(EAST, NORTH)))
        state = replace(world(alpha=job("alpha")), heads={JobId("alpha"): both})
        [decision] = await Replicator(WEST, {EAST: east, WEST: west, NORTH: north}, SystemClock()).copy(state)
        assert decision.subject == "job/alpha"
        north.reachable = False
        stores = {EAST: east, WEST: SimCheckpointStore(tree), NORTH: north}
        assert await Replicator(WEST, stores, SystemClock()).copy(state) == ()
        alone = Replicator(WEST, {EAST: east}, SystemClock())
        assert await alone.copy(state) == (), "a region without a store copies nothing"

    asyncio.run(story())
