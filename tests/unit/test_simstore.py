"""Protects: the simulated store's faults are what they claim, and a run is a function of its seed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.loop import run_virtual
from chaos.simulate.store import FaultRates, SimCluster
from gridkeeper.ids import Revision
from gridkeeper.ports.store import (
    DeleteOp,
    LeaseGone,
    NoSpace,
    OutcomeUnknown,
    PutOp,
    StoreError,
    StoreUnavailable,
    WatchBatch,
)

PUT = (PutOp("/a", b"1"),)


def simulate(story: Callable[[SimCluster], Awaitable[None]], seed: int = 1) -> None:
    async def main() -> None:
        cluster = SimCluster(SimClock(asyncio.get_running_loop()), SimRng(seed))
        try:
            async with asyncio.timeout(3_600):
                await story(cluster)
        finally:
            await cluster.close()

    run_virtual(main())


def test_each_fault_does_what_it_says_and_no_more() -> None:
    async def story(cluster: SimCluster) -> None:
        store, other = cluster.client("a"), cluster.client("b")

        async def exists() -> bool:
            return (await other.get("/a"))[0] is not None

        store.refuse()
        with pytest.raises(StoreUnavailable):
            await store.txn((), PUT)
        assert not await exists()

        store.lose_requests()
        with pytest.raises(OutcomeUnknown):
            await store.txn((), PUT)
        await cluster.clock.sleep(60_000)
        assert not await exists()

        store.delay_writes(most_ms=5_000)
        with pytest.raises(OutcomeUnknown):
            await store.txn((), PUT)
        async with asyncio.timeout(10):
            while not await exists():
                await cluster.clock.sleep(100)
        await other.txn((), (DeleteOp("/a"),))

        store.lose_replies()
        with pytest.raises(OutcomeUnknown):
            await store.txn((), PUT)
        assert await exists()
        assert (await store.txn((), PUT)).succeeded, "an ordered fault outlived its call"

    simulate(story)


def test_a_partition_cuts_off_one_handle_and_heals_without_loss() -> None:
    async def story(cluster: SimCluster) -> None:
        store, other = cluster.client("a"), cluster.client("b")
        async with aclosing(store.watch("/", Revision(1))) as watch:
            store.partition()
            with pytest.raises(StoreUnavailable):
                await store.get("/a")
            with pytest.raises(OutcomeUnknown):
                await store.txn((), PUT)
            silent = asyncio.ensure_future(watch.__anext__())
            for number in range(10):
                await other.txn((), (PutOp("/a", b"%d" % number),))
            await cluster.clock.sleep(10_000)
            assert not silent.done()
            store.heal()
            values = [change.kv.value for change in (await silent).changes]
            assert values == [b"%d" % number for number in range(10)]

    simulate(story)


def test_a_watch_cut_off_over_a_compaction_is_reset_a_connected_one_is_not() -> None:
    async def story(cluster: SimCluster) -> None:
        store, other = cluster.client("a"), cluster.client("b")
        async with aclosing(store.watch("/", Revision(1))) as away, aclosing(other.watch("/", Revision(1))) as near:
            await other.txn((), PUT)
            assert not (await away.__anext__()).reset
            assert not (await near.__anext__()).reset
            store.partition()
            await other.txn((), (PutOp("/b", b""), DeleteOp("/a")))
            assert not (await near.__anext__()).reset
            cluster.compact()
            store.heal()
            batch = await away.__anext__()
            assert batch.reset and [change.kv.key for change in batch.changes] == ["/b"]
            batch = await near.__anext__()
            assert not batch.reset and not batch.changes

    simulate(story)


def test_out_of_space_refuses_puts_and_leases_only() -> None:
    async def story(cluster: SimCluster) -> None:
        store = cluster.client("a")
        lease = await store.lease_grant(60)
        await store.txn((), PUT)
        cluster.nospace = True
        with pytest.raises(NoSpace):
            await store.txn((), PUT)
        with pytest.raises(NoSpace):
            await store.lease_grant(60)
        assert await store.lease_keepalive(lease) == 60
        await store.txn((), (DeleteOp("/a"),))
        assert (await store.get("/a"))[0] is None
        cluster.nospace = False
        await store.txn((), PUT)

    simulate(story)


def test_progress_comes_about_once_a_second_and_leases_end_within_half_a_second_of_their_time() -> None:
    async def story(cluster: SimCluster) -> None:
        store = cluster.client("a")
        lease = await store.lease_grant(5)
        granted = cluster.clock.mono_ms()
        await store.txn((), (PutOp("/a", b"", lease),))
        quiet = 0
        async with aclosing(store.watch("/", Revision(1))) as watch:
            async for batch in watch:
                quiet += not batch.changes
                if any(change.deleted for change in batch.changes):
                    break
        assert 5_000 <= cluster.clock.mono_ms() - granted <= 5_600
        assert 4 <= quiet <= 6
        with pytest.raises(LeaseGone):
            await store.lease_keepalive(lease)

    simulate(story)


def _trace(seed: int) -> list[object]:
    """A busy, faulty minute."""
    heard: list[object] = []

    async def story(cluster: SimCluster) -> None:
        async def work(name: str) -> None:
            store = cluster.client(name)
            store.rates = FaultRates(0.05, 0.05, 0.05, 0.05)
            while True:
                try:
                    done = await store.txn((), (PutOp(f"/{name}", b""),))
                    heard.append((name, cluster.clock.mono_ms(), done.revision))
                except StoreError as error:
                    heard.append((name, cluster.clock.mono_ms(), str(error)))
                await cluster.clock.sleep(50)

        async def listen(name: str) -> None:
            async for batch in cluster.client(name).watch("/", Revision(1)):
                assert isinstance(batch, WatchBatch)
                heard.append((name, cluster.clock.mono_ms(), batch))

        tasks = [asyncio.ensure_future(work(name)) for name in ("a", "b")]
        tasks += [asyncio.ensure_future(listen(name)) for name in ("c", "d")]
        await cluster.clock.sleep(30_000)
        cluster.client("c").partition()
        cluster.compact()
        await cluster.clock.sleep(10_000)
        cluster.client("c").heal()
        await cluster.clock.sleep(20_000)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    simulate(story, seed)
    return heard


def test_equal_seeds_give_equal_histories_and_others_do_not() -> None:
    first = _trace(7)
    assert len(first) > 500
    assert first == _trace(7)
    assert first != _trace(8)
