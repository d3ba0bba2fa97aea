"""Protects: what the adapter makes of etcd's answers that a real member gives only at rare moments, and of versions
that are not installed here. A scripted server speaks etcd's protocol over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest
from aetcd.rpc import rpc_pb2_grpc

from controlplane.store.etcd import EtcdStore
from controlplane.store.etcd_channel import pb
from controlplane.store.etcd_errors import parse_version, progress_in_order, unsafe
from gridkeeper.clock import SystemRng
from gridkeeper.config import StoreConfig
from gridkeeper.ids import Revision
from gridkeeper.ports.store import LeaseGone, OutcomeUnknown, PutOp, StoreError, StoreUnavailable, TooLarge, WatchBatch
from tests.fixtures.etcd import CLOCK, collect, free_ports

stubs: Any = rpc_pb2_grpc
Script = Callable[["Member", Any, Any], Awaitable[None]]


class FirstChoice(SystemRng):
    def uniform(self, low: float, high: float) -> float:
        return low


class Member(stubs.KVServicer, stubs.WatchServicer, stubs.LeaseServicer, stubs.MaintenanceServicer):  # type: ignore[misc]
    """Answers as told. ``failures``: what the next transactions, leases and reads end with, one each."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.failures: list[tuple[grpc.StatusCode, str]] = []
        self.txns = 0
        self.grants: list[int] = []
        self.scripts: list[Script] = []
        self.created: list[Any] = []
        self.progress_asked = asyncio.Event()
        self.port = 0

    def header(self, revision: int = 10, cluster: int = 7) -> Any:
        return pb.ResponseHeader(cluster_id=cluster, member_id=1, revision=revision, raft_term=2)

    async def Status(self, request: Any, context: Any) -> Any:
        return pb.StatusResponse(header=self.header(), version=self.version, leader=1)

    async def _fail(self, context: Any) -> None:
        if self.failures:
            await context.abort(*self.failures.pop(0))

    async def Range(self, request: Any, context: Any) -> Any:
        await self._fail(context)
        return pb.RangeResponse(header=self.header())

    async def Txn(self, request: Any, context: Any) -> Any:
        self.txns += 1
        await self._fail(context)
        return pb.TxnResponse(header=self.header(), succeeded=True)

    async def LeaseGrant(self, request: Any, context: Any) -> Any:
        self.grants.append(request.ID)
        await self._fail(context)
        return pb.LeaseGrantResponse(header=self.header(), ID=request.ID, TTL=request.TTL)

    async def LeaseRevoke(self, request: Any, context: Any) -> Any:
        await self._fail(context)
        return pb.LeaseRevokeResponse(header=self.header())

    async def Watch(self, requests: Any, context: Any) -> None:
        self.created.append((await anext(requests)).create_request)
        await context.write(pb.WatchResponse(header=self.header(), created=True))

        async def listen() -> None:
            async for request in requests:
                if request.HasField("progress_request"):
                    self.progress_asked.set()

        listening = asyncio.ensure_future(listen())
        try:
            await self.scripts.pop(0)(self, context, self.created[-1])
        finally:
            listening.cancel()

    def event(self, key: str, revision: int) -> Any:
        event = pb.WatchResponse().events.add()
        event.kv.key, event.kv.mod_revision, event.kv.create_revision, event.kv.version = key.encode(), revision, 1, 1
        return event

    async def send(self, context: Any, *events: tuple[str, int], fragment: bool = False, **more: Any) -> None:
        made = [self.event(key, revision) for key, revision in events]
        more.setdefault("header", self.header(events[-1][1] if events else 10))
        await context.write(pb.WatchResponse(events=made, fragment=fragment, **more))


async def forever(member: Member, context: Any, create: Any) -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def cluster(members: int = 1, version: str = "3.6.4") -> AsyncIterator[tuple[EtcdStore, list[Member]]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(members):
            member = Member(version)
            server = grpc.aio.server()
            for name in ("KV", "Watch", "Lease", "Maintenance"):
                getattr(stubs, f"add_{name}Servicer_to_server")(member, server)
            member.port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop, 0)
            made.append(member)
        config = StoreConfig(tuple(f"127.0.0.1:{member.port}" for member in made))
        store = await EtcdStore.open(config, CLOCK, FirstChoice(), deadline_ms=1_000)
        stack.push_async_callback(store.close)
        async with asyncio.timeout(30):
            yield store, made


def keys(batches: list[WatchBatch]) -> list[str]:
    return [change.kv.key for batch in batches for change in batch.changes]


WRITE = (PutOp("/a", b""),)


