"""The ``Store`` port on etcd 3.4 or newer, over ``grpc.aio`` and generated stubs.

What is certain and what is in doubt is decided in ``etcd_channel`` and ``etcd_errors``; watches are in ``etcd_watch``.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from controlplane.store.etcd_channel import Endpoint, Endpoints, Metadata, pb
from controlplane.store.etcd_errors import Version, parse_version, progress_in_order, unsafe
from controlplane.store.etcd_watch import EtcdWatch, convert, key_bytes, key_range
from controlplane.store.limits import check_txn
from gridkeeper.config import StoreConfig
from gridkeeper.ids import Revision
from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.store import (
    ANY,
    Compare,
    DeleteOp,
    GetOp,
    KeyValue,
    LeaseGone,
    Op,
    Page,
    PutOp,
    RevisionCompacted,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    TxnResult,
)

log = logging.getLogger("gridkeeper.store")

PAGE = 1_000
"""Keys per internal page of ``range``."""
OLDEST: Version = (3, 4, 0)
"""Requested progress notifications appeared in 3.4."""


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What one member says of itself. ``error``: why it says nothing, else ""."""

    endpoint: str
    version: str = ""
    revision: Revision = ANY
    raft_term: int = 0
    is_leader: bool = False
    size_bytes: int = 0
    in_use_bytes: int = 0
    alarms: tuple[str, ...] = ()
    error: str = ""


