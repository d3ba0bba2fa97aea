"""Protects: at most one leader knows itself to lead at any time, terms only grow, and a lost reply of the store neither
makes two leaders nor stops elections for ever. All on the simulated store and virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.loop import run_virtual
from chaos.simulate.store import FaultRates, SimCluster, SimSettings
from controlplane.store.election import Election, LeasedKey
from gridkeeper.ports.store import DeleteOp, GetOp, PutOp

KEY = "/gridkeeper/v1/region/east/leader"
TTL_S = 5


class Grid:
    """A cluster and its clock on the running virtual loop."""

    def __init__(self, seed: int = 1) -> None:
        self.clock = SimClock(asyncio.get_running_loop())
        self.cluster = SimCluster(self.clock, SimRng(seed), SimSettings())

    def election(self, name: str) -> Election:
        return Election(self.cluster.client(name), KEY, name.encode(), TTL_S, self.clock)


def simulate(story: Callable[[Grid], Awaitable[None]], seed: int = 1) -> None:
    async def main() -> None:
        grid = Grid(seed)
        try:
            async with asyncio.timeout(600):
                await story(grid)
        finally:
            await grid.cluster.close()

    run_virtual(main())


def test_the_term_is_the_create_revision_of_the_leader_key() -> None:
    async def story(grid: Grid) -> None:
        leadership = await grid.election("a").campaign()
        kv, _ = await grid.cluster.client("a").get(KEY)
        assert kv is not None and kv.value == b"a"
        assert leadership.term == kv.create_revision
        assert leadership.held() and not leadership.lost.is_set()
        await leadership.resign()

    simulate(story)


def test_a_resigned_leader_is_followed_at_once_with_a_larger_term() -> None:
    async def story(grid: Grid) -> None:
        first = await grid.election("a").campaign()
        second = asyncio.ensure_future(grid.election("b").campaign())
        await grid.clock.sleep(20_000)
        assert not second.done() and first.held()
        asked = grid.clock.mono_ms()
        await first.resign()
        assert first.lost.is_set() and not first.held()
        follower = await second
        assert grid.clock.mono_ms() - asked < TTL_S * 1_000 // 4
        assert follower.term > first.term
        await follower.resign()

    simulate(story)


def test_a_leader_cut_off_knows_it_before_another_leads() -> None:
    async def story(grid: Grid) -> None:
        first = await grid.election("a").campaign()
        second = asyncio.ensure_future(grid.election("b").campaign())
        await grid.clock.sleep(3_000)
        grid.cluster.client("a").partition()
        cut = grid.clock.mono_ms()
        await first.lost.wait()
        knew = grid.clock.mono_ms()
        assert not second.done()
        assert knew - cut <= TTL_S * 1_000
        follower = await second
        assert follower.term > first.term
        grid.cluster.client("a").heal()
        await first.resign()
        assert follower.held(), "resigning a lost term took the next one with it"
        await follower.resign()

    simulate(story)


def test_a_leader_whose_key_is_deleted_or_replaced_loses() -> None:
    async def story(grid: Grid) -> None:
        admin = grid.cluster.client("admin")
        for op in (DeleteOp(KEY), PutOp(KEY, b"mine now")):
            leadership = await grid.election("a").campaign()
            await admin.txn((), (op,))
            await leadership.lost.wait()
            assert KEY in leadership.reason
            await leadership.resign()
        await admin.txn((), (DeleteOp(KEY),))

    simulate(story)


def test_losing_the_reply_to_the_winning_write_still_elects() -> None:
    async def story(grid: Grid) -> None:
        grid.cluster.client("a").lose_replies()
        leadership = await grid.election("a").campaign()
        kv, _ = await grid.cluster.client("b").get(KEY)
        assert kv is not None and kv.create_revision == leadership.term
        await leadership.resign()

    simulate(story)


def test_a_write_that_lands_after_it_was_given_up_elects_nobody() -> None:
    """The late put names a lease that was revoked, so the store refuses it."""

    async def story(grid: Grid) -> None:
        a = grid.cluster.client("a")
        a.delay_writes(most_ms=3_000)
        leadership = await grid.election("a").campaign()
        await grid.clock.sleep(10_000)
        assert leadership.held()
        kv, _ = await a.get(KEY)
        assert kv is not None and kv.create_revision == leadership.term and kv.version == 1
        await leadership.resign()

    simulate(story)


def test_a_new_etcd_leader_that_prolongs_leases_makes_nobody_lead_twice() -> None:
    async def story(grid: Grid) -> None:
        first = await grid.election("a").campaign()
        second = asyncio.ensure_future(grid.election("b").campaign())
        grid.cluster.client("a").partition()
        await grid.clock.sleep(2_000)
        grid.cluster.new_leader()
        follower = await second
        assert first.lost.is_set()
        assert follower.term > first.term
        await follower.resign()
        await first.resign()

    simulate(story)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    cuts=st.lists(st.tuples(st.integers(0, 2), st.integers(100, 9_000), st.integers(100, 9_000)), max_size=6),
    lossy=st.booleans(),
)
def test_never_two_who_believe_to_lead(seed: int, cuts: list[tuple[int, int, int]], lossy: bool) -> None:
    """Three candidates for ever, under partitions and lost messages: the periods in which each *believes* to lead do
    not overlap, and terms grow in the order of those periods. After the faults somebody leads."""

    async def story(grid: Grid) -> None:
        names = ("a", "b", "c")
        leading: dict[str, int] = {}
        terms: list[int] = []

        async def candidate(name: str) -> None:
            while True:
                leadership = await grid.election(name).campaign()
                assert not leading, f"{name} leads in term {leadership.term} while {leading} lead"
                assert leadership.term > max(terms, default=0)
                terms.append(leadership.term)
                leading[name] = leadership.term
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grid.cluster.rng.uniform(1, 15)):
                        await leadership.lost.wait()
                del leading[name]
                await leadership.resign()

        if lossy:
            for name in names:
                grid.cluster.client(name).rates = FaultRates(0.03, 0.03, 0.03, 0.03, late_ms=8_000)
        tasks = [asyncio.ensure_future(candidate(name)) for name in names]
        for who, wait_ms, cut_ms in cuts:
            await grid.clock.sleep(wait_ms)
            grid.cluster.client(names[who]).partition()
            await grid.clock.sleep(cut_ms)
            grid.cluster.client(names[who]).heal()
        for name in names:
            grid.cluster.client(name).rates = FaultRates()
        before = len(terms)
        await grid.clock.sleep(60_000)
        for task in tasks:
            if task.done():
                task.result()
        assert len(terms) > before, "nobody was elected within a minute after the last fault"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    simulate(story, seed)


def test_a_leased_key_comes_back_after_its_lease_or_itself_was_lost() -> None:
    async def story(grid: Grid) -> None:
        store, admin = grid.cluster.client("a"), grid.cluster.client("admin")
        key = LeasedKey(store, "/replicas/a", b"here", 2, grid.clock)
        running = asyncio.ensure_future(key.run())
        await key.present.wait()
        await admin.txn((), (DeleteOp("/replicas/a"),))
        await grid.clock.sleep(2_000)
        assert (await admin.get("/replicas/a"))[0] is not None

        store.partition()
        await grid.clock.sleep(5_000)
        assert (await admin.get("/replicas/a"))[0] is None
        assert not key.present.is_set()
        store.heal()
        await key.present.wait()
        assert (await admin.get("/replicas/a"))[0] is not None

        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await admin.get("/replicas/a"))[0] is None

    simulate(story)


def test_a_leased_key_takes_over_from_a_dead_process_of_the_same_name() -> None:
    async def story(grid: Grid) -> None:
        admin = grid.cluster.client("admin")
        old = await admin.lease_grant(3)
        await admin.txn((), (PutOp("/replicas/a", b"old", old),))
        key = LeasedKey(grid.cluster.client("a"), "/replicas/a", b"new", 2, grid.clock)
        running = asyncio.ensure_future(key.run())
        await key.present.wait()
        await grid.clock.sleep(10_000)
        found = await admin.txn((), (GetOp("/replicas/a"),))
        assert found.values[0] is not None and found.values[0].value == b"new"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    simulate(story)
