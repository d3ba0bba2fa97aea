"""Decisions against the simulated store: a write holds only on the state it was decided on, and the mirror tells what
is there, when it was first seen, and what cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.loop import run_virtual
from chaos.simulate.store import SimCluster, SimStore
from controlplane.shell.apply import Applier, Conflict, Fence
from controlplane.shell.leader import TICK_MS, lead_loop
from controlplane.shell.mirror import Mirror
from gridkeeper import codec
from gridkeeper.decision import ABSENT, Decision, Guard, Put
from gridkeeper.ids import Epoch, JobId, NodeId, RegionId, Revision
from gridkeeper.keys import KEYS as WORLD
from gridkeeper.keys import RegionKeys
from gridkeeper.ports.store import Compare, DeleteOp, PutOp
from gridkeeper.records.faults import DetectorRecord
from gridkeeper.records.fleet import LivenessRecord, NodeState
from gridkeeper.records.jobs import RunPhase, RunRecord

KEYS = RegionKeys(RegionId("east"))
NODE = NodeId("n1")


def _liveness(reason: str) -> LivenessRecord:
    return LivenessRecord(NODE, NodeState.ALIVE, 1, reason)


class Bench:
    """One store, one mirror, one applier."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.clock = SimClock(loop)
        self.cluster = SimCluster(self.clock, SimRng(1))
        self.store: SimStore = self.cluster.client("a")
        self.mirror = Mirror(self.store, KEYS.root, self.clock)
        self.applier = Applier(self.store, self.mirror, KEYS.audit, SimRng(2), self.clock.wall_ms)

    async def put(self, record: LivenessRecord, expected: Revision) -> Revision:
        revision = await self.applier.apply(self.decision(record, expected), "machine/a", None)
        await self.applier.caught_up(revision)
        return revision

    def decision(self, record: LivenessRecord, expected: Revision, *guards: Guard) -> Decision:
        return Decision("health.step", record.reason, (Put(KEYS.liveness(NODE), record, expected),), guards, "node/n1")

    async def audits(self) -> int:
        return len((await self.store.range(KEYS.prefix("audit"))).items)


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    following = asyncio.ensure_future(made.mirror.run())
    await made.mirror.wait_loaded()
    try:
        yield made
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await made.cluster.close()


def virtual(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], None]:
    """Run the test on virtual time with a bench."""

    async def main() -> None:
        async with bench() as b:
            await test(b)

    def run() -> None:
        run_virtual(main())

    run.__doc__ = test.__doc__
    return run


@virtual
async def test_a_decision_on_older_state_writes_nothing_and_leaves_no_audit(b: Bench) -> None:
    first = await b.put(_liveness("first"), ABSENT)
    await b.put(_liveness("second"), first)
    audits = await b.audits()
    with pytest.raises(Conflict):
        await b.put(_liveness("late"), first)
    assert b.mirror.kind("liveness")[NODE].record.reason == "second"
    assert await b.audits() == audits == 2


@virtual
async def test_a_guard_that_moved_stops_the_write(b: Bench) -> None:
    guarded = await b.store.txn([], [PutOp(KEYS.detector, codec.encode(DetectorRecord(1)))])
    decision = b.decision(_liveness("x"), ABSENT, Guard(KEYS.detector, guarded.revision))
    await b.store.txn([], [PutOp(KEYS.detector, codec.encode(DetectorRecord(2)))])
    with pytest.raises(Conflict):
        await b.applier.apply(decision, "machine/a", None)
    assert (await b.store.get(KEYS.liveness(NODE)))[0] is None


@virtual
async def test_a_deposed_leader_writes_nothing(b: Bench) -> None:
    first = await b.store.txn([Compare(KEYS.leader, ABSENT)], [PutOp(KEYS.leader, b"")])
    fence = Fence(KEYS.leader, first.revision)
    await b.applier.apply(b.decision(_liveness("leading"), ABSENT), "machine/a", fence)
    held = (await b.store.get(KEYS.liveness(NODE)))[0]
    assert held is not None
    await b.store.txn([], [PutOp(KEYS.leader, b"")])  # refreshing the key is not a new term
    await b.applier.apply(b.decision(_liveness("still leading"), held.mod_revision), "machine/a", fence)
    await b.store.txn([], [DeleteOp(KEYS.leader)])
    await b.store.txn([], [PutOp(KEYS.leader, b"")])
    now = (await b.store.get(KEYS.liveness(NODE)))[0]
    assert now is not None
    with pytest.raises(Conflict):
        await b.applier.apply(b.decision(_liveness("deposed"), now.mod_revision), "machine/a", fence)


@virtual
async def test_a_lost_reply_is_settled_by_reading_and_applied_once(b: Bench) -> None:
    b.store.lose_replies(1)
    revision = await b.applier.apply(b.decision(_liveness("once"), ABSENT), "machine/a", None)
    held = (await b.store.get(KEYS.liveness(NODE)))[0]
    assert held is not None and held.mod_revision == revision and held.version == 1
    assert await b.audits() == 1


