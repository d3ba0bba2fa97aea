"""Protects: watches of every ``Store`` behave alike: etcd with one member and with three, and the simulated one."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from gridkeeper.ids import Revision
from gridkeeper.ports.store import (
    DeleteOp,
    PutOp,
    StoreUnavailable,
)
from tests.fixtures.etcd import Bench, collect, keys_of, put


class TestWatching:
    async def test_history_then_news_nothing_lost_nothing_twice(self, bench: Bench) -> None:
        start = await put(bench.store, (bench.key("0"), b""))
        for number in range(1, 50):
            await put(bench.store, (bench.key(f"{number % 7}"), b"%d" % number))
        other = await bench.connect()
        async with aclosing(bench.store.watch(bench.prefix, start)) as watch:

            async def write_on() -> None:
                for number in range(50, 150):
                    await put(other, (bench.key(f"{number % 7}"), b"%d" % number))
                    await put(other, (f"/elsewhere{bench.prefix}", b""))

            writing = asyncio.ensure_future(write_on())
            batches = await collect(watch, lambda got: len(keys_of(got)) >= 150)
            await writing
        values = [int(c.kv.value or b"0") for batch in batches for c in batch.changes]
        assert values == list(range(150))
        assert not any(batch.reset for batch in batches)
        revisions = [batch.revision for batch in batches]
        assert revisions == sorted(revisions)
        for batch in batches:
            assert all(c.kv.mod_revision <= batch.revision for c in batch.changes)

    async def test_it_begins_exactly_where_it_is_told(self, bench: Bench) -> None:
        revisions = [await put(bench.store, (bench.key("a"), b"%d" % number)) for number in range(5)]
        for index, start in enumerate(revisions):
            async with aclosing(bench.store.watch(bench.prefix, start)) as watch:
                batches = await collect(watch, lambda got, want=5 - index: len(keys_of(got)) >= want)
            assert [c.kv.mod_revision for b in batches for c in b.changes] == revisions[index:]

    async def test_a_transaction_arrives_whole_and_in_its_order(self, bench: Bench) -> None:
        await put(bench.store, (bench.key("gone"), b""))
        _, revision = await bench.store.get(bench.key("a"))
        async with aclosing(bench.store.watch(bench.prefix, Revision(revision + 1))) as watch:
            done = await bench.store.txn(
                (),
                (*(PutOp(bench.key(f"{i:03d}"), bytes(9_000)) for i in range(100, 0, -1)), DeleteOp(bench.key("gone"))),
            )
            batches = await collect(watch, lambda got: any(batch.changes for batch in got))
        changed = [batch for batch in batches if batch.changes]
        assert len(changed) == 1 and changed[0].revision == done.revision
        keys = [change.kv.key for change in changed[0].changes]
        assert keys == [*(bench.key(f"{i:03d}") for i in range(100, 0, -1)), bench.key("gone")]
        last = changed[0].changes[-1]
        assert last.deleted and last.kv.mod_revision == done.revision and last.kv.value == b""

    async def test_progress_comes_without_changes_and_is_true(self, bench: Bench) -> None:
        """``revision`` must never claim more than was delivered: after a batch of revision r, no change at or below r
        may come."""
        start = await put(bench.store, (bench.key("a"), b""))
        async with aclosing(bench.store.watch(bench.prefix, start)) as watch:
            batches = await collect(watch, lambda got: len([b for b in got if not b.changes]) >= 2)
            elsewhere = await put(bench.store, (f"/elsewhere{bench.prefix}", b""))
            batches += await collect(watch, lambda got: any(b.revision >= elsewhere for b in got))
            final = await put(bench.store, (bench.key("b"), b""))
            batches += await collect(watch, lambda got: any(b.changes for b in got))
        told = Revision(0)
        for batch in batches:
            assert all(change.kv.mod_revision > told for change in batch.changes)
            assert batch.revision >= told
            told = batch.revision
        assert told >= final

    async def test_two_watches_of_one_client_do_not_mix(self, bench: Bench) -> None:
        _, revision = await bench.store.get(bench.key("a"))
        start = Revision(revision + 1)
        async with (
            aclosing(bench.store.watch(bench.key("a/"), start)) as first,
            aclosing(bench.store.watch(bench.key("b/"), start)) as second,
        ):
            await put(bench.store, (bench.key("a/1"), b""), (bench.key("b/1"), b""))
            for watch, key in ((first, "a/1"), (second, "b/1")):
                batches = await collect(watch, lambda got: bool(keys_of(got)))
                assert [name for name, _, _ in keys_of(batches)] == [bench.key(key)]

    async def test_history_that_was_compacted_gives_a_reset_and_then_goes_on(self, bench: Bench) -> None:
        start = await put(bench.store, (bench.key("a"), b"1"), (bench.key("gone"), b"1"))
        await bench.store.txn((), (PutOp(bench.key("a"), b"2"), DeleteOp(bench.key("gone"))))
        compacted = await put(bench.store, (bench.key("b"), b"1"))
        await bench.compact(compacted)
        async with aclosing(bench.store.watch(bench.prefix, start)) as watch:
            batches = await collect(watch, lambda got: any(batch.reset for batch in got))
            assert [batch.reset for batch in batches if batch.changes] == [True]
            state = {change.kv.key: change.kv.value for change in batches[-1].changes}
            assert state == {bench.key("a"): b"2", bench.key("b"): b"1"}
            assert batches[-1].revision >= compacted
            later = await put(bench.store, (bench.key("c"), b"1"))
            batches = await collect(watch, lambda got: bool(keys_of(got)))
            assert keys_of(batches) == [(bench.key("c"), later, False)]

    async def test_a_deletion_at_exactly_the_compacted_revision_is_not_missed(self, bench: Bench) -> None:
        """etcd drops that tombstone and, before 3.4.32 and 3.5.13, lets a watch begin there all the same."""
        await put(bench.store, (bench.key("a"), b"1"), (bench.key("b"), b"1"))
        deleted = (await bench.store.txn((), (DeleteOp(bench.key("a")),))).revision
        await bench.compact(deleted)
        async with aclosing(bench.store.watch(bench.prefix, deleted)) as watch:
            batches = await collect(watch, bool)
        assert batches[0].reset
        assert [change.kv.key for change in batches[0].changes] == [bench.key("b")]

    async def test_compaction_of_what_was_delivered_disturbs_nobody(self, bench: Bench) -> None:
        start = await put(bench.store, (bench.key("a"), b"1"))
        async with aclosing(bench.store.watch(bench.prefix, start)) as watch:
            await collect(watch, lambda got: bool(keys_of(got)))
            compacted = await put(bench.store, (bench.key("a"), b"2"))
            await collect(watch, lambda got: bool(keys_of(got)))
            await bench.compact(compacted)
            await put(bench.store, (bench.key("a"), b"3"))
            batches = await collect(watch, lambda got: bool(keys_of(got)))
        assert not any(batch.reset for batch in batches)
        assert batches[-1].changes[0].kv.value == b"3"

    async def test_cancelling_a_waiting_reader_loses_nothing(self, bench: Bench) -> None:
        start = await put(bench.store, (bench.key("0"), b""))
        found: list[str] = []
        async with aclosing(bench.store.watch(bench.prefix, start)) as watch, asyncio.timeout(30):
            for number in range(1, 30):
                await put(bench.store, (bench.key(f"{number}"), b""))
                try:
                    batch = await asyncio.wait_for(watch.__anext__(), 0.002 * (number % 5))
                    found += [change.kv.key for change in batch.changes]
                except TimeoutError:
                    pass
            while len(found) < 30:
                found += [change.kv.key for change in (await watch.__anext__()).changes]
        assert found == [bench.key(f"{number}") for number in range(30)]

    async def test_closing_ends_a_waiting_reader(self, bench: Bench) -> None:
        _, revision = await bench.store.get(bench.key("a"))
        watch = bench.store.watch(bench.prefix, Revision(revision + 1))

        async def read() -> int:
            return len([batch async for batch in watch if batch.changes])

        reading = asyncio.ensure_future(read())
        await put(bench.store, (bench.key("a"), b""))
        await asyncio.sleep(0)
        await watch.aclose()
        await watch.aclose()
        async with asyncio.timeout(10):
            assert await reading in (0, 1)
        with pytest.raises(StopAsyncIteration):
            await watch.__anext__()


async def test_a_closed_store_ends_its_watches_and_refuses_calls(bench: Bench) -> None:
    store = await bench.connect()
    watch = store.watch(bench.prefix, Revision(1))
    reading = asyncio.ensure_future(watch.__anext__())
    await asyncio.sleep(0)
    await store.close()
    async with asyncio.timeout(10):
        await asyncio.gather(reading, return_exceptions=True)
    with pytest.raises(StopAsyncIteration):
        await watch.__anext__()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.get(bench.key("a"))
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.txn((), (PutOp(bench.key("a"), b""),))
    await store.close()
