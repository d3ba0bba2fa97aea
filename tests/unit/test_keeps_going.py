"""What must not end a replica: without its answers to renewals, every job of its nodes ends F later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from chaos.simulate.checkpoints import MemoryTree, SimCheckpointStore
from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.loop import run_virtual
from chaos.simulate.network import SimNetwork
from chaos.simulate.store import SimCluster, SimStore
from controlplane.shell.apply import Applier, Fence
from controlplane.shell.leader import apply_all
from controlplane.shell.mirror import Mirror
from controlplane.shell.ownerview import OwnerView
from controlplane.shell.replica import FAILED_MS, Ports, Replica
from gridkeeper import codec
from gridkeeper.decision import ABSENT, Decision, Put
from gridkeeper.ids import DeviceId, Epoch, Extent, JobId, MigrationId, NodeId, RegionId, ReplicaId, Revision
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.ports.store import KeyValue, Page, PutOp, StoreDenied, StoreUnavailable, WatchBatch
from gridkeeper.records.books import MetaRecord
from gridkeeper.records.common import Desired
from gridkeeper.records.faults import DetectorRecord
from gridkeeper.records.fleet import LivenessRecord, NodeState
from gridkeeper.records.jobs import GrantRecord, OwnershipRecord, Revoke
from gridkeeper.snapshot import Settings
from gridkeeper.timings import SHORT
from tests.unit.failover_parts import spec_of

EAST = RegionId("east")
EAST_KEYS = RegionKeys(EAST)
TRAIN = JobId("train")


def an_owner(number: int) -> OwnershipRecord:
    return OwnershipRecord(
        TRAIN, Epoch(1, number), EAST, NodeId("n1"), (DeviceId("n1/gpu0"),), Desired.RUN, 0, None, -1, "",
        MigrationId("m"), spec_of("train"), "",
    )  # fmt: skip


def test_a_grant_that_does_not_decode_acknowledges_nothing_and_is_read_again() -> None:
    async def main() -> None:
        clock = SimClock(asyncio.get_running_loop())
        cluster = SimCluster(clock, SimRng(1))
        store = cluster.client("a")
        view = OwnerView(store, EAST, clock, SHORT)
        await store.txn([], [PutOp(KEYS.grant(EAST), b"\xff\xff")])
        running = asyncio.ensure_future(view.run())
        await clock.sleep(2_000)
        assert not running.done()
        assert view.grant is None
        grant = GrantRecord(EAST, 1, ReplicaId("a"), 1)
        await store.txn([], [PutOp(KEYS.grant(EAST), codec.encode(grant))])
        await clock.sleep(2_000)
        assert view.grant == grant
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await cluster.close()

    run_virtual(main())


class Restored:
    """A store whose history was rolled back: its revisions are lower than those that were read before."""

    def __init__(self) -> None:
        self.revision = 100
        self.owner = an_owner(2)
        self.generation = 1
        self.age = 1  # of the ownership, in revisions

    async def get(self, key: str) -> tuple[KeyValue | None, Revision]:
        meta = KeyValue(key, codec.encode(MetaRecord(self.generation, "global", 0)), Revision(1), Revision(1), 1, 0)
        return meta if key == KEYS.meta else None, Revision(self.revision)

    async def range(self, prefix: str, *, min_mod_revision: int = 0, **_: object) -> Page:
        written = Revision(self.revision - self.age)
        kv = KeyValue(KEYS.ownership(TRAIN), codec.encode(self.owner), written, written, 1, 0)
        return Page((kv,) if written >= min_mod_revision else (), Revision(self.revision), False)


def test_after_a_restore_of_the_store_the_view_forgets_what_is_no_longer_true() -> None:
    async def main() -> None:
        store = Restored()
        view = OwnerView(store, EAST, SimClock(asyncio.get_running_loop()), SHORT)  # type: ignore[arg-type]
        await view.refresh()
        store.revision, store.owner = 50, an_owner(1)
        await view.refresh()
        seen = view.owner(TRAIN)
        assert seen is not None
        assert seen.record.epoch == Epoch(1, 1)

    run_virtual(main())


def test_a_store_that_was_restored_long_ago_is_read_anew_though_its_revisions_are_higher_by_now() -> None:
    """Protects: an intent that the restored store holds at a revision which the view has read, in the history that was
    rolled back. The view would go on to acknowledge the owner, and say that it had seen everything."""

    async def main() -> None:
        store = Restored()
        view = OwnerView(store, EAST, SimClock(asyncio.get_running_loop()), SHORT)  # type: ignore[arg-type]
        await view.refresh()
        revoke = Revoke(MigrationId("m"), "wanted elsewhere", 0, False)
        store.owner, store.revision, store.age, store.generation = replace(an_owner(2), revoke=revoke), 150, 100, 2
        await view.refresh()
        seen = view.owner(TRAIN)
        assert seen is not None
        assert seen.record.revoke == revoke
        assert view.extent == Extent(2, 150)

    run_virtual(main())


def test_what_a_restored_store_holds_at_a_revision_seen_before_is_seen_now() -> None:
    """Protects: R after an intent runs from when *it* was seen, not from what another history had at that revision."""

    class Following:
        """One read of everything after the other, as when the watch cannot be resumed."""

        def __init__(self) -> None:
            self.owner = an_owner(1)

        async def range(self, prefix: str, **_: object) -> Page:
            kv = KeyValue(KEYS.ownership(TRAIN), codec.encode(self.owner), Revision(5), Revision(9), 2, 0)
            return Page((kv,), Revision(9), False)

        def watch(self, prefix: str, start: Revision) -> AsyncIterator[WatchBatch]:
            raise StoreUnavailable("another cluster")

    async def main() -> None:
        store, clock = Following(), SimClock(asyncio.get_running_loop())
        mirror = Mirror(store, KEYS.root, clock)  # type: ignore[arg-type]
        began_ms = clock.mono_ms()
        following = asyncio.ensure_future(mirror.run())
        await clock.sleep(5_000)
        first = mirror.newest("ownership", TRAIN)
        assert first is not None
        assert first.seen_ms < began_ms + 1_000, "read again and again, it is the same"
        store.owner = replace(an_owner(1), revoke=Revoke(MigrationId("m"), "wanted elsewhere", 0, False))
        await clock.sleep(1_000)
        second = mirror.newest("ownership", TRAIN)
        assert second is not None
        assert second.record == store.owner
        assert second.seen_ms >= began_ms + 5_000
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    run_virtual(main())


class Denying:
    """A store that for a while does not let its user watch."""

    def __init__(self, store: SimStore) -> None:
        self._store = store
        self.denies = 1

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def watch(self, prefix: str, start: Revision) -> AsyncIterator[WatchBatch]:
        if not self.denies:
            return self._store.watch(prefix, start)
        self.denies -= 1
        return self._denied()

    async def _denied(self) -> AsyncIterator[WatchBatch]:
        raise StoreDenied("permission denied")
        yield


def test_a_watch_that_is_denied_is_taken_up_again() -> None:
    async def main() -> None:
        clock = SimClock(asyncio.get_running_loop())
        cluster = SimCluster(clock, SimRng(1))
        store = cluster.client("a")
        mirror = Mirror(Denying(store), EAST_KEYS.root, clock)  # type: ignore[arg-type]
        following = asyncio.ensure_future(mirror.run())
        await mirror.wait_loaded()
        await clock.sleep(2_000)
        done = await store.txn([], [PutOp(EAST_KEYS.detector, codec.encode(DetectorRecord(Revision(1))))])
        assert await mirror.wait_revision(done.revision, 5_000)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await cluster.close()

    run_virtual(main())


def test_a_decision_too_large_for_the_store_does_not_hold_up_the_others() -> None:
    async def main() -> None:
        clock = SimClock(asyncio.get_running_loop())
        cluster = SimCluster(clock, SimRng(1))
        store = cluster.client("a")
        mirror = Mirror(store, EAST_KEYS.root, clock)
        following = asyncio.ensure_future(mirror.run())
        await mirror.wait_loaded()
        applier = Applier(store, mirror, EAST_KEYS.audit, SimRng(2), clock.wall_ms)

        def puts(count: int) -> tuple[Put, ...]:
            nodes = [NodeId(f"n{count}-{number}") for number in range(count)]
            return tuple(
                Put(EAST_KEYS.liveness(n), LivenessRecord(n, NodeState.ALIVE, 1, "heard"), ABSENT) for n in nodes
            )

        decisions = [Decision("health.step", "many", puts(200)), Decision("health.step", "one", puts(1))]
        assert await apply_all(decisions, applier, "machine/a", None)
        assert set(mirror.kind("liveness")) == {"n1-0"}
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await cluster.close()

    run_virtual(main())


class Faulty(Replica):
    """Its decisions fail by an error of ours."""

    led = 0

    async def _lead_region(self, fence: Fence) -> None:
        self.led += 1
        raise KeyError("a record that nobody thought of")


def test_decisions_that_fail_give_up_the_lead_and_end_nothing_else() -> None:
    async def main() -> None:
        clock = SimClock(asyncio.get_running_loop())
        cluster = SimCluster(clock, SimRng(1))
        checkpoints = {EAST: SimCheckpointStore(MemoryTree())}
        nobody = SimNetwork(clock, SimRng("b")).regions("a")
        ports = Ports(clock, SimRng("a"), cluster.client("a"), cluster.client("b"), checkpoints, nobody)
        replica = Faulty(EAST, ReplicaId("a"), "a", ports, Settings(timings=SHORT))
        running = asyncio.ensure_future(replica.run())
        await clock.sleep(4 * FAILED_MS)
        assert not running.done()
        assert 2 <= replica.led <= 4, "it stands again, but not in haste"
        assert replica.view.age_ms <= SHORT.stale_ms
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await cluster.close()

    run_virtual(main())
