"""Protects: every adapter of the ``Store`` port behaves alike: etcd with one member, with three, and the simulated one.

What the control plane believes about its store is written here and nowhere else.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from gridkeeper.ids import Revision
from gridkeeper.ports.store import (
    ANY,
    Compare,
    DeleteOp,
    GetOp,
    KeyValue,
    LeaseGone,
    PutOp,
    RevisionCompacted,
    Store,
    StoreError,
    StoreUnavailable,
    TooLarge,
)
from tests.fixtures.etcd import Bench, collect, keys_of, put


class TestReading:
    async def test_an_absent_key_is_none_at_a_revision(self, bench: Bench) -> None:
        kv, revision = await bench.store.get(bench.key("a"))
        assert kv is None
        assert revision >= 1

    async def test_a_key_tells_its_revisions_and_version(self, bench: Bench) -> None:
        first = await put(bench.store, (bench.key("a"), b"1"))
        second = await put(bench.store, (bench.key("a"), b"2"))
        kv, revision = await bench.store.get(bench.key("a"))
        assert kv == KeyValue(bench.key("a"), b"2", first, second, 2, 0)
        assert revision >= second > first

    async def test_another_client_reads_what_was_written(self, bench: Bench) -> None:
        other = await bench.connect()
        for number in range(20):
            await put(bench.store, (bench.key("a"), b"%d" % number))
            kv, _ = await other.get(bench.key("a"))
            assert kv is not None and kv.value == b"%d" % number

    async def test_a_range_is_in_key_order_and_keeps_to_its_prefix(self, bench: Bench) -> None:
        names = ["b", "a/2", "a/1", "a", "a0", "b/ü", "b/~"]
        for name in names:
            await put(bench.store, (bench.key(name), name.encode()))
        page = await bench.store.range(bench.key("a/"))
        assert [kv.key for kv in page.items] == [bench.key("a/1"), bench.key("a/2")]
        page = await bench.store.range(bench.prefix)
        assert [kv.key for kv in page.items] == sorted(bench.key(name) for name in names)
        assert not page.more

    async def test_pages_cover_a_range_without_gap_or_overlap(self, bench: Bench) -> None:
        expected = [bench.key(f"{number:03d}") for number in range(25)]
        for key in expected:
            await put(bench.store, (key, b"x"))
        found: list[str] = []
        after, at, more = "", ANY, True
        while more:
            page = await bench.store.range(bench.prefix, after=after, limit=7, revision=at)
            at = at or page.revision
            found += [kv.key for kv in page.items]
            after, more = found[-1], page.more
            await put(bench.store, (bench.key(f"999-later-{len(found)}"), b""))
        assert found == expected

    async def test_more_keys_than_one_internal_page(self, bench: Bench) -> None:
        expected = [bench.key(f"{number:05d}") for number in range(2_300)]
        for start in range(0, len(expected), 100):
            await put(bench.store, *((key, b"x") for key in expected[start : start + 100]))
        page = await bench.store.range(bench.prefix)
        assert [kv.key for kv in page.items] == expected
        assert not page.more

    async def test_a_limit_says_whether_more_follows(self, bench: Bench) -> None:
        await put(bench.store, (bench.key("a"), b""), (bench.key("b"), b""))
        assert (await bench.store.range(bench.prefix, limit=1)).more
        assert not (await bench.store.range(bench.prefix, limit=2)).more

    async def test_min_mod_revision_leaves_out_what_did_not_change(self, bench: Bench) -> None:
        await put(bench.store, (bench.key("a"), b""), (bench.key("b"), b""), (bench.key("c"), b""))
        since = await put(bench.store, (bench.key("b"), b"2"))
        await put(bench.store, (bench.key("d"), b""))
        page = await bench.store.range(bench.prefix, min_mod_revision=since)
        assert [kv.key for kv in page.items] == [bench.key("b"), bench.key("d")]
        page = await bench.store.range(bench.prefix, min_mod_revision=since, limit=1)
        assert [kv.key for kv in page.items] == [bench.key("b")] and page.more

    async def test_the_past_can_be_read_until_it_is_compacted(self, bench: Bench) -> None:
        first = await put(bench.store, (bench.key("a"), b"1"), (bench.key("gone"), b"1"))
        await bench.store.txn((), (PutOp(bench.key("a"), b"2"), DeleteOp(bench.key("gone"))))
        page = await bench.store.range(bench.prefix, revision=first)
        assert [(kv.key, kv.value) for kv in page.items] == [(bench.key("a"), b"1"), (bench.key("gone"), b"1")]
        await bench.compact((await bench.store.get(bench.key("a")))[1])
        with pytest.raises(RevisionCompacted):
            await bench.store.range(bench.prefix, revision=first)

    async def test_the_future_is_an_error_and_no_outage(self, bench: Bench) -> None:
        _, revision = await bench.store.get(bench.key("a"))
        with pytest.raises(StoreError) as caught:
            await bench.store.range(bench.prefix, revision=Revision(revision + 1_000))
        assert not isinstance(caught.value, StoreUnavailable)


class TestTransactions:
    async def test_compare_and_swap_of_an_old_revision_changes_nothing(self, bench: Bench) -> None:
        first = await put(bench.store, (bench.key("a"), b"1"))
        won = await bench.store.txn((Compare(bench.key("a"), first),), (PutOp(bench.key("a"), b"2"),))
        lost = await bench.store.txn(
            (Compare(bench.key("a"), first),), (PutOp(bench.key("a"), b"3"),), (GetOp(bench.key("a")),)
        )
        assert won.succeeded and not lost.succeeded
        assert lost.values[0] is not None and lost.values[0].value == b"2"
        assert lost.values[0].mod_revision == won.revision

    async def test_of_many_who_create_a_key_one_does(self, bench: Bench) -> None:
        clients = [bench.store, await bench.connect(), await bench.connect()]
        absent = (Compare(bench.key("a"), ANY, create=True),)
        results = await asyncio.gather(
            *(clients[i % 3].txn(absent, (PutOp(bench.key("a"), b"%d" % i),)) for i in range(12))
        )
        assert [r.succeeded for r in results].count(True) == 1
        kv, _ = await bench.store.get(bench.key("a"))
        assert kv is not None and kv.version == 1
        assert kv.value == b"%d" % [r.succeeded for r in results].index(True)

    async def test_concurrent_increments_lose_none(self, bench: Bench) -> None:
        async def increment(store: Store) -> None:
            while True:
                kv, _ = await store.get(bench.key("n"))
                old = int(kv.value) if kv else 0
                expected = kv.mod_revision if kv else ANY
                done = await store.txn(
                    (Compare(bench.key("n"), expected),), (PutOp(bench.key("n"), b"%d" % (old + 1)),)
                )
                if done.succeeded:
                    return

        other = await bench.connect()
        await asyncio.gather(*(increment(store) for store in (bench.store, other) for _ in range(10)))
        kv, _ = await bench.store.get(bench.key("n"))
        assert kv is not None and (kv.value, kv.version) == (b"20", 20)

    async def test_the_create_revision_outlives_puts_but_not_a_delete(self, bench: Bench) -> None:
        created = await put(bench.store, (bench.key("a"), b"1"))
        await put(bench.store, (bench.key("a"), b"2"))
        by_create = (Compare(bench.key("a"), created, create=True),)
        assert (await bench.store.txn(by_create, ())).succeeded
        await bench.store.txn((), (DeleteOp(bench.key("a")),))
        await put(bench.store, (bench.key("a"), b"3"))
        assert not (await bench.store.txn(by_create, ())).succeeded

    async def test_all_operations_share_one_revision_and_reads_see_earlier_writes(self, bench: Bench) -> None:
        await put(bench.store, (bench.key("old"), b""))
        done = await bench.store.txn(
            (),
            (
                PutOp(bench.key("a"), b"1"),
                GetOp(bench.key("a")),
                DeleteOp(bench.key("old")),
                GetOp(bench.key("old")),
                PutOp(bench.key("b"), b"2"),
            ),
        )
        assert done.values[0] is not None and done.values[0].mod_revision == done.revision
        assert done.values[1] is None
        page = await bench.store.range(bench.prefix)
        assert [(kv.key, kv.mod_revision) for kv in page.items] == [
            (bench.key("a"), done.revision),
            (bench.key("b"), done.revision),
        ]

    async def test_what_changes_nothing_makes_no_revision(self, bench: Bench) -> None:
        before = await put(bench.store, (bench.key("a"), b""))
        done = await bench.store.txn((), (DeleteOp(bench.key("absent")), GetOp(bench.key("a"))))
        assert done.succeeded and done.revision == before

    async def test_the_failure_branch_may_write_too(self, bench: Bench) -> None:
        done = await bench.store.txn(
            (Compare(bench.key("a"), Revision(7)),), (PutOp(bench.key("a"), b"s"),), (PutOp(bench.key("a"), b"f"),)
        )
        assert not done.succeeded
        kv, _ = await bench.store.get(bench.key("a"))
        assert kv is not None and kv.value == b"f"

    async def test_limits_are_known_before_sending_and_hold(self, bench: Bench) -> None:
        most = tuple(PutOp(bench.key(f"{i}"), b"") for i in range(128))
        assert (await bench.store.txn((), most)).succeeded
        with pytest.raises(TooLarge, match="129"):
            await bench.store.txn((), (*most, PutOp(bench.key("one more"), b"")))
        with pytest.raises(TooLarge, match="129"):
            await bench.store.txn((Compare(bench.key("a"), ANY),) * 129, ())
        assert (await bench.store.txn((), (PutOp(bench.key("large"), bytes(1_570_000)),))).succeeded
        with pytest.raises(TooLarge, match="1572864"):
            await bench.store.txn((), (PutOp(bench.key("large"), bytes(1_573_000)),))
        with pytest.raises(ValueError, match="twice"):
            await bench.store.txn((), (PutOp(bench.key("a"), b"1"), PutOp(bench.key("a"), b"2")))

    async def test_many_large_values_are_read_back(self, bench: Bench) -> None:
        for number in range(6):
            await put(bench.store, (bench.key(f"{number}"), bytes([number]) * 1_000_000))
        page = await bench.store.range(bench.prefix)
        assert [len(kv.value) for kv in page.items] == [1_000_000] * 6
        done = await bench.store.txn((), tuple(GetOp(bench.key(f"{number}")) for number in range(6)))
        assert [v.value[:1] for v in done.values if v] == [bytes([n]) for n in range(6)]


class TestLeases:
    async def test_keys_go_when_their_lease_expires(self, bench: Bench) -> None:
        lease = await bench.store.lease_grant(1)
        async with aclosing(bench.store.watch(bench.prefix, Revision(1))) as watch:
            await bench.store.txn((), (PutOp(bench.key("b"), b"", lease), PutOp(bench.key("a"), b"", lease)))
            batches = await collect(watch, lambda got: len(keys_of(got)) >= 4)
        deleted = [(key, revision) for key, revision, gone in keys_of(batches) if gone]
        assert [key for key, _ in deleted] == [bench.key("a"), bench.key("b")]
        assert deleted[0][1] == deleted[1][1], "the keys of a lease go at one revision"
        with pytest.raises(LeaseGone):
            await bench.store.lease_keepalive(lease)

    async def test_a_lease_kept_alive_stays(self, bench: Bench) -> None:
        kept, left = await bench.store.lease_grant(1), await bench.store.lease_grant(1)
        await bench.store.txn((), (PutOp(bench.key("kept"), b"", kept), PutOp(bench.key("left"), b"", left)))
        async with asyncio.timeout(20):
            while (await bench.store.get(bench.key("left")))[0] is not None:
                assert await bench.store.lease_keepalive(kept) >= 1
        assert (await bench.store.get(bench.key("kept")))[0] is not None
        await bench.store.lease_revoke(kept)

    async def test_revoking_deletes_the_keys_at_once(self, bench: Bench) -> None:
        lease = await bench.store.lease_grant(60)
        await bench.store.txn((), (PutOp(bench.key("a"), b"", lease),))
        kv, _ = await bench.store.get(bench.key("a"))
        assert kv is not None and kv.lease == lease
        await bench.store.lease_revoke(lease)
        assert (await bench.store.get(bench.key("a")))[0] is None

    async def test_a_lease_that_is_gone_is_said_so_everywhere(self, bench: Bench) -> None:
        lease = await bench.store.lease_grant(60)
        await bench.store.lease_revoke(lease)
        with pytest.raises(LeaseGone):
            await bench.store.lease_keepalive(lease)
        with pytest.raises(LeaseGone):
            await bench.store.lease_revoke(lease)
        with pytest.raises(LeaseGone):
            await bench.store.txn((), (PutOp(bench.key("other"), b""), PutOp(bench.key("a"), b"", lease)))
        assert (await bench.store.range(bench.prefix)).items == (), "a refused transaction left something behind"

    async def test_a_put_without_the_lease_takes_its_key_off_it(self, bench: Bench) -> None:
        lease = await bench.store.lease_grant(60)
        await bench.store.txn((), (PutOp(bench.key("a"), b"1", lease),))
        await put(bench.store, (bench.key("a"), b"2"))
        await bench.store.lease_revoke(lease)
        assert (await bench.store.get(bench.key("a")))[0] is not None
