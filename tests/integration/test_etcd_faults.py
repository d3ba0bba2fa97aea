"""Protects: what the control plane's safety rests on when etcd members die, hang or lose their quorum: no change is
lost or doubled, no write is repeated blindly, and everything comes back by itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Literal

import pytest
import pytest_asyncio

from controlplane.store.election import Election, LeasedKey
from controlplane.store.embedded import EmbeddedEtcd
from controlplane.store.etcd import EtcdStore
from gridkeeper.clock import SystemRng
from gridkeeper.ids import Revision
from gridkeeper.ports.store import ANY, Compare, DeleteOp, OutcomeUnknown, PutOp, Store, StoreUnavailable, Watch
from tests.fixtures.etcd import CLOCK, collect, compact, make_etcd, open_store

pytestmark = pytest.mark.etcd

MEMBERS = 3
_prefixes = itertools.count(1)


class FirstChoice(SystemRng):
    """Makes a client begin with the first endpoint of its list."""

    def uniform(self, low: float, high: float) -> float:
        return low


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEtcd]:
    etcd = make_etcd(tmp_path_factory.mktemp("etcd-faults"), MEMBERS)
    asyncio.run(etcd.start())
    yield etcd
    asyncio.run(etcd.stop())


@pytest_asyncio.fixture
async def etcd(cluster: EmbeddedEtcd) -> AsyncIterator[EmbeddedEtcd]:
    """The cluster; whatever a test does to it is undone."""
    yield cluster
    for member in range(MEMBERS):
        if cluster.alive(member):
            cluster.resume(member)
        else:
            await cluster.restart(member)
    await cluster.wait_ready()


@pytest.fixture
def prefix() -> str:
    return f"/faults/{next(_prefixes)}/"


async def member_who(etcd: EmbeddedEtcd, role: str) -> int:
    """A member that leads, or one that follows."""
    store = await open_store(etcd)
    try:
        leads = [status.is_leader for status in await store.status()]
    finally:
        await store.close()
    return leads.index(role == "leader")


@asynccontextmanager
async def client_of(etcd: EmbeddedEtcd, first: int, *, only: bool = False) -> AsyncIterator[EtcdStore]:
    """A client that speaks to member ``first``, and turns to the others (unless ``only``) when that fails."""
    order = etcd.endpoints[first:] + etcd.endpoints[:first]
    config = replace(etcd.config, endpoints=order[:1] if only else order)
    store = await EtcdStore.open(config, CLOCK, FirstChoice())
    try:
        yield store
    finally:
        await store.close()


class Counter:
    """Counts in one key by compare-and-swap, as a careful client does: an unknown outcome is read again."""

    def __init__(self, store: Store, key: str) -> None:
        self.store = store
        self.key = key
        self.written = 0
        self._mod = ANY

    async def step(self) -> None:
        value = b"%d" % (self.written + 1)
        while True:
            try:
                done = await self.store.txn((Compare(self.key, self._mod),), (PutOp(self.key, value),))
                assert done.succeeded, f"{self.key} was changed by somebody else, or twice by one call"
                self._mod = done.revision
                break
            except OutcomeUnknown:
                if await self._was_written(value):
                    break
            except StoreUnavailable:
                await CLOCK.sleep(20)
        self.written += 1

    async def _was_written(self, value: bytes) -> bool:
        while True:
            try:
                kv, _ = await self.store.get(self.key)
            except StoreUnavailable:
                await CLOCK.sleep(20)
                continue
            if kv is not None and kv.value == value:
                self._mod = kv.mod_revision
                return True
            return False


async def values_of(watch: Watch, last: int) -> list[int]:
    """Everything the watch says until the value ``last``."""
    batches = await collect(
        watch, lambda got: any(int(c.kv.value) == last for b in got for c in b.changes), within_s=40
    )
    assert not any(batch.reset for batch in batches)
    return [int(change.kv.value) for batch in batches for change in batch.changes]


@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("fault", ["killed", "paused"])
async def test_the_connected_member_fails(
    etcd: EmbeddedEtcd, prefix: str, fault: Literal["killed", "paused"], role: str
) -> None:
    """Writes come back, and a watch on the same member goes on without a gap or a double."""
    victim = await member_who(etcd, role)
    async with client_of(etcd, victim) as store, asyncio.timeout(60):
        counter = Counter(store, prefix + "n")
        async with aclosing(store.watch(prefix, Revision(1))) as watch:
            for _ in range(20):
                await counter.step()
            assert await values_of(watch, 20) == list(range(1, 21))
            reading = asyncio.ensure_future(values_of(watch, 60))
            (etcd.kill if fault == "killed" else etcd.pause)(victim)
            while counter.written < 60:
                await counter.step()
            assert await reading == list(range(21, 61))


async def test_a_member_that_comes_back_is_used_again(etcd: EmbeddedEtcd, prefix: str) -> None:
    """All members are restarted one after the other; the client outlives each, and ends on those that run."""
    async with client_of(etcd, 0) as store, asyncio.timeout(100):
        counter = Counter(store, prefix + "n")
        async with aclosing(store.watch(prefix, Revision(1))) as watch:
            for member in range(MEMBERS):
                etcd.kill(member)
                for _ in range(5):
                    await counter.step()
                await etcd.restart(member)
            for _ in range(5):
                await counter.step()
            assert await values_of(watch, 20) == list(range(1, 21))


async def test_without_a_quorum_nothing_hangs_and_no_certain_refusal_was_a_write(
    etcd: EmbeddedEtcd, prefix: str
) -> None:
    async with client_of(etcd, 0) as store, asyncio.timeout(100):
        await store.txn((), (PutOp(prefix + "before", b""),))
        _, since = await store.get(prefix)
        watch = store.watch(prefix, Revision(since + 1))
        etcd.kill(1)
        etcd.kill(2)
        refused, unknown = 0, 0
        for number in range(2):
            async with asyncio.timeout(10):
                try:
                    await store.txn((), (PutOp(f"{prefix}{number}", b""),))
                    pytest.fail("a write was confirmed without a quorum")
                except StoreUnavailable:
                    refused |= 1 << number
                except OutcomeUnknown:
                    unknown |= 1 << number
            async with asyncio.timeout(10):
                with pytest.raises(StoreUnavailable):
                    await store.get(prefix)
            async with asyncio.timeout(10):
                with pytest.raises(StoreUnavailable):
                    await store.lease_grant(5)
        assert refused | unknown == 0b11
        await etcd.restart(1)
        counter = Counter(store, prefix + "after")
        await counter.step()
        page = await store.range(prefix)
        found = {kv.key.removeprefix(prefix) for kv in page.items}
        assert not {str(n) for n in range(2) if refused >> n & 1} & found, "a write said not to have happened did"
        async with aclosing(watch):
            batches = await collect(watch, lambda got: any(c.kv.key == counter.key for b in got for c in b.changes))
        assert {c.kv.key.removeprefix(prefix) for b in batches for c in b.changes} == found - {"before"}


async def test_a_watch_that_was_away_over_a_compaction_is_reset(etcd: EmbeddedEtcd, prefix: str) -> None:
    """Its only member sleeps while the others compact its history away."""
    victim = await member_who(etcd, "follower")
    other = (victim + 1) % MEMBERS
    async with client_of(etcd, victim, only=True) as lonely, client_of(etcd, other) as store, asyncio.timeout(60):
        await store.txn((), (PutOp(prefix + "a", b"1"), PutOp(prefix + "gone", b"1")))
        async with aclosing(lonely.watch(prefix, Revision(1))) as watch:
            await collect(watch, lambda got: any(b.changes for b in got))
            etcd.kill(victim)
            await store.txn((), (DeleteOp(prefix + "gone"),))
            last = await store.txn((), (PutOp(prefix + "a", b"2"),))
            await compact(etcd, last.revision, other)
            await etcd.restart(victim)
            batches = await collect(watch, lambda got: any(b.changes for b in got), within_s=40)
        assert batches[-1].reset
        assert {c.kv.key: c.kv.value for c in batches[-1].changes} == {prefix + "a": b"2"}


class TestElections:
    async def test_when_a_leader_dies_another_leads_with_a_larger_term(self, etcd: EmbeddedEtcd, prefix: str) -> None:
        async with client_of(etcd, 1) as survivor, asyncio.timeout(60):
            doomed = await open_store(etcd)
            first = await Election(doomed, prefix + "leader", b"a", 2, CLOCK).campaign()
            second = asyncio.ensure_future(Election(survivor, prefix + "leader", b"b", 2, CLOCK).campaign())
            await doomed.close()  # nobody renews any more, nobody resigns
            follower = await second
            assert first.lost.is_set(), "the old leader believed to lead when the new one did"
            assert follower.term > first.term
            await first.resign()
            await follower.resign()

    async def test_a_resigned_leader_does_not_make_others_wait_for_its_lease(
        self, etcd: EmbeddedEtcd, prefix: str
    ) -> None:
        async with client_of(etcd, 0) as a, client_of(etcd, 1) as b, asyncio.timeout(30):
            first = await Election(a, prefix + "leader", b"a", 600, CLOCK).campaign()
            second = asyncio.ensure_future(Election(b, prefix + "leader", b"b", 600, CLOCK).campaign())
            await asyncio.sleep(0)
            assert not second.done()
            await first.resign()
            async with await second as follower:
                assert follower.term > first.term and follower.held()
            assert (await a.get(prefix + "leader"))[0] is None

    async def test_a_leader_on_a_paused_member_knows_before_another_wins(self, etcd: EmbeddedEtcd, prefix: str) -> None:
        victim = await member_who(etcd, "follower")
        other = (victim + 1) % MEMBERS
        async with client_of(etcd, victim, only=True) as cut_off, client_of(etcd, other) as store, asyncio.timeout(60):
            first = await Election(cut_off, prefix + "leader", b"a", 3, CLOCK).campaign()
            second = asyncio.ensure_future(Election(store, prefix + "leader", b"b", 3, CLOCK).campaign())
            etcd.pause(victim)
            follower = await second
            assert first.lost.is_set() and not first.held()
            assert follower.term > first.term
            etcd.resume(victim)
            await first.resign()
            assert follower.held()
            await follower.resign()

    async def test_a_leader_with_other_members_to_turn_to_keeps_its_term(self, etcd: EmbeddedEtcd, prefix: str) -> None:
        victim = await member_who(etcd, "follower")
        async with client_of(etcd, victim) as store, asyncio.timeout(60):
            leadership = await Election(store, prefix + "leader", b"a", 5, CLOCK).campaign()
            etcd.kill(victim)
            async with aclosing(store.watch(prefix + "none", Revision(1))) as watch:
                await collect(watch, lambda got: len(got) >= 6)  # several seconds of progress: past the TTL
            assert leadership.held()
            kv, _ = await store.get(prefix + "leader")
            assert kv is not None and kv.create_revision == leadership.term
            await leadership.resign()

    async def test_a_leased_key_comes_back_after_an_outage(self, etcd: EmbeddedEtcd, prefix: str) -> None:
        async with client_of(etcd, 0) as store, asyncio.timeout(90):
            key = LeasedKey(store, prefix + "replica", b"here", 2, CLOCK)
            running = asyncio.ensure_future(key.run())
            await key.present.wait()
            etcd.kill(1)
            etcd.kill(2)
            while key.present.is_set():
                await CLOCK.sleep(50)
            await etcd.restart(1)
            await key.present.wait()
            assert (await store.get(prefix + "replica"))[0] is not None
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert (await store.get(prefix + "replica"))[0] is None
