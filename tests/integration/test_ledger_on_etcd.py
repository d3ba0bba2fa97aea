"""The uptime ledger on a real store of three members: leaders are replaced, a member is killed, clocks are stepped,
events come an hour late and twice. The ledger balances, and what was recorded gives the same bytes again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from chaos.simulate.bookkeeping import ledger_balances
from chaos.simulate.history import Commit, Write
from chaos.simulate.replay import replay
from controlplane.domain.region import STAGES, disjoint
from controlplane.domain.sla import decide_ledger
from controlplane.shell.apply import Applier, Conflict, Fence
from controlplane.shell.ledgertime import LedgerTime, latest_written
from controlplane.shell.mirror import Mirror
from controlplane.shell.states import region_state
from gridkeeper import codec
from gridkeeper.clock import SystemRng
from gridkeeper.decision import Now, Put, Versioned
from gridkeeper.ids import DeviceId, RegionId, ReplicaId, Revision
from gridkeeper.keys import RegionKeys, kind_of
from gridkeeper.policy.model import BreakerPolicy, BudgetPolicy
from gridkeeper.ports.store import Compare, DeleteOp, PutOp, Store, StoreError
from gridkeeper.records.faults import LeaderRecord
from gridkeeper.snapshot import GlobalState, RegionState
from tests.fixtures.etcd import CLOCK, make_etcd, open_store
from tests.unit.applier import NOON, RegionStore, quick

pytestmark = pytest.mark.etcd

HOUR = 3_600_000
REGION = RegionId("ledger")
KEYS = RegionKeys(REGION)
SETTINGS = quick(budgets=(BudgetPolicy("region", 1.0, 1),), breakers=(BreakerPolicy(drains=1_000),))


class Clock:
    """A host's, which a test moves. ``step_ms``: how far its wall clock is off."""

    def __init__(self, step_ms: int = 0) -> None:
        self.step_ms = step_ms
        self.passed_ms = 0

    def mono_ms(self) -> int:
        return 1_000_000 + self.passed_ms

    def wall_ms(self) -> int:
        return NOON + self.step_ms + self.passed_ms

    async def sleep(self, ms: int) -> None:
        self.passed_ms += ms


@dataclass
class Leader:
    """One term of leading the region; ``looks``: revision -> when it looked at the ledger, and at which
    revision."""

    name: str
    mirror: Mirror
    applier: Applier
    fence: Fence
    time: LedgerTime
    looks: dict[int, tuple[int, int]]

    async def tick(self) -> None:
        for stage in STAGES:
            now = self.time.now()
            state = region_state(REGION, self.mirror)
            for decision in disjoint(stage.decide(state, GlobalState(), SETTINGS, now)):
                try:
                    revision = await self.applier.apply(decision, f"machine/{self.name}", self.fence)
                except (Conflict, StoreError):
                    continue  # decided again at the next look
                if decision.step == "ledger.append":
                    self.looks[revision] = (now.ledger_ms, int(state.revision))
                await self.mirror.wait_revision(revision, 5_000)


class Scene:
    def __init__(self, store: Store, connect: Any) -> None:
        self.store = store
        self.connect = connect
        self.looks: dict[int, tuple[int, int]] = {}
        self.begin = Revision(0)
        self._opened: list[Store] = []
        self._following: list[asyncio.Task[None]] = []

    async def lead(self, name: str, clock: Clock) -> Leader:
        """Take the leader key; whoever held it is fenced off."""
        await self.store.txn((), (DeleteOp(KEYS.leader),))
        record = codec.encode(LeaderRecord(ReplicaId(name), name, 0))
        term = (await self.store.txn((), (PutOp(KEYS.leader, record),))).revision
        store = await open_store(self.connect)
        self._opened.append(store)
        mirror = Mirror(store, KEYS.root, CLOCK)
        self._following.append(asyncio.ensure_future(mirror.run()))
        await mirror.wait_loaded()
        await mirror.wait_revision(term, 5_000)
        applier = Applier(store, mirror, KEYS.audit, SystemRng(), CLOCK.wall_ms)
        time = LedgerTime(clock, latest_written(mirror))  # type: ignore[arg-type]
        return Leader(name, mirror, applier, Fence(KEYS.leader, term), time, self.looks)

    async def history(self) -> list[Commit]:
        (_, end) = await self.store.get(KEYS.leader)
        commits: list[Commit] = []
        async with asyncio.timeout(20), aclosing(self.store.watch(KEYS.root, self.begin)) as batches:
            async for batch in batches:
                assert not batch.reset
                for revision, changes in groupby(batch.changes, key=lambda change: change.kv.mod_revision):
                    writes = tuple(Write(c.kv.key, None if c.deleted else c.kv.value) for c in changes)
                    commits.append(Commit(int(revision), REGION, int(revision), writes))
                if batch.revision >= end:
                    return commits
        raise AssertionError("the watch ended")

    async def close(self) -> None:
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        for store in self._opened:
            await store.close()


