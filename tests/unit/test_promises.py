"""Promises on simulated stores: what is promised, recorded and refused, and how long a fence is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.loop import run_virtual
from chaos.simulate.store import SimCluster
from controlplane.shell.apply import Applier
from controlplane.shell.fences import Fences
from controlplane.shell.mirror import Mirror
from controlplane.shell.ownerview import OwnerView
from controlplane.shell.promises import Promiser, Promises
from failover.domain.promises import decide_fences, peers_to_name, waiting_since
from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.ids import (
    DeviceId,
    Epoch,
    Extent,
    JobId,
    MigrationId,
    NodeId,
    RegionId,
    ReplicaId,
    Revision,
)  # fmt: skip
from gridkeeper.keys import KEYS, RegionKeys, region_root
from gridkeeper.ports.peers import Answer, Ask, NoAnswer
from gridkeeper.ports.store import DeleteOp, PutOp
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import GrantRecord, OwnershipRecord, Revoke
from gridkeeper.records.regions import FenceRecord, PromiseRecord
from gridkeeper.snapshot import Failsafe, GlobalState
from gridkeeper.timings import SHORT
from tests.unit.failover_world import spec_of

EAST, WEST, NORTH = RegionId("east"), RegionId("west"), RegionId("north")
WEST_KEYS = RegionKeys(WEST)
ASK = Ask(EAST, ReplicaId("east-1"), Extent(1, 50), True)
OWNER = OwnershipRecord(
    JobId("train"), Epoch(1, 1), EAST, NodeId("e1"), (DeviceId("e1/gpu0"),), Desired.RUN, 0,
    Revoke(MigrationId("m"), "wanted elsewhere", 0, False), -1, "", MigrationId("m"), spec_of("train"), "",
)  # fmt: skip


class Silent:
    """The other regions: answers by address, whose first letter is its region's; no entry: no answer."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Ask]] = []

    async def ask(self, region: RegionId, address: str, ask: Ask, timeout_ms: int) -> Answer:
        self.asked.append((address, ask))
        if address not in self.answers:
            raise NoAnswer(f"{address}: no answer within {timeout_ms} ms")
        (there,) = (name for name in (EAST, WEST, NORTH) if name[0] == address[0])
        return Answer(there, self.answers[address])


class West:
    """A replica of west on simulated stores; its view of the global store is read by hand."""

    def __init__(self, region: RegionId = WEST) -> None:
        self.region, self.keys = region, RegionKeys(region)
        self.clock = SimClock(asyncio.get_running_loop())
        self.cluster = SimCluster(self.clock, SimRng(1))
        self.world_cluster = SimCluster(self.clock, SimRng(2))
        self.store, self.world_store = self.cluster.client("r"), self.world_cluster.client("r")
        self.local = Mirror(self.store, region_root(region), self.clock)
        self.world = Mirror(self.world_store, KEYS.root, self.clock)
        applier = Applier(self.store, self.local, self.keys.audit, SimRng(3), self.clock.wall_ms)
        name = ReplicaId(f"{region}-1")
        self.view = OwnerView(self.world_store, region, self.clock, SHORT)
        self.promiser = Promiser(region, name, self.view, self.store, self.local, applier, self.clock, SHORT)
        self.fences = Fences(region, name, self.local, self.world, applier, lambda: True, self.clock, SHORT)
        self.others = Silent()
        self.promises = Promises(region, name, name, self.view, self.promiser, self.others, self.clock, SHORT)

    async def put(self, key: str, record: object) -> None:
        await self.store.txn([], [PutOp(key, record if isinstance(record, bytes) else codec.encode(record))])

    async def put_globally(self, key: str, record: object) -> None:
        await self.world_store.txn([], [PutOp(key, codec.encode(record))])

    async def fence(self, revision: int, generation: int = 1) -> None:
        await self.put(self.keys.fence(EAST), FenceRecord(EAST, generation, revision))

    async def promised(self) -> PromiseRecord | None:
        kv, _ = await self.store.get(self.keys.promise(EAST))
        return codec.decode(PromiseRecord, kv.value) if kv else None


