"""Decisions that share a transaction: what the store holds then is what one after the other would have left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.simulate.clock import SimClock, SimRng
from chaos.simulate.loop import run_virtual
from chaos.simulate.store import SimCluster, SimStore
from controlplane.shell.apply import Applier
from controlplane.shell.grouping import MOST_AT_ONCE, groups, waves
from controlplane.shell.leader import apply_all
from controlplane.shell.mirror import Mirror
from controlplane.store.limits import MAX_OPS
from gridkeeper.decision import Decision, Guard, Put
from gridkeeper.ids import NodeId, RegionId, Revision
from gridkeeper.keys import RegionKeys
from gridkeeper.ports.store import Compare, Op, PutOp, TxnResult
from gridkeeper.records.fleet import LivenessRecord, NodeState

KEYS = RegionKeys(RegionId("east"))


def _key(number: int) -> str:
    return KEYS.liveness(NodeId(f"n{number}"))


def _decision(name: str, writes: Sequence[tuple[int, int]], guards: Sequence[tuple[int, int]], audit: bool) -> Decision:
    """``writes``, ``guards``: (key, expected revision)."""
    puts = tuple(
        Put(_key(k), LivenessRecord(NodeId(f"n{k}"), NodeState.ALIVE, 1, name), Revision(e)) for k, e in writes
    )
    return Decision(name, name, puts, tuple(Guard(_key(k), Revision(e)) for k, e in guards), audit=audit)


def _distinct(most: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    pair = st.tuples(st.integers(0, 7), st.sampled_from([0, 0, 0, 2, 999]))
    return st.lists(pair, max_size=most, unique_by=lambda item: item[0])


DECISIONS = st.lists(st.tuples(_distinct(3).filter(bool), _distinct(2), st.booleans()), min_size=1, max_size=8).map(
    lambda drawn: [_decision(f"d{i}", w, g, a) for i, (w, g, a) in enumerate(drawn)]
)


async def _outcome(decisions: Sequence[Decision], together: bool) -> dict[str, bytes]:
    """What the store holds after they were applied, on keys of which some exist."""
    clock = SimClock(asyncio.get_running_loop())
    store: SimStore = SimCluster(clock, SimRng(1)).client("a")
    mirror = Mirror(store, KEYS.root, clock)
    following = asyncio.ensure_future(mirror.run())
    await store.txn([], [PutOp(_key(k), b"") for k in (6, 7)])
    await mirror.wait_loaded()
    applier = Applier(store, mirror, KEYS.audit, SimRng(2), clock.wall_ms)
    for part in (decisions,) if together else [(decision,) for decision in decisions]:
        await apply_all(part, applier, "machine/a", None)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    return {kv.key: kv.value for kv in (await store.range(KEYS.prefix("liveness"))).items}


@given(DECISIONS)
def test_together_is_as_one_after_the_other(decisions: list[Decision]) -> None:
    """Protects: carrying decisions out together changes nothing but the number of transactions, whatever conflicts."""

    async def both() -> None:
        assert await _outcome(decisions, True) == await _outcome(decisions, False)

    run_virtual(both())


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60), st.booleans()), min_size=1, max_size=40))
def test_a_group_fits_into_a_transaction(sizes: list[tuple[int, int, bool]]) -> None:
    """Protects: no group is refused by etcd for its number of compares or operations; none is lost, order is kept."""
    decisions, key = [], 0
    for writes, guards, audit in sizes:
        puts = [(key + n, 0) for n in range(writes)]
        rests = [(key + writes + n, 0) for n in range(guards)]
        key += writes + guards
        decisions.append(_decision("d", puts, rests, audit))
    made = list(groups(decisions))
    assert [decision for group in made for decision in group] == decisions
    for group in made:
        ops = sum(len(decision.writes) + decision.audit for decision in group)
        compares = 1 + sum(len(decision.writes) + len(decision.guards) for decision in group)
        assert (ops <= MAX_OPS and compares <= MAX_OPS) or len(group) == 1


@given(DECISIONS | st.integers(1, 2000).map(lambda n: [_decision("d", [(k, 0)], [], True) for k in range(n)]))
def test_of_transactions_under_way_at_once_none_rests_on_another(decisions: list[Decision]) -> None:
    """Protects: which of them reaches the store first makes no difference; none is lost, order is kept."""
    made = list(waves(decisions))
    assert [decision for wave in made for group in wave for decision in group] == decisions
    for wave in made:
        assert 1 <= len(wave) <= MOST_AT_ONCE
        for group in wave:
            written = {write.key for decision in group for write in decision.writes}
            for other in (decision for beside in wave if beside is not group for decision in beside):
                touched = {write.key for write in other.writes} | {guard.key for guard in other.guards}
                assert written.isdisjoint(touched)


class Counting:
    """A store that counts its transactions, and how many were under way at once."""

    def __init__(self, store: SimStore) -> None:
        self._store = store
        self.transactions = self.under_way = self.most = 0

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        self.transactions += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            return await self._store.txn(compares, success, failure)
        finally:
            self.under_way -= 1


@given(st.sets(st.integers(0, 59), min_size=1, max_size=59))
def test_what_was_overtaken_is_dropped_in_one_go(stale: set[int]) -> None:
    """Protects: of many decisions some are always overtaken in a storm; they cost the rest one read and one more
    transaction, not a search by halves."""

    async def story() -> None:
        clock = SimClock(asyncio.get_running_loop())
        store: SimStore = SimCluster(clock, SimRng(1)).client("a")
        counting, mirror = Counting(store), Mirror(store, KEYS.root, clock)
        following = asyncio.ensure_future(mirror.run())
        for number in sorted(stale):
            await store.txn([], [PutOp(_key(number), b"somebody else's")])
        await mirror.wait_loaded()
        applier = Applier(counting, mirror, KEYS.audit, SimRng(2), clock.wall_ms)
        await apply_all([_decision("d", [(n, 0)], [], False) for n in range(60)], applier, "machine/a", None)
        held = {kv.key: kv.value for kv in (await store.range(KEYS.prefix("liveness"))).items}
        assert {n for n in range(60) if held[_key(n)] == b"somebody else's"} == stale
        assert counting.transactions == 3
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    run_virtual(story())


@pytest.mark.parametrize(("shared", "most"), [(False, MOST_AT_ONCE), (True, 1)])
def test_round_trips_of_independent_transactions_overlap(shared: bool, most: int) -> None:
    """Protects: hundreds of decisions that rest on much (few fit into a transaction) do not wait for one another; those
    of which one writes what the next one rests on do."""

    async def story() -> None:
        clock = SimClock(asyncio.get_running_loop())
        store: SimStore = SimCluster(clock, SimRng(1)).client("a")
        counting, mirror = Counting(store), Mirror(store, KEYS.root, clock)
        following = asyncio.ensure_future(mirror.run())
        await mirror.wait_loaded()
        applier = Applier(counting, mirror, KEYS.audit, SimRng(2), clock.wall_ms)
        rests = [(1_000 + n, 0) for n in range(60)]
        decisions = [
            _decision("d", [(n, 0)], [*rests, (n + 1, 0)] if shared else [(k + 60 * n, e) for k, e in rests], False)
            for n in range(40)
        ]
        await apply_all(decisions, applier, "machine/a", None)
        assert len((await store.range(KEYS.prefix("liveness"))).items) == 40
        assert counting.most == most
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    run_virtual(story())


def test_hundreds_of_decisions_are_few_transactions() -> None:
    """Protects: what a storm of faults waits for is not one round trip each."""

    async def story() -> None:
        clock = SimClock(asyncio.get_running_loop())
        store: SimStore = SimCluster(clock, SimRng(1)).client("a")
        mirror = Mirror(store, KEYS.root, clock)
        following = asyncio.ensure_future(mirror.run())
        await mirror.wait_loaded()
        applier = Applier(store, mirror, KEYS.audit, SimRng(2), clock.wall_ms)
        _, before = await store.get(KEYS.leader)
        wrote = await apply_all([_decision("d", [(n, 0)], [], True) for n in range(500)], applier, "machine/a", None)
        page = await store.range(KEYS.prefix("liveness"))
        assert wrote and len(page.items) == 500
        assert len((await store.range(KEYS.prefix("audit"))).items) == 500, "each leaves its own word"
        assert page.revision - before <= 10
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    run_virtual(story())
