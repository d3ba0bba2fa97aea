"""Protects: the simulated store is etcd, not what we think etcd is. Random histories run on both; every result, every
revision (counted from the start of the history) and every watched change must be equal."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.simulate.clock import SimRng
from chaos.simulate.store import SimCluster
from controlplane.store.embedded import EmbeddedEtcd
from gridkeeper.ids import Revision
from gridkeeper.ports.store import (
    Change,
    Compare,
    DeleteOp,
    GetOp,
    KeyValue,
    LeaseGone,
    Op,
    PutOp,
    RevisionCompacted,
    Store,
)
from tests.fixtures.etcd import CLOCK, collect, compact, open_store

NAMES = ("a", "a/1", "b", "b/1", "c")
PREFIXES = ("", "a", "b/", "c")
_runs = itertools.count(1)

names = st.sampled_from(NAMES)


@dataclass(frozen=True)
class Command:
    """``numbers`` choose among what the history has made so far: revisions, leases."""

    kind: str
    compares: tuple[tuple[str, int, bool], ...] = ()
    success: tuple[tuple[str, str, int], ...] = ()
    failure: tuple[tuple[str, str, int], ...] = ()
    numbers: tuple[int, int] = (0, 0)
    prefix: str = ""
    after: str = ""
    limit: int = 0


def _distinct(ops: list[tuple[str, str, int]]) -> tuple[tuple[str, str, int], ...]:
    """Without a second write of a key, which is refused before sending."""
    written: set[str] = set()
    kept = []
    for kind, name, lease in ops:
        if kind != "get" and name in written:
            continue
        if kind != "get":
            written.add(name)
        kept.append((kind, name, lease))
    return tuple(kept)


operations = st.lists(st.tuples(st.sampled_from(["put", "put", "delete", "get"]), names, st.integers(0, 4)), max_size=4)
commands = st.one_of(
    st.builds(
        Command,
        st.just("txn"),
        compares=st.lists(st.tuples(names, st.integers(0, 3), st.booleans()), max_size=2).map(tuple),
        success=operations.map(_distinct),
        failure=operations.map(_distinct),
    ),
    st.builds(
        Command,
        st.just("range"),
        prefix=st.sampled_from(PREFIXES),
        after=st.sampled_from(["", "a", "a/1", "b"]),
        limit=st.integers(0, 3),
        numbers=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    ),
    st.builds(Command, st.just("grant")),
    st.builds(Command, st.just("revoke"), numbers=st.tuples(st.integers(0, 5), st.just(0))),
    st.builds(Command, st.just("compact"), numbers=st.tuples(st.integers(0, 4), st.just(0))),
)


@dataclass
class Player:
    """Plays commands on one store and writes down what it says, revisions relative to the first."""

    store: Store
    root: str
    compact: Callable[[int], Any]
    base: int = 0
    revision: int = 0
    leases: list[int] = field(default_factory=list)
    heard: list[object] = field(default_factory=list)

    async def begin(self) -> None:
        done = await self.store.txn((), (PutOp(self.root + "!", b""),))
        self.base = self.revision = done.revision

    def relative(self, kv: KeyValue | None) -> object:
        if kv is None:
            return None
        lease = self.leases.index(kv.lease) + 1 if kv.lease else 0
        created = kv.create_revision - self.base if kv.create_revision else None
        key = kv.key.removeprefix(self.root)
        return replace(
            kv, key=key, create_revision=created, mod_revision=kv.mod_revision - self.base, lease=lease  # type: ignore[arg-type]
        )  # fmt: skip

    def change(self, change: Change) -> object:
        return (change.deleted, self.relative(change.kv))

    async def play(self, number: int, command: Command) -> None:
        try:
            self.heard.append((number, await self._do(number, command)))
        except (LeaseGone, RevisionCompacted) as error:
            self.heard.append((number, type(error).__name__))

    async def _do(self, number: int, command: Command) -> object:
        match command.kind:
            case "txn":
                return await self._txn(number, command)
            case "range":
                back, ago = command.numbers
                page = await self.store.range(
                    self.root + command.prefix,
                    after=self.root + command.after if command.after else "",
                    limit=command.limit,
                    revision=Revision(max(self.base, self.revision - back) if back else 0),
                    min_mod_revision=Revision(max(self.base, self.revision - ago) if ago else 0),
                )
                return [self.relative(kv) for kv in page.items], page.revision - self.base, page.more
            case "grant":
                self.leases.append(await self.store.lease_grant(600))
                return "granted"
            case "revoke":
                if not self.leases:
                    return "none"
                await self.store.lease_revoke(self.leases[command.numbers[0] % len(self.leases)])
                self.revision = (await self.store.get(self.root))[1]
                return self.revision - self.base
            case _:
                await self.compact(self.revision - command.numbers[0])
                return "compacted"

    async def _txn(self, number: int, command: Command) -> object:
        compares = []
        for name, choice, create in command.compares:
            kv, _ = await self.store.get(self.root + name)
            true = (kv.create_revision if create else kv.mod_revision) if kv else Revision(0)
            wrong = Revision(max(0, true - 1))
            compares.append(Compare(self.root + name, (true, true, Revision(0), wrong)[choice], create))
        done = await self.store.txn(compares, self._ops(number, command.success), self._ops(number, command.failure))
        self.revision = done.revision
        return done.succeeded, done.revision - self.base, [self.relative(kv) for kv in done.values]

    def _ops(self, number: int, ops: tuple[tuple[str, str, int], ...]) -> list[Op]:
        made: list[Op] = []
        for kind, name, lease in ops:
            key = self.root + name
            if kind == "put":
                number_of = self.leases[lease - 1] if 0 < lease <= len(self.leases) else 0
                made.append(PutOp(key, f"{number}".encode(), number_of))
            else:
                made.append(DeleteOp(key) if kind == "delete" else GetOp(key))
        return made

    async def end(self) -> None:
        """What a watch from the beginning tells, and one from the end; leases are given back."""
        done = await self.store.txn((), (PutOp(self.root + "~", b""),))
        for start in (self.base, max(self.base, self.revision - 3)):
            async with aclosing(self.store.watch(self.root, Revision(start))) as watch:
                batches = await collect(watch, lambda got: any(b.revision >= done.revision for b in got))
            flat = [(batch.reset, self.change(change)) for batch in batches for change in batch.changes]
            self.heard.append(("watch", start - self.base, flat))
        for lease in self.leases:
            try:
                await self.store.lease_revoke(lease)
            except LeaseGone:
                continue


@pytest.mark.etcd
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(history=st.lists(commands, max_size=25))
def test_random_histories_are_equal_on_etcd_and_on_the_simulation(
    etcd_one: EmbeddedEtcd, history: list[Command]
) -> None:
    async def main() -> None:
        root = f"/history/{next(_runs)}/"
        real = await open_store(etcd_one)
        cluster = SimCluster(CLOCK, SimRng(1))
        try:

            async def shrink(revision: int) -> None:
                cluster.compact(max(revision, player.base))

            async def shrink_real(revision: int) -> None:
                await _compact_or_say_so(etcd_one, max(revision, actual.base))

            actual = Player(real, root, shrink_real)
            player = Player(cluster.client("a"), root, shrink)
            for each in (actual, player):
                await each.begin()
                for number, command in enumerate(history):
                    await each.play(number, command)
                await each.end()
            assert player.heard == actual.heard
        finally:
            await real.close()
            await cluster.close()

    asyncio.run(main())


async def _compact_or_say_so(etcd: EmbeddedEtcd, revision: int) -> None:

    try:
        await compact(etcd, revision)
    except grpc.aio.AioRpcError as error:
        if "compacted" in (error.details() or ""):
            raise RevisionCompacted(str(error.details())) from error
        raise