@asynccontextmanager
async def scene(etcd: Any) -> AsyncIterator[Scene]:
    store = await open_store(etcd)
    made = Scene(store, etcd)
    try:
        yield made
    finally:
        await made.close()
        await store.close()


READ = ("devices", "health", "cordons", "maintenance", "accounts")
"""What the ledger is decided from."""


def replayed(
    commits: list[Commit], looks: dict[int, tuple[int, int]]
) -> list[tuple[int, dict[str, bytes], dict[str, bytes]]]:
    """Per revision in which the ledger was written: what was written, and what the recorded state that its leader
    looked at gives again, from nothing but that and the time of the look: each look by a process that remembers
    nothing."""
    held: dict[str, dict[str, Versioned[Any]]] = {kind: {} for kind in READ}
    states: dict[int, dict[str, dict[str, Versioned[Any]]]] = {}
    found = []
    for commit in commits:
        written = {
            write.key: write.value
            for write in commit.writes
            if write.value is not None and write.key.startswith((KEYS.prefix("accounts"), KEYS.prefix("entries")))
        }
        if written and commit.revision in looks:
            at_ms, seen = looks[commit.revision]
            state = RegionState(REGION, Revision(seen), **states[max(r for r in states if r <= seen)])  # type: ignore[arg-type]
            decided = decide_ledger(state, SETTINGS, Now(0, at_ms))
            writes = [write for decision in decided for write in decision.writes]
            again = {write.key: codec.encode(write.record) for write in writes if isinstance(write, Put)}
            found.append((commit.revision, written, again))
        for write in commit.writes:
            kind, _, name = write.key.removeprefix(KEYS.root).partition("/")
            if kind in READ and write.value is None:
                held[kind].pop(name, None)
            elif kind in READ and write.value is not None:
                record_kind = kind_of(write.key)
                assert record_kind is not None
                revision = Revision(commit.revision)
                held[kind][name] = Versioned(codec.decode(record_kind, write.value), revision, revision, 0)
        states[commit.revision] = {kind: dict(records) for kind, records in held.items()}
    return found


async def test_the_ledger_balances_and_is_the_same_again(tmp_path: Path) -> None:
    etcd = make_etcd(tmp_path, 3)
    await etcd.start()
    try:
        async with scene(etcd) as made:
            fleet = RegionStore(SETTINGS, REGION)
            devices = fleet.fleet(nodes=4, gpus=4)
            items = [PutOp(key, codec.encode(value.record)) for key, value in fleet.items.items()]
            made.begin = (await made.store.txn((), items)).revision
            clock = Clock()
            leader = await made.lead("a", clock)
            for number in range(12):
                if number == 2:
                    etcd.kill(0)
                if number == 4:  # killed: another one leads, whose clock is an hour behind
                    leader = await made.lead("b", clock := stepped(clock, -HOUR))
                if number == 6:
                    await etcd.restart(0)
                if number == 8:
                    leader = await made.lead("c", clock := stepped(clock, 2 * HOUR))
                fleet.ledger = leader.time.now().ledger_ms
                late = HOUR if number % 3 == 0 else 400
                event = fleet.event(devices[number], 79 if number % 2 else 48, age_ms=late)
                for _ in range(2):  # delivered twice, as by an agent whose acknowledgement was lost
                    put = PutOp(KEYS.event(event.id), codec.encode(event))
                    with suppress(StoreError):  # it is delivered again
                        await made.store.txn((Compare(put.key, Revision(0)),), (put,))
                _, revision = await made.store.get(KEYS.event(event.id))
                assert await leader.mirror.wait_revision(revision, 20_000)
                for _ in range(4):
                    await clock.sleep(15_000)
                    await leader.tick()
            commits = await made.history()
            assert not (wrong := list(ledger_balances(replay(commits), SETTINGS))), "\n".join(map(str, wrong[:5]))
            again = replayed(commits, made.looks)
            assert len(again) >= 12, "the ledger was written while all that happened"
            for revision, written, recomputed in again:
                assert recomputed == written, f"revision {revision}"
            out = {DeviceId(device) for device in devices[:12]}
            booked = {key for _, written, _ in again for key in written if "/entries/" in key}
            assert {device for device in out if any(f"device/{device}/" in key for key in booked)} == out
    finally:
        await etcd.stop()


def stepped(clock: Clock, by_ms: int) -> Clock:
    """Another host's clock, at the same moment."""
    made = Clock(clock.step_ms + by_ms)
    made.passed_ms = clock.passed_ms
    return made