@asynccontextmanager
async def running(*parts: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(part()) for part in parts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def test_a_promise_is_refused_below_the_fence_and_recorded_now_and_then() -> None:
    async def main() -> None:
        west = West()
        async with running(west.local.run):
            await west.local.wait_loaded()
            await west.fence(1)
            assert await west.promiser.answer(ASK) == ""
            first = await west.promised()
            assert first and (first.replica, first.revision) == ("east-1", 50)
            assert await west.promiser.answer(ASK) == ""
            assert await west.promised() == first, "not written for each question"
            await west.clock.sleep(SHORT.fence_ms)
            assert await west.promiser.answer(ASK) == ""
            later = await west.promised()
            assert later and later.promised_ms > first.promised_ms
            await west.fence(50)
            assert await west.promiser.answer(ASK) == "", "what it has seen is at the fence"
            await west.fence(51)
            assert "raised its fence against east to revision 51" in await west.promiser.answer(ASK)
            await west.fence(1, generation=2)
            assert "raised its fence" in await west.promiser.answer(ASK), "a restored store is another one"

    run_virtual(main())


def test_what_is_not_known_is_not_promised() -> None:
    """Protects: a store that is away, a fence that does not decode, and one that a new or emptied store does not hold
    (any more), are no low fence."""

    async def main() -> None:
        west = West()
        assert "has no fence against east yet" in await west.promiser.answer(ASK)
        await west.put(WEST_KEYS.fence(EAST), b"\xff\xff")
        assert "does not know its own fence" in await west.promiser.answer(ASK)
        west.store.partition()
        assert "does not know its own fence" in await west.promiser.answer(ASK)

    run_virtual(main())


def test_who_asks_in_vain_elsewhere_is_not_kept_alive() -> None:
    """Protects: a region whose jobs have ended is taken for lost in the end, though one region goes on promising."""

    async def main() -> None:
        west = West()
        async with running(west.local.run):
            await west.local.wait_loaded()
            await west.fence(1)
            assert await west.promiser.answer(replace(ASK, alive=False)) == ""
            assert await west.promised() is None

    run_virtual(main())


def test_a_neighbour_that_reads_the_global_store_sends_agents_to_itself() -> None:
    async def main() -> None:
        west = West()
        await west.put(west.keys.fence(WEST), FenceRecord(WEST, 1, 1))
        neighbour = Ask(WEST, ReplicaId("west-2"), Extent(1, 50), True)
        assert await west.promiser.answer(neighbour) == "", "no better off"
        await west.view.refresh()
        assert "reads the global store" in await west.promiser.answer(neighbour)
        assert await west.promiser.answer(replace(neighbour, replica=ReplicaId("west-1"))) == "", "it asks itself"

    run_virtual(main())


@pytest.mark.parametrize(
    ("answers", "own", "living"),
    [
        ({"n": "", "e": ""}, 0, True),
        ({"n": "", "e": "raised"}, 0, False),
        ({"n": ""}, 0, False),  # east is silent
        ({"n": "", "n2": "", "w3": ""}, 0, False),  # where east was, others have come to be
        ({"n": "", "n2": "", "e2": "", "e4": "raised"}, 0, True),  # so they have, but one of east's answers
        ({"n": "", "e2": ""}, 0, True),  # one of its replicas answers
        ({"n": "", "e": "", "w2": "reads the global store"}, 0, False),
        ({"n": "", "e": ""}, 1_000, False),  # its own region has raised its fence
    ],
)
def test_every_region_must_promise(answers: dict[str, str], own: int, living: bool) -> None:
    """Protects: one silent region is enough for the view to age, and the view ages from when the first was asked."""

    async def main() -> None:
        west = West()
        for region, addresses in ((WEST, ("west-1", "w2", "e4")), (EAST, ("e", "e2", "n2", "w3")), (NORTH, ("n",))):
            grant = GrantRecord(region, 1, ReplicaId(f"{region}-1"), 1, addresses=addresses)
            await west.put_globally(KEYS.grant(region), grant)
        await west.view.refresh()
        west.others.answers = answers
        await west.put(west.keys.fence(WEST), FenceRecord(WEST, 1, own))
        async with running(west.promises.run):
            await west.clock.sleep(4 * SHORT.stale_ms)
            assert (west.view.age_ms < SHORT.stale_ms) is living
            assert west.view.read_age_ms >= 4 * SHORT.stale_ms
            assert {ask.seen for _, ask in west.others.asked} == {west.view.extent}
            assert west.promises.living is living

    run_virtual(main())


def test_nothing_is_asked_without_a_grant_or_when_one_does_not_decode() -> None:
    """Protects: a region that was declared lost does not live on promises, and who is to be asked must be known."""

    async def main() -> None:
        for own, other in ((b"\xff\xff", None), (None, b"\xff\xff")):
            west = West()
            for region, broken in ((WEST, own), (EAST, other)):
                value = broken or codec.encode(GrantRecord(region, 1, ReplicaId("r"), 1, addresses=("e",)))
                await west.world_store.txn([], [PutOp(KEYS.grant(region), value)])
            await west.view.refresh()
            west.others.answers = {"e": ""}
            async with running(west.promises.run):
                await west.clock.sleep(2 * SHORT.stale_ms)
                assert west.view.age_ms >= SHORT.stale_ms
                assert not west.others.asked

    run_virtual(main())


def state(fences: Fences, revision: int, peers: tuple[RegionId, ...] = (WEST,)) -> GlobalState:
    """East owns the job, revoked at that revision and seen long ago; its grant names ``peers``."""
    grant = GrantRecord(EAST, 1, ReplicaId("east-1"), 1, peers=peers)
    return GlobalState(
        ownership={OWNER.job: Versioned(OWNER, Revision(revision), Revision(1), 0)},
        grants={EAST: Versioned(grant, Revision(3), Revision(3), 0)},
        failsafe=replace(fences.failsafe(), named={EAST: 0}),
    )


def since(fences: Fences, revision: int, peers: tuple[RegionId, ...] = (WEST,)) -> int | None:
    world = state(fences, revision, peers)
    return waiting_since(world, world.ownership[OWNER.job])


def test_r_runs_from_the_first_fence_that_reaches_the_intent_however_often_it_is_raised_later() -> None:
    """Protects: while many jobs are taken over, one after the other, none waits for those that follow; and what is kept
    of a fence's past is bounded."""

    async def main() -> None:
        west = West()
        async with running(west.local.run):
            await west.local.wait_loaded()
            assert since(west.fences, 100) is None
            for revision in range(100, 160):
                await west.fence(revision)
                await west.clock.sleep(SHORT.takeover_ms // 20)
            seen = since(west.fences, 150)
            last = since(west.fences, 159)
            assert seen is not None and last is not None
            assert last - seen >= 9 * (SHORT.takeover_ms // 20)
            assert since(west.fences, 160) is None
            assert len(west.fences.failsafe().raised[EAST]) <= 23
            assert since(west.fences, 100) is not None, "older ones have stood for R at least"

    run_virtual(main())


def test_a_fence_that_fell_or_is_gone_is_waited_for_anew() -> None:
    """Protects: after a restore of the region's own store nothing that stood before it counts."""

    async def main() -> None:
        west = West()
        async with running(west.local.run):
            await west.local.wait_loaded()
            await west.fence(100)
            await west.clock.sleep(SHORT.takeover_ms)
            await west.fence(90)
            await west.clock.sleep(100)
            assert since(west.fences, 100) is None
            await west.put(WEST_KEYS.fence(EAST), b"\xff\xff")
            await west.clock.sleep(100)
            assert since(west.fences, 90) is None

    run_virtual(main())


def test_who_is_not_named_by_the_other_regions_grant_takes_nothing_over_by_time() -> None:
    async def main() -> None:
        west = West()
        async with running(west.local.run):
            await west.local.wait_loaded()
            await west.fence(100)
            await west.clock.sleep(100)
            assert since(west.fences, 100) is not None
            assert since(west.fences, 100, peers=(NORTH,)) is None
            without = replace(state(west.fences, 100), grants={})
            assert waiting_since(without, without.ownership[OWNER.job]) is not None, "it never renewed anything"
            broken = replace(without, suspect_keys=frozenset({KEYS.grant(EAST)}))
            assert waiting_since(broken, broken.ownership[OWNER.job]) is None, "nobody knows whom it asks"

    run_virtual(main())


def test_r_runs_from_when_the_other_region_was_seen_to_ask_ours() -> None:
    """Protects: a region that joined while another lived on promises without it. The fence stands for R and more, but
    until its own region's fence is raised, which its grant then says, nobody there asks the newcomer."""

    async def main() -> None:
        west = West()

        def asks_since() -> int | None:
            world = replace(state(west.fences, 100), failsafe=west.fences.failsafe())
            return waiting_since(world, world.ownership[OWNER.job])

        async def grant(value: bytes) -> None:
            await west.world_store.txn([], [PutOp(KEYS.grant(EAST), value)])
            await west.clock.sleep(100)

        async with running(west.local.run, west.world.run):
            await west.local.wait_loaded()
            await grant(codec.encode(GrantRecord(EAST, 1, ReplicaId("e"), 1)))
            await west.fence(100)
            await west.clock.sleep(2 * SHORT.takeover_ms)
            assert asks_since() is None
            named = codec.encode(GrantRecord(EAST, 1, ReplicaId("e"), 1, peers=(NORTH, WEST)))
            before = west.clock.mono_ms()
            await grant(named)
            first = asks_since()
            assert first is not None
            assert first >= before
            await west.clock.sleep(SHORT.fence_ms)
            await grant(codec.encode(GrantRecord(EAST, 1, ReplicaId("e"), 2, peers=(NORTH, WEST))))
            assert asks_since() == first, "each extension says it again"
            await grant(b"\xff\xff")
            assert asks_since() is None
            await grant(named)
            again = asks_since()
            assert again is not None
            assert again > first

    run_virtual(main())


def test_a_grant_names_only_regions_below_the_fence_of_its_own() -> None:
    """Protects: a replica with an older view, which would not ask the newcomer, is refused at home before anybody lets
    the newcomer decide."""
    grants = {
        name: Versioned(GrantRecord(name, 1, ReplicaId("r"), 1), Revision(created + 5), Revision(created), 0)
        for name, created in ((EAST, 10), (WEST, 20), (NORTH, 30))
    }
    fence = Versioned(FenceRecord(EAST, 1, 25), Revision(7), Revision(7), 0)
    world = GlobalState(grants=grants, failsafe=Failsafe(EAST, {EAST: fence}))
    assert peers_to_name(world, EAST) == (WEST,)
    assert peers_to_name(replace(world, failsafe=Failsafe(EAST)), EAST) == ()
    assert peers_to_name(replace(world, generation=2), EAST) == ()


def test_a_region_whose_store_was_lost_promises_only_to_who_has_seen_all_that_its_leader_sees() -> None:
    """Protects: an intent on which somebody has acted already, so that it shows no more, when the fence that it raised
    is lost with its store. An asker from before it, whose node never heard of the job's next owner, would start it."""

    async def main() -> None:
        west = West()
        async with running(west.local.run, west.world.run, west.fences.run):
            await west.local.wait_loaded()
            await west.put_globally(KEYS.grant(EAST), GrantRecord(EAST, 1, ReplicaId("e"), 1))
            await west.put_globally(KEYS.ownership(OWNER.job), OWNER)
            await west.clock.sleep(1_000)
            before = replace(ASK, seen=Extent(1, await raised(west) - 1))
            moved = replace(OWNER, region=WEST, epoch=Epoch(1, 2), revoke=None)
            await west.put_globally(KEYS.ownership(OWNER.job), moved)
            await west.clock.sleep(1_000)
            await west.store.txn([], [DeleteOp(WEST_KEYS.fence(EAST))])
            assert "has no fence" in await west.promiser.answer(before)
            await west.clock.sleep(1_000)
            assert "raised its fence" in await west.promiser.answer(before)
            now = Extent(1, int((await west.world_store.range(KEYS.root)).revision))
            assert await west.promiser.answer(replace(ASK, seen=now)) == ""

    run_virtual(main())


def test_a_fence_that_does_not_decode_is_raised_anew_to_all_that_stands_globally() -> None:
    """Protects: a region that cannot read its own fence promises again without a human; and what it refused before it
    still refuses, though the leader that writes the fence anew had not yet seen why."""

    async def main() -> None:
        west = West()
        async with running(west.local.run, west.world.run, west.fences.run):
            await west.local.wait_loaded()
            await west.put_globally(KEYS.grant(EAST), GrantRecord(EAST, 1, ReplicaId("e"), 1))
            await west.clock.sleep(1_000)
            west.world_store.partition()
            another = west.world_cluster.client("another")
            await another.txn([], [PutOp(KEYS.ownership(OWNER.job), codec.encode(OWNER))])
            intent = int((await another.range(KEYS.root)).revision)
            await west.fence(intent)  # by another one of its replicas
            await west.put(WEST_KEYS.fence(EAST), b"\xff\xff")
            await west.clock.sleep(1_000)
            assert west.world.fresh, "it does not know yet that it sees nothing new"
            before, now = (replace(ASK, seen=Extent(1, revision)) for revision in (intent - 1, intent))
            assert "does not know its own fence" in await west.promiser.answer(before)
            west.world_store.heal()
            await west.clock.sleep(5_000)
            assert "raised its fence" in await west.promiser.answer(before)
            assert await west.promiser.answer(now) == ""

    run_virtual(main())


def test_without_the_stores_generation_its_revisions_say_nothing() -> None:
    """Protects: the header of a restored store that does not decode is not taken for that of a first one."""
    fence = Versioned(FenceRecord(EAST, 2, 25), Revision(7), Revision(7), 0)
    owner = Versioned(OWNER, Revision(100), Revision(1), 0)
    grants = {
        name: Versioned(GrantRecord(name, 1, ReplicaId("r"), 1, peers=(WEST,)), Revision(90), Revision(90), 0)
        for name in (EAST, WEST)
    }
    raised = {EAST: ((Extent(2, 25), 0),)}
    failsafe = Failsafe(WEST, {EAST: fence, WEST: fence}, raised, named={EAST: 0})
    world = GlobalState(ownership={OWNER.job: owner}, grants=grants, failsafe=failsafe)
    unknown = replace(world, suspect_keys=frozenset({KEYS.meta}))
    assert waiting_since(world, owner) == 0, "of an older generation: nobody is below the fence"
    assert waiting_since(unknown, owner) is None
    assert decide_fences(unknown) == ()
    assert peers_to_name(unknown, WEST) == ()


def test_fences_are_raised_for_intents_verdicts_and_newcomers_and_never_fall() -> None:
    async def main() -> None:
        west = West()
        async with running(west.local.run, west.world.run, west.fences.run):
            await west.local.wait_loaded()
            await west.put_globally(KEYS.grant(EAST), GrantRecord(EAST, 1, ReplicaId("e"), 1))
            joined = (await west.world_store.range(KEYS.root)).revision
            await west.clock.sleep(1_000)
            assert await raised(west) == joined
            await west.put_globally(KEYS.ownership(OWNER.job), OWNER)
            await west.clock.sleep(1_000)
            assert await raised(west) == joined + 1
            await west.put_globally(KEYS.ownership(OWNER.job), replace(OWNER, revoke=None))
            await west.clock.sleep(1_000)
            assert await raised(west) == joined + 1
            await west.put_globally(KEYS.grant(EAST), GrantRecord(EAST, 1, ReplicaId("e"), 1, revoked="it is lost"))
            await west.clock.sleep(1_000)
            assert await raised(west) == joined + 3

    run_virtual(main())


async def raised(west: West) -> int:
    kv, _ = await west.store.get(WEST_KEYS.fence(EAST))
    return codec.decode(FenceRecord, kv.value).revision if kv else 0
