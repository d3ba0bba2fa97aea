"""Two planners decide on one region at once, on real etcd: they never exceed a budget together, with and without the
leader key's fence, and every revision that etcd made is looked at."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby

import pytest

from chaos.simulate.history import Commit, Write
from chaos.simulate.limits import breakers_hold, never_too_much
from chaos.simulate.replay import replay
from controlplane.domain.region import STAGES, disjoint
from controlplane.shell.apply import Applier, Conflict, Fence
from controlplane.shell.mirror import Mirror
from controlplane.shell.states import region_state
from controlplane.store.embedded import EmbeddedEtcd
from gridkeeper import codec
from gridkeeper.clock import SystemRng
from gridkeeper.decision import Now
from gridkeeper.ids import RegionId, ReplicaId, Revision
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import BreakerPolicy, BudgetPolicy
from gridkeeper.ports.store import DeleteOp, Op, PutOp, Store
from gridkeeper.records.faults import DrainRecord, DrainState, LeaderRecord
from gridkeeper.snapshot import GlobalState, Settings
from tests.fixtures.etcd import CLOCK, open_store
from tests.unit.applier import NOON, RegionStore, quick

pytestmark = pytest.mark.etcd

NODES, GPUS = 4, 8
BUDGETS = (
    BudgetPolicy("region", 0.25, 1),
    BudgetPolicy("rack", 0.5, 1),
    BudgetPolicy("vendor", 0.0, 7, window_ms=60_000),
)
LIMIT = 7  # the window's
NO_BREAKER = (BreakerPolicy(drains=1_000),)
_numbers = itertools.count(1)


@dataclass
class Planner:
    """What a region's leader is made of: a mirror, the stages, an applier."""

    name: str
    region: RegionId
    mirror: Mirror
    applier: Applier
    settings: Settings
    fence: Fence | None
    count: Counter[str] = field(default_factory=Counter)

    async def run(self, rounds: int) -> None:
        """Decide on what the mirror shows, apply, and so on; lost races are counted and decided again."""
        for _ in range(rounds):
            for stage in STAGES:
                state = region_state(self.region, self.mirror)
                now = Now(CLOCK.mono_ms(), NOON + 1_000)
                for decision in disjoint(stage.decide(state, GlobalState(), self.settings, now)):
                    try:
                        revision = await self.applier.apply(decision, f"machine/{self.name}", self.fence)
                        self.count["applied"] += 1
                        await self.mirror.wait_revision(revision, 2_000)
                    except Conflict:
                        self.count["conflicts"] += 1
            await self.mirror.wait_moved(20)


class Scene:
    """A region in a real store in which every device has just failed."""

    def __init__(self, store: Store, connect: EmbeddedEtcd) -> None:
        self.store = store
        self.etcd = connect
        self.region = RegionId(f"race-{next(_numbers)}")
        self.keys = RegionKeys(self.region)
        self.settings = quick(budgets=BUDGETS, breakers=NO_BREAKER)
        self.begin = Revision(0)
        self._opened: list[Store] = []
        self._following: list[asyncio.Task[None]] = []

    async def fill(self) -> None:
        made = RegionStore(self.settings, self.region)
        devices = made.fleet(nodes=NODES, gpus=GPUS, racks=2)
        made.settle()
        made.commit(*(made.event(device, 79) for device in devices))
        items = [PutOp(key, codec.encode(v.record)) for key, v in made.items.items()]
        for start in range(0, len(items), 50):
            result = await self.store.txn((), items[start : start + 50])
            self.begin = self.begin or result.revision

    async def lead(self, name: str) -> Fence:
        """Take the leader key; whoever held it is fenced off from here on."""
        record = codec.encode(LeaderRecord(ReplicaId(name), name, 0))
        ops: tuple[Op, ...] = (PutOp(self.keys.leader, record),)
        await self.store.txn((), (DeleteOp(self.keys.leader),))
        return Fence(self.keys.leader, (await self.store.txn((), ops)).revision)

    async def planner(self, name: str, fence: Fence | None) -> Planner:
        store = await open_store(self.etcd)
        self._opened.append(store)
        mirror = Mirror(store, self.keys.root, CLOCK)
        self._following.append(asyncio.ensure_future(mirror.run()))
        await mirror.wait_loaded()
        applier = Applier(store, mirror, self.keys.audit, SystemRng(), CLOCK.wall_ms)
        return Planner(name, self.region, mirror, applier, self.settings, fence)

    async def close(self) -> None:
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        for store in self._opened:
            await store.close()

    # -- looking

    async def drains(self) -> Counter[str]:
        page = await self.store.range(self.keys.prefix("drains"))
        return Counter(codec.decode(DrainRecord, kv.value).state.value for kv in page.items)

    async def history(self) -> list[Commit]:
        """Every revision that etcd made since the region was filled."""
        (_, end) = await self.store.get(self.keys.leader)
        commits: list[Commit] = []
        watch = self.store.watch(self.keys.root, self.begin)
        async with asyncio.timeout(20), aclosing(watch) as batches:
            async for batch in batches:
                assert not batch.reset
                for revision, changes in groupby(batch.changes, key=lambda change: change.kv.mod_revision):
                    writes = tuple(Write(c.kv.key, None if c.deleted else c.kv.value) for c in changes)
                    commits.append(Commit(int(revision), self.region, int(revision), writes))
                if batch.revision >= end:
                    return commits
        raise AssertionError("the watch ended")


