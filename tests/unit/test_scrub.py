"""A checkpoint that is damaged after it was committed.

Protects rule 2: no resume from bad data, the newest whole one is used instead, and the user is told which and why.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chaos.simulate.checkpoints import FileData, MemoryTree, SimCheckpointStore
from failover.checkpoint.replicate import wanted_copies
from failover.checkpoint.scrubber import Scrubber
from failover.domain.scrub import Stored, next_scrub
from gridkeeper.clock import SystemClock
from gridkeeper.decision import Decision, Delete, Put, Versioned
from gridkeeper.ids import Epoch, JobId, RegionId, Revision
from gridkeeper.keys import KEYS
from gridkeeper.policy.model import DAY_MS, CheckpointPolicy
from gridkeeper.records.jobs import CheckpointRecord, HeadRecord
from gridkeeper.snapshot import GlobalState
from tests.fixtures.records import job as job_record

JOB, EAST, WEST = JobId("train"), RegionId("east"), RegionId("west")
POLICY = CheckpointPolicy(scrub_every_ms=DAY_MS, scrub_bytes_per_s=0)


class World:
    """A global state that takes decisions, and a store per region with checkpoints of steps 10, 20, 30 in them."""

    def __init__(self) -> None:
        self.tree = MemoryTree()
        self.stores = {region: SimCheckpointStore(self.tree) for region in (EAST, WEST)}
        self.heads: dict[JobId, Versioned[HeadRecord]] = {}
        self.kept: dict[str, Versioned[CheckpointRecord]] = {}
        self.revision = 10

    async def stored(self, step: int, regions: tuple[RegionId, ...], suspect: bool = False) -> None:
        directory = Path(f"/steps/{step}")
        self.tree.write(directory, {"model": FileData(0o644, b"weights of %d" % step)})
        for region in regions:
            digest, manifest = await self.stores[region].put(JOB, step, Epoch(1, 1), directory)
        record = CheckpointRecord(
            JOB, step, Epoch(1, 1), digest, manifest.size_bytes, regions[0], suspect, step, regions[1:]
        )
        self.kept[self.name(step)] = self.versioned(record)
        if not suspect:
            head = HeadRecord(JOB, step, Epoch(1, 1), digest, manifest.size_bytes, regions, step)
            self.heads[JOB] = self.versioned(head)

    def name(self, step: int) -> str:
        return KEYS.checkpoint_name(JOB, step)

    def versioned(self, record: object) -> Versioned:  # type: ignore[type-arg]
        self.revision += 1
        return Versioned(record, Revision(self.revision), Revision(1), 0)

    def state(self) -> GlobalState:
        job = Versioned(job_record("train"), Revision(1), Revision(1), 0)
        return GlobalState(jobs={JOB: job}, heads=dict(self.heads), checkpoints=dict(self.kept))

    def damage(self, region: RegionId, step: int) -> None:
        """One bit flips: the length stays."""
        store, digest = self.stores[region], self.kept[self.name(step)].record.digest
        manifest = store.manifests[(JOB, step, digest)]
        chunk = next(chunk for chunk in store.chunks if chunk.encode() in manifest)
        data = store.chunks[chunk]
        store.chunks[chunk] = bytes([data[0] ^ 1]) + data[1:]

    async def scrub(self, region: RegionId, now_ms: int = 2 * DAY_MS) -> list[Decision]:
        """As the region's leader, until nothing is due; what it decided."""
        scrubber, made = Scrubber(region, self.stores[region], SystemClock()), []
        for _ in range(20):
            decisions = await scrubber.look(self.state(), POLICY, now_ms)
            for decision in decisions:
                made.append(decision)
                self.apply(decision)
        return made

    def apply(self, decision: Decision) -> None:
        for write in decision.writes:
            assert isinstance(write, Put) and not isinstance(write, Delete)
            if write.key == KEYS.head(JOB):
                assert write.expected == self.heads[JOB].revision, "the head is not compared"
                self.heads[JOB] = self.versioned(write.record)
            else:
                name = write.key.removeprefix(KEYS.prefix("checkpoints"))
                assert write.expected == self.kept[name].revision
                self.kept[name] = self.versioned(write.record)


async def test_whole_checkpoints_are_left_alone() -> None:
    world = World()
    for step in (10, 20, 30):
        await world.stored(step, (EAST,))
    assert await world.scrub(EAST) == []
    assert next_scrub(world.state(), EAST, {}, DAY_MS // 2, DAY_MS) is None, "not due yet"


async def test_a_damaged_head_gives_way_to_the_newest_whole_one_and_says_why() -> None:
    world = World()
    for step in (10, 20, 30):
        await world.stored(step, (EAST,))
    await world.stored(25, (EAST,), suspect=True)
    world.damage(EAST, 30)
    world.damage(EAST, 20)
    decisions = await world.scrub(EAST)
    head = world.heads[JOB].record
    assert head.step == 10, "suspect step 25 or damaged step 20 was chosen"
    assert head.digest == world.kept[world.name(10)].record.digest
    assert "step 30" in head.instead and "altered" in head.instead
    assert "resumes from step 10 instead" in decisions[0].sentence
    assert decisions[0].audit
    assert "altered" in world.kept[world.name(30)].record.damage
    await world.stores[EAST].verify(JOB, head.step, head.digest)


async def test_what_another_region_has_is_copied_from_there_again() -> None:
    world = World()
    await world.stored(30, (EAST, WEST))
    world.damage(EAST, 30)
    [decision] = await world.scrub(EAST)
    assert "west has it whole" in decision.sentence
    head = world.heads[JOB].record
    assert (head.step, head.regions, head.instead) == (30, (WEST,), "")
    [task] = wanted_copies(world.state(), EAST)
    assert (task.step, task.sources) == (30, (WEST,))
    assert await world.scrub(WEST) == []


async def test_without_a_whole_one_the_head_stays() -> None:
    """Protects: nothing starts from scratch because its checkpoints are gone."""
    world = World()
    for step in (10, 20):
        await world.stored(step, (EAST,))
        world.damage(EAST, step)
    await world.scrub(EAST)
    assert world.heads[JOB].record.step == 20


async def test_a_store_that_cannot_be_reached_proves_nothing() -> None:
    world = World()
    for step in (10, 20):
        await world.stored(step, (EAST,))
    world.damage(EAST, 20)
    world.stores[EAST].reachable = False
    assert await world.scrub(EAST) == []
    assert world.heads[JOB].record.step == 20


@pytest.mark.parametrize("field", ["expires_ms", "damage"])
async def test_what_is_marked_is_not_resumed_from(field: str) -> None:
    world = World()
    for step in (10, 20, 30):
        await world.stored(step, (EAST,))
    name = world.name(20)
    marked = replace(world.kept[name].record, **{field: 1 if field == "expires_ms" else "east: gone"})
    world.kept[name] = world.versioned(marked)
    world.damage(EAST, 30)
    await world.scrub(EAST)
    assert world.heads[JOB].record.step == 10


async def test_the_head_of_a_job_on_its_way_comes_first_and_heads_before_others() -> None:
    world = World()
    for step in (10, 20):
        await world.stored(step, (EAST,))
    task = next_scrub(world.state(), EAST, {}, 2 * DAY_MS, DAY_MS)
    assert task is not None and (task.what.step, task.urgent) == (20, False)
    read = {Stored(JOB, 20, task.what.digest): 2 * DAY_MS}
    after = next_scrub(world.state(), EAST, read, 2 * DAY_MS, DAY_MS)
    assert after is not None and after.what.step == 10