class TestOutcomes:
    @pytest.mark.parametrize(
        ("code", "details"),
        [
            (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out"),
            (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure"),
            (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped"),
            (grpc.StatusCode.UNAVAILABLE, "etcdserver: leader changed"),
            (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses"),
            (grpc.StatusCode.CANCELLED, "context canceled"),
            (grpc.StatusCode.INTERNAL, "stream terminated by RST_STREAM"),
            (grpc.StatusCode.UNKNOWN, "whatever this is"),
        ],
    )
    async def test_a_write_in_doubt_is_sent_once_and_said_to_be_in_doubt(
        self, code: grpc.StatusCode, details: str
    ) -> None:
        async with cluster(2) as (store, members):
            members[0].failures.append((code, details))
            with pytest.raises(OutcomeUnknown, match=details):
                await store.txn((), WRITE)
            assert [member.txns for member in members] == [1, 0]
            assert (await store.txn((), WRITE)).succeeded
            assert [member.txns for member in members] == [1, 1], "the next call did not turn to the other member"

    @pytest.mark.parametrize("details", ["etcdserver: no leader", "etcdserver: too many requests"])
    async def test_a_write_that_was_not_proposed_goes_to_another_member(self, details: str) -> None:
        async with cluster(2) as (store, members):
            members[0].failures.append((grpc.StatusCode.UNAVAILABLE, details))
            assert (await store.txn((), WRITE)).succeeded
            assert [member.txns for member in members] == [1, 1]

    async def test_a_write_that_no_member_proposes_certainly_did_not_happen(self) -> None:
        async with cluster() as (store, members):
            members[0].failures += [(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")] * 1_000
            with pytest.raises(StoreUnavailable, match="no leader"):
                await store.txn((), WRITE)

    @pytest.mark.parametrize(
        ("details", "code", "kind"),
        [
            ("etcdserver: requested lease not found", grpc.StatusCode.NOT_FOUND, LeaseGone),
            ("etcdserver: request is too large", grpc.StatusCode.INVALID_ARGUMENT, TooLarge),
            ("etcdserver: key is not provided", grpc.StatusCode.INVALID_ARGUMENT, StoreError),
        ],
    )
    async def test_a_definite_answer_is_no_doubt(
        self, details: str, code: grpc.StatusCode, kind: type[StoreError]
    ) -> None:
        async with cluster(2) as (store, members):
            members[0].failures.append((code, details))
            with pytest.raises(kind) as caught:
                await store.txn((), WRITE)
            assert not isinstance(caught.value, OutcomeUnknown | StoreUnavailable)
            assert [member.txns for member in members] == [1, 0]

    async def test_a_read_goes_on_at_another_member(self) -> None:
        async with cluster(2) as (store, members):
            members[0].failures.append((grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out"))
            assert await store.get("/a") == (None, 10)

    async def test_a_grant_whose_reply_was_lost_makes_one_lease(self) -> None:
        async with cluster(2) as (store, members):
            members[0].failures.append((grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out"))
            members[1].failures.append((grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists"))
            lease = await store.lease_grant(5)
            assert members[0].grants == members[1].grants == [lease]

    async def test_a_revoke_that_may_have_been_done_before_is_done(self) -> None:
        async with cluster(2) as (store, members):
            members[0].failures.append((grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out"))
            members[1].failures.append((grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found"))
            await store.lease_revoke(5)

    async def test_nothing_listening_means_certainly_not_written(self) -> None:
        async with cluster() as (store, _):
            pass
        dead = StoreConfig((f"127.0.0.1:{free_ports(1)[0].client}",))
        with pytest.raises(StoreUnavailable):
            await EtcdStore.open(dead, CLOCK, SystemRng(), deadline_ms=300)
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.txn((), WRITE)


class TestWatch:
    async def test_pieces_of_a_revision_are_put_together(self) -> None:
        async def script(member: Member, context: Any, create: Any) -> None:
            assert create.fragment
            await member.send(context, ("/a", 11), ("/b", 11), fragment=True)
            await member.send(context, ("/c", 11), fragment=True)
            await member.send(context, ("/d", 11), ("/e", 12))
            await forever(member, context, create)

        async with cluster() as (store, members):
            members[0].scripts.append(script)
            async with aclosing(store.watch("/", Revision(11))) as watch:
                batches = await collect(watch, lambda got: bool(keys(got)))
            assert keys(batches) == ["/a", "/b", "/c", "/d", "/e"] and batches[-1].revision == 12

    async def test_a_revision_cut_off_in_the_middle_is_told_once_and_whole(self) -> None:
        async def torn(member: Member, context: Any, create: Any) -> None:
            await member.send(context, ("/a", 11))
            await member.send(context, ("/b", 12), fragment=True)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")

        async def whole(member: Member, context: Any, create: Any) -> None:
            assert create.start_revision == 11, "one before the first revision wanted"
            await member.send(context, ("/a", 11), ("/b", 12), ("/c", 12))
            await forever(member, context, create)

        async with cluster(2) as (store, members):
            members[0].scripts.append(torn)
            members[1].scripts.append(whole)
            async with aclosing(store.watch("/", Revision(11))) as watch:
                batches = await collect(watch, lambda got: "/c" in keys(got))
            assert keys(batches) == ["/a", "/b", "/c"]

    async def test_changes_sent_twice_are_told_once(self) -> None:
        async def script(member: Member, context: Any, create: Any) -> None:
            await member.send(context, ("/a", 11), ("/b", 12))
            await member.send(context, ("/b", 12), ("/c", 13))
            await forever(member, context, create)

        async with cluster() as (store, members):
            members[0].scripts.append(script)
            async with aclosing(store.watch("/", Revision(11))) as watch:
                batches = await collect(watch, lambda got: "/c" in keys(got))
            assert keys(batches) == ["/a", "/b", "/c"]

    async def test_it_never_resumes_from_a_header(self) -> None:
        """Progress said 50, the last change was 11: from 12 on it is, wherever the stream ends."""

        async def first(member: Member, context: Any, create: Any) -> None:
            await member.send(context, ("/a", 11))
            await member.send(context, header=member.header(50), watch_id=-1)
            await member.progress_asked.wait()
            await context.abort(grpc.StatusCode.CANCELLED, "go away")

        async def second(member: Member, context: Any, create: Any) -> None:
            assert create.start_revision == 11
            await member.send(context, ("/b", 51))
            await forever(member, context, create)

        async with cluster(2) as (store, members):
            members[0].scripts.append(first)
            members[1].scripts.append(second)
            async with aclosing(store.watch("/", Revision(11))) as watch:
                batches = await collect(watch, lambda got: "/b" in keys(got))
            assert [b.revision for b in batches] == [11, 50, 51]

    async def test_an_untrustworthy_progress_is_checked_by_reading(self) -> None:
        """etcd 3.5.7 may say 50 before it has sent 49. The read (at revision 10, nothing outstanding) is believed."""

        async def script(member: Member, context: Any, create: Any) -> None:
            await member.send(context, header=member.header(50), watch_id=-1)
            await forever(member, context, create)

        async with cluster(version="3.5.7") as (store, members):
            members[0].scripts.append(script)
            async with aclosing(store.watch("/", Revision(5))) as watch:
                batches = await collect(watch, bool)
            assert [(b.revision, b.changes) for b in batches] == [(10, ())]

    async def test_a_silent_member_is_left_for_another(self) -> None:
        async def talk(member: Member, context: Any, create: Any) -> None:
            await member.send(context, ("/a", 11))
            await forever(member, context, create)

        async with cluster(2) as (store, members):
            members[0].scripts.append(forever)
            members[1].scripts.append(talk)
            async with aclosing(store.watch("/", Revision(11))) as watch:
                assert keys(await collect(watch, bool)) == ["/a"]
            assert members[0].progress_asked.is_set()

    async def test_a_member_without_leader_is_left_and_a_compaction_resets(self) -> None:
        async def lost(member: Member, context: Any, create: Any) -> None:
            assert ("hasleader", "true") in [(key, value) for key, value in context.invocation_metadata()]
            await context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")

        async def compacted(member: Member, context: Any, create: Any) -> None:
            await member.send(context, canceled=True, compact_revision=40)
            await forever(member, context, create)

        async with cluster(2) as (store, members):
            members[0].scripts.append(lost)
            members[1].scripts.append(compacted)
            async with aclosing(store.watch("/", Revision(5))) as watch:
                batches = await collect(watch, bool)
            assert [(b.reset, b.revision, b.changes) for b in batches] == [(True, 10, ())]

    async def test_a_cluster_restored_from_a_backup_resets(self) -> None:
        """Its revisions may be lower than those already seen: what was mirrored is not to be trusted."""

        async def before(member: Member, context: Any, create: Any) -> None:
            await member.send(context, ("/a", 11))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarted")

        async def after(member: Member, context: Any, create: Any) -> None:
            await member.send(context, header=member.header(9, cluster=8), watch_id=-1)
            await forever(member, context, create)

        async with cluster() as (store, members):
            members[0].scripts += [before, after]
            async with aclosing(store.watch("/", Revision(11))) as watch:
                batches = await collect(watch, lambda got: any(b.reset for b in got))
            assert keys(batches) == ["/a"] and batches[-1].reset and batches[-1].revision == 10


def test_which_versions_are_unsafe_and_which_order_their_progress() -> None:
    assert [v for v in ("3.4.22", "3.5.0", "3.5.5", "3.5.6", "3.6.0") if unsafe(parse_version(v))] == ["3.5.0", "3.5.5"]
    versions = ("3.4.25", "3.4.32", "3.5.12", "3.5.13", "3.6.0-rc.1", "4.0.0")
    assert [v for v in versions if progress_in_order(parse_version(v))] == ["3.4.32", "3.5.13", "3.6.0-rc.1", "4.0.0"]
    with pytest.raises(StoreError, match="which is none"):
        parse_version("nginx")