@asynccontextmanager
async def scene(etcd: EmbeddedEtcd) -> AsyncIterator[Scene]:
    store = await open_store(etcd)
    made = Scene(store, etcd)
    try:
        await made.fill()
        yield made
    finally:
        await made.close()
        await store.close()


async def check(made: Scene) -> None:
    moments = replay(await made.history())
    wrong = [*never_too_much(moments, made.settings), *breakers_hold(moments, made.settings)]
    assert not wrong, "\n".join(map(str, wrong[:5]))


async def test_two_planners_without_a_fence_never_exceed_a_budget(etcd_one: EmbeddedEtcd) -> None:
    """Protects: the budget records alone serialise whoever plans, also where no leader key guards (the API's path)."""
    async with scene(etcd_one) as made:
        both = [await made.planner(name, None) for name in ("a", "b")]
        await asyncio.gather(*(planner.run(14) for planner in both))
        drains = await made.drains()
        assert drains[DrainState.DRAINED.value] == LIMIT, drains
        assert sum(drains.values()) == NODES * GPUS, "each device has one drain, admitted or refused"
        assert all(planner.count["applied"] for planner in both), "both took part"
        assert sum(planner.count["conflicts"] for planner in both) > 0, "they raced"
        await check(made)


async def test_a_planner_that_was_followed_by_another_writes_nothing_more(etcd_one: EmbeddedEtcd) -> None:
    """Protects: an old leader that does not know it yet is fenced off, in the middle of its decisions."""
    async with scene(etcd_one) as made:
        old = await made.planner("a", await made.lead("a"))
        running = asyncio.ensure_future(old.run(14))
        while not old.count["applied"]:
            await old.mirror.wait_moved(50)
        new = await made.planner("b", await made.lead("b"))
        written = old.count["applied"]
        await asyncio.gather(running, new.run(14))
        drains = await made.drains()
        assert old.count["applied"] - written <= 1, "one may have been under way"
        assert drains[DrainState.DRAINED.value] == LIMIT, drains
        await check(made)


async def test_a_burst_on_two_planners_opens_the_breaker_once_and_nothing_passes(etcd_one: EmbeddedEtcd) -> None:
    """Protects: both count the same drains; whoever is late conflicts with the breaker's record."""
    async with scene(etcd_one) as made:
        made.settings = quick(budgets=BUDGETS, breakers=(BreakerPolicy("region", drains=4, fraction=0.0),))
        both = [await made.planner(name, None) for name in ("a", "b")]
        await asyncio.gather(*(planner.run(14) for planner in both))
        breaker = both[0].mirror.kind("breakers")["region"].record
        drains = await made.drains()
        assert (breaker.state.value, breaker.trips) == ("open", 1)
        assert drains[DrainState.DRAINED.value] <= 4 and sum(drains.values()) == NODES * GPUS, drains
        await check(made)