@virtual
async def test_a_lost_request_is_a_conflict_and_deciding_again_works(b: Bench) -> None:
    b.store.lose_requests(1)
    with pytest.raises(Conflict):
        await b.applier.apply(b.decision(_liveness("x"), ABSENT), "machine/a", None)
    await b.put(_liveness("again"), ABSENT)
    assert b.mirror.kind("liveness")[NODE].record.reason == "again"


@virtual
async def test_a_late_write_cannot_land_beside_the_one_decided_again(b: Bench) -> None:
    b.store.delay_writes(1, 1_000)
    with pytest.raises(Conflict):
        await b.applier.apply(b.decision(_liveness("late"), ABSENT), "machine/a", None)
    await b.put(_liveness("again"), ABSENT)
    await b.clock.sleep(5_000)
    held = (await b.store.get(KEYS.liveness(NODE)))[0]
    assert held is not None and codec.decode(LivenessRecord, held.value).reason == "again" and held.version == 1


@virtual
async def test_what_does_not_decode_is_suspect_and_not_a_record(b: Bench) -> None:
    await b.put(_liveness("good"), ABSENT)
    broken = await b.store.txn([], [PutOp(KEYS.liveness(NODE), b"\xff\xff")])
    await b.mirror.wait_revision(broken.revision, 1_000)
    assert NODE not in b.mirror.kind("liveness")
    assert b.mirror.suspect == {KEYS.liveness(NODE)}
    mended = await b.store.txn([], [PutOp(KEYS.liveness(NODE), codec.encode(_liveness("mended")))])
    await b.mirror.wait_revision(mended.revision, 1_000)
    assert not b.mirror.suspect


@virtual
async def test_seen_runs_from_the_revision_and_survives_a_compaction(b: Bench) -> None:
    """R runs from ``seen_ms``: a re-list must not restart it for what did not change."""
    await b.put(_liveness("x"), ABSENT)
    seen = b.mirror.kind("liveness")[NODE].seen_ms
    b.store.partition()
    other = b.cluster.client("other")
    for n in range(5):
        last = await other.txn([], [PutOp(KEYS.detector, codec.encode(DetectorRecord(n)))])
    await b.clock.sleep(4_000)
    assert not b.mirror.fresh
    b.cluster.compact(last.revision)
    b.store.heal()
    assert await b.mirror.wait_revision(last.revision, 20_000)
    assert b.mirror.fresh
    assert b.mirror.kind("liveness")[NODE].seen_ms == seen


@virtual
async def test_what_was_handed_out_never_changes(b: Bench) -> None:
    first = await b.put(_liveness("first"), ABSENT)
    before = b.mirror.kind("liveness")
    await b.put(_liveness("second"), first)
    assert before[NODE].record.reason == "first"
    assert b.mirror.kind("liveness")[NODE].record.reason == "second"


def _run(step: int, phase: RunPhase = RunPhase.RUNNING) -> RunRecord:
    job, epoch = JobId("job"), Epoch(1, 1)
    return RunRecord(
        job, epoch, RegionId("east"), NODE, phase, 0, 0, False, False, -1, 0, step, 1, step, 1, 0, 0.5, ""
    )  # fmt: skip


@virtual
async def test_progress_of_jobs_wakes_no_leader_and_everything_else_does(b: Bench) -> None:
    """Protects: hundreds of jobs that tell of their steps do not keep leaders busy."""
    world = Mirror(b.store, WORLD.root, b.clock)
    following = asyncio.ensure_future(world.run())
    key = WORLD.run(JobId("job"), 1, 1)

    async def write(op: PutOp | DeleteOp) -> None:
        result = await b.store.txn([], [op])
        assert await world.wait_revision(result.revision, 5_000)

    await write(PutOp(key, codec.encode(_run(1))))
    stirs, version = world.stirs, world.version
    await write(PutOp(key, codec.encode(_run(2))))
    assert (world.stirs, world.version) == (stirs, version + 1)
    assert [held.record.last_step for held in world.kind("runs").values()] == [2]
    await write(PutOp(key, codec.encode(_run(2, RunPhase.STOPPING))))
    await write(DeleteOp(key))
    assert world.stirs == stirs + 2
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


@virtual
async def test_what_changes_while_a_leader_looks_is_looked_at_at_once(b: Bench) -> None:
    """Protects: no change waits for the next look at the timers because it came while a look was under way."""
    ticks = 0

    async def tick() -> bool:
        nonlocal ticks
        ticks += 1
        if ticks == 1:
            await b.put(_liveness("changed"), ABSENT)
        return False

    looking = asyncio.ensure_future(lead_loop("test", tick, (b.mirror,), b.clock))
    await b.clock.sleep(TICK_MS // 2)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    assert ticks == 2