class EtcdStore:
    """One client of one cluster. ``deadline_ms``: of each call, retries included."""

    def __init__(self, endpoints: Endpoints, clock: Clock, rng: Rng) -> None:
        self._endpoints = endpoints
        self._clock = clock
        self._rng = rng
        self._watches: weakref.WeakSet[EtcdWatch] = weakref.WeakSet()

    @classmethod
    async def open(cls, config: StoreConfig, clock: Clock, rng: Rng, *, deadline_ms: int = 2_000) -> EtcdStore:
        """Connect, and check what is there. Raises ``StoreUnavailable`` if no member answers (or all refuse the
        certificate), ``StoreDenied`` for a wrong user or password, ``StoreError`` for a version that is too old or
        known to lose data (unless ``allow_unsafe_version``), or endpoints that belong to different clusters."""
        endpoints = Endpoints(config, clock, rng, deadline_ms)
        store = cls(endpoints, clock, rng)
        try:
            await store._check(config)
        except BaseException:
            await store.close()
            raise
        return store

    async def _check(self, config: StoreConfig) -> None:
        replies = await asyncio.gather(*(self._probe(endpoint) for endpoint in self._endpoints.all))
        clusters: dict[int, str] = {}
        for endpoint, reply in zip(self._endpoints.all, replies, strict=True):
            if isinstance(reply, StoreError):
                log.warning("etcd member %s does not answer: %s.", endpoint.address, reply)
                continue
            endpoint.version = version = parse_version(reply.version)
            clusters.setdefault(reply.header.cluster_id, endpoint.address)
            if version < OLDEST:
                raise StoreError(
                    f"store.endpoints: {endpoint.address} runs etcd {reply.version}; 3.4 or newer is needed"
                )
            if unsafe(version) and not config.allow_unsafe_version:
                raise StoreError(
                    f"store.endpoints: {endpoint.address} runs etcd {reply.version}; 3.5.0 to 3.5.5 can lose data when "
                    "killed under load: upgrade etcd, or set store.allow_unsafe_version for a demonstration"
                )
            if not progress_in_order(version):
                log.info(
                    "etcd %s at %s: the progress of watches is checked by reading.", reply.version, endpoint.address
                )
        if not clusters:
            raise StoreUnavailable("store.endpoints: no member answers: " + "; ".join(str(reply) for reply in replies))
        if len(clusters) > 1:
            raise StoreError(f"store.endpoints: {sorted(clusters.values())} belong to different etcd clusters")
        await self._check_access()

    async def _check_access(self) -> None:
        """The first call that needs a leader and, where there is a user, the password. Raises as ``get``; a user
        without the right to this very key is known all the same."""
        try:
            await self.get("/gridkeeper/v1/")
        except StoreDenied as error:
            if "permission denied" not in str(error):
                raise

    async def _probe(self, endpoint: Endpoint) -> Any:
        """The member's ``StatusResponse``, or a ``StoreError`` that says why there is none."""
        timeout = self._endpoints.deadline_ms / 1_000
        try:
            return await endpoint.maintenance.Status(pb.StatusRequest(), timeout=timeout, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            return StoreUnavailable(f"{endpoint.address}: {error.details() or error.code().name}")

    # -- what it is connected to

    async def status(self) -> tuple[MemberStatus, ...]:
        """Every member's own word, in the order of the configuration."""
        replies = await asyncio.gather(*(self._probe(endpoint) for endpoint in self._endpoints.all))
        found = []
        for endpoint, reply in zip(self._endpoints.all, replies, strict=True):
            if isinstance(reply, StoreError):
                found.append(MemberStatus(endpoint.address, error=str(reply)))
                continue
            found.append(
                MemberStatus(
                    endpoint.address,
                    reply.version,
                    Revision(reply.header.revision),
                    reply.raftTerm,
                    reply.leader == reply.header.member_id,
                    reply.dbSize,
                    reply.dbSizeInUse,
                    tuple(reply.errors),
                )
            )
        return tuple(found)

    @property
    def version(self) -> str:
        """The oldest version among the members that answered at ``open``."""
        known = [endpoint.version for endpoint in self._endpoints.all if endpoint.version is not None]
        return ".".join(str(part) for part in min(known)) if known else ""

    # -- reading

    async def get(self, key: str) -> tuple[KeyValue | None, Revision]:
        reply = await self._range(f"get {key!r}", pb.RangeRequest(key=key_bytes(key)))
        kv = convert(reply.kvs[0]) if reply.kvs else None
        return kv, Revision(reply.header.revision)

    async def range(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int = 0,
        revision: Revision = ANY,
        min_mod_revision: Revision = ANY,
    ) -> Page:
        while True:
            try:
                return await self._pages(prefix, after, limit, revision, min_mod_revision)
            except RevisionCompacted:
                if revision != ANY:
                    raise
                # The newest was asked for, and compacted away between two pages: begin again at what is newest now.

    async def _pages(self, prefix: str, after: str, limit: int, revision: Revision, min_mod: Revision) -> Page:
        first, end = key_range(prefix)
        if after:
            first = max(first, key_bytes(after) + b"\0")
        items: list[KeyValue] = []
        at, header = revision, ANY
        while True:
            request = pb.RangeRequest(
                key=first, range_end=end, limit=limit or PAGE, revision=at, min_mod_revision=min_mod
            )
            reply = await self._range(f"range {prefix!r}", request)
            items.extend(convert(kv) for kv in reply.kvs)
            header = header or Revision(reply.header.revision)
            if limit or not reply.more:
                return Page(tuple(items), header, bool(reply.more))
            first = reply.kvs[-1].key + b"\0"
            at = at or header

    async def _range(self, what: str, request: Any) -> Any:
        async def send(endpoint: Endpoint, timeout: float, metadata: Metadata) -> Any:
            return await endpoint.kv.Range(request, timeout=timeout, metadata=metadata)

        return await self._endpoints.call(what, send)

    # -- writing

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        check_txn(compares, success, failure)
        request = pb.TxnRequest(
            compare=[_compare(compare) for compare in compares],
            success=[_operation(op) for op in success],
            failure=[_operation(op) for op in failure],
        )
        writes = not all(isinstance(op, GetOp) for op in (*success, *failure))

        async def send(endpoint: Endpoint, timeout: float, metadata: Metadata) -> Any:
            return await endpoint.kv.Txn(request, timeout=timeout, metadata=metadata)

        reply = await self._endpoints.call("txn", send, write=writes)
        ranges = (r.response_range for r in reply.responses if r.WhichOneof("response") == "response_range")
        values = tuple(convert(r.kvs[0]) if r.kvs else None for r in ranges)
        return TxnResult(bool(reply.succeeded), Revision(reply.header.revision), values)

    # -- leases: each call may be repeated without harm

    async def lease_grant(self, ttl_s: int) -> int:
        """etcd raises a TTL below 1.5 election timeouts to that. Raises ``StoreUnavailable``, ``NoSpace``."""
        if ttl_s < 1:
            raise ValueError(f"ttl_s: {ttl_s} is not a lease's life; at least 1 s")
        # The id is ours, so that a grant whose reply was lost can be repeated: the second says "already exists".
        lease = int(self._rng.token(7), 16) + 1
        request = pb.LeaseGrantRequest(TTL=ttl_s, ID=lease)

        async def send(endpoint: Endpoint, timeout: float, metadata: Metadata) -> int:
            try:
                reply = await endpoint.lease.LeaseGrant(request, timeout=timeout, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if "lease already exists" in (error.details() or ""):
                    return lease
                raise
            return int(reply.ID)

        return await self._endpoints.call("lease grant", send)

    async def lease_keepalive(self, lease: int) -> int:
        async def send(endpoint: Endpoint, timeout: float, metadata: Metadata) -> int:
            requests = iter([pb.LeaseKeepAliveRequest(ID=lease)])
            call = endpoint.lease.LeaseKeepAlive(requests, timeout=timeout, metadata=metadata)
            try:
                async for reply in call:
                    return int(reply.TTL)
            finally:
                call.cancel()
            raise StoreUnavailable(f"keep-alive of lease {lease:x}: the stream ended without an answer")

        ttl_s = await self._endpoints.call(f"keep-alive of lease {lease:x}", send)
        if ttl_s <= 0:
            raise LeaseGone(f"lease {lease:x}: expired or revoked; grant another")
        return ttl_s

    async def lease_revoke(self, lease: int) -> None:
        """Raises ``LeaseGone`` if there was none, unless an earlier try of this very call may have ended it."""
        tries = 0

        async def send(endpoint: Endpoint, timeout: float, metadata: Metadata) -> None:
            nonlocal tries
            tries += 1
            await endpoint.lease.LeaseRevoke(pb.LeaseRevokeRequest(ID=lease), timeout=timeout, metadata=metadata)

        try:
            await self._endpoints.call(f"revoke of lease {lease:x}", send)
        except LeaseGone:
            if tries == 1:
                raise

    # -- watching

    def watch(self, prefix: str, start: Revision) -> EtcdWatch:
        watch = EtcdWatch(self, self._endpoints, prefix, start)
        self._watches.add(watch)
        return watch

    async def close(self) -> None:
        """Ends all watches and connections. Idempotent."""
        for watch in list(self._watches):
            await watch.aclose()
        await self._endpoints.close()


def _compare(compare: Compare) -> Any:
    if compare.create:
        return pb.Compare(
            result=pb.Compare.EQUAL,
            target=pb.Compare.CREATE,
            key=key_bytes(compare.key),
            create_revision=compare.revision,
        )
    return pb.Compare(
        result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=key_bytes(compare.key), mod_revision=compare.revision
    )


def _operation(op: Op) -> Any:
    match op:
        case PutOp(key, value, lease):
            return pb.RequestOp(request_put=pb.PutRequest(key=key_bytes(key), value=value, lease=lease))
        case DeleteOp(key):
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key_bytes(key)))
        case GetOp(key):
            return pb.RequestOp(request_range=pb.RangeRequest(key=key_bytes(key)))
