"""A watch that survives its members: resumes, re-lists, and says truthfully how far it has come.

Rules, each from something that went wrong in etcd or its clients:

- Resume at the last *change's* revision + 1, never at a header's: a header may be ahead of what was delivered.
- Ask the server to begin one revision earlier and drop that one: a compaction at exactly the first revision wanted
  removes a deletion made there, and etcd before 3.4.32 and 3.5.13 does not tell.
- A paused member keeps its TCP connection: only silence shows it. Progress is asked for each second; after 3 s without
  a word the watch moves to another member.
- A member cut off from its leader would be silent for ever: ``hasleader`` makes it end the stream.
- ``fragment``: a revision larger than gRPC's limit comes in pieces, which are put together before delivery.
- A requested progress notification may overtake changes, or never come, in etcd before 3.4.32 and 3.5.13. There
  progress is told only after a linearizable read has shown that nothing is outstanding: no key under the prefix is
  newer than the last change delivered, and there are as many keys as there should be.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grpc

from controlplane.store.etcd_channel import Endpoint, Endpoints, pb
from controlplane.store.etcd_errors import definite, parse_version, progress_in_order
from gridkeeper.ids import Revision
from gridkeeper.ports.store import (
    Change,
    KeyValue,
    RevisionCompacted,
    StoreDenied,
    StoreUnavailable,
    WatchBatch,
)

if TYPE_CHECKING:
    from controlplane.store.etcd import EtcdStore

log = logging.getLogger("gridkeeper.store")

PROGRESS_MS = 1_000
CHECK_MS = 1_250
"""Progress is checked by reading after so long without any; longer than the second after which an etcd 3.5 that was
told to (as the embedded one is) sends truthful notifications by itself."""
STALL_MS = 3_000
RECONNECT_MS = (20, 1_000)
"""Pause before the first and, doubling, before later reconnects in a row."""
DELETE = 1
"""``mvccpb.Event.DELETE``."""


def key_bytes(key: str) -> bytes:
    """A key as etcd has it. Foreign keys that are no UTF-8 come and go as surrogates."""
    return key.encode("utf-8", "surrogateescape")


def key_range(prefix: str) -> tuple[bytes, bytes]:
    """``key`` and ``range_end`` for everything that begins with ``prefix``."""
    first = key_bytes(prefix)
    stem = first.rstrip(b"\xff")
    return first or b"\0", stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def convert(kv: Any) -> KeyValue:
    """From etcd's message."""
    return KeyValue(
        kv.key.decode("utf-8", "surrogateescape"),
        kv.value,
        Revision(kv.create_revision),
        Revision(kv.mod_revision),
        kv.version,
        kv.lease,
    )


class _Broken(Exception):
    """This connection is of no use any more; take another."""


@contextlib.contextmanager
def _call_errors() -> Iterator[None]:
    """Whatever ends a call becomes ``_Broken``; so does the cancelling of the *call* by ``aclose`` in another task,
    which gRPC reports as if it were the task's own."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _Broken(f"{error.code().name}: {error.details()}") from error
    except (asyncio.InvalidStateError, TimeoutError) as error:
        raise _Broken(str(error) or "no answer in time") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise _Broken("the call was cancelled") from None


class _Stream:
    """One watch on one connection to one member."""

    def __init__(self, endpoint: Endpoint, call: Any, now_ms: int) -> None:
        self.endpoint = endpoint
        self.call = call
        self.heard_ms = now_ms  # last sign of life
        self.asked_ms = now_ms  # last request for progress
        self.checked_ms = 0  # last check by reading
        self.told_ms = now_ms  # last time the reader learnt how far we are
        self.pieces: list[Any] = []
        self.in_order = endpoint.version is not None and progress_in_order(endpoint.version)
        self._read: asyncio.Task[Any] | None = None

    async def next(self, most_ms: int) -> Any | None:
        """The next response, or None after ``most_ms``. Cancelling loses nothing. Raises ``_Broken``."""
        if self._read is None:
            self._read = asyncio.ensure_future(self._receive())
        done, _ = await asyncio.wait((self._read,), timeout=most_ms / 1_000)
        if not done:
            return None
        read, self._read = self._read, None
        return read.result()

    async def _receive(self) -> Any:
        with _call_errors():
            response = await self.call.read()
        if response is grpc.aio.EOF:
            raise _Broken("the member ended the stream")
        return response

    async def send(self, request: Any, most_ms: int) -> None:
        """Raises ``_Broken``, also after ``most_ms``."""
        with _call_errors():
            async with asyncio.timeout(most_ms / 1_000):
                await self.call.write(request)

    def abandon(self) -> None:
        """Without waiting."""
        self.call.cancel()
        if self._read is not None:
            self._read.add_done_callback(lambda read: read.cancelled() or read.exception())

    async def close(self) -> None:
        self.call.cancel()
        if self._read is not None:
            await asyncio.gather(self._read, return_exceptions=True)


class EtcdWatch:
    """See the module. One reader at a time."""

    def __init__(self, store: EtcdStore, endpoints: Endpoints, prefix: str, start: Revision) -> None:
        self._store = store
        self._endpoints = endpoints
        self._clock = endpoints.clock
        self._prefix = prefix
        self._range = key_range(prefix)
        self._next = max(1, int(start))  # the first revision not delivered
        self._keys: int | None = None  # how many exist under the prefix at _next - 1, if known
        self._cluster = 0
        self._stream: _Stream | None = None
        self._last: Endpoint | None = None  # that failed
        self._failures = 0
        self._denied = False
        self._idle_since_ms = self._clock.mono_ms()
        self._closed = False

    def __aiter__(self) -> EtcdWatch:
        return self

    async def __anext__(self) -> WatchBatch:
        self._forgive_idleness()
        try:
            while not self._closed:
                batch = await self._attempt()
                if batch is not None:
                    return batch
        finally:
            self._idle_since_ms = self._clock.mono_ms()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    def __del__(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(RuntimeError):  # the loop may be gone before us
                self._stream.abandon()

    def _forgive_idleness(self) -> None:
        """Time in which nobody read is no silence of the member's."""
        if self._stream is not None:
            away_ms = self._clock.mono_ms() - self._idle_since_ms
            self._stream.heard_ms += away_ms
            self._stream.told_ms += away_ms

    async def _attempt(self) -> WatchBatch | None:
        try:
            if self._stream is None:
                await self._connect()
            return await self._step()
        except RevisionCompacted as error:
            log.warning("Watch of %s from revision %d: %s; reading all again.", self._prefix, self._next, error)
            await self._disconnect()
            return await self._relist()
        except (_Broken, StoreUnavailable) as error:
            if not self._closed:
                await self._reconnect_later(error)
            return None

    # -- connecting

    async def _connect(self) -> None:
        now_ms = self._clock.mono_ms()
        endpoint = await self._endpoints.ready(now_ms + self._endpoints.deadline_ms, after=self._last)
        timeout = self._endpoints.deadline_ms / 1_000
        self._last = endpoint
        with _call_errors():
            if endpoint.version is None:
                status = await endpoint.maintenance.Status(pb.StatusRequest(), timeout=timeout)
                endpoint.version = parse_version(status.version)
            metadata = await self._endpoints.metadata(endpoint, timeout)
            stream = _Stream(endpoint, endpoint.watch.Watch(metadata=metadata), self._clock.mono_ms())
        if self._closed:
            stream.abandon()
            return
        self._stream = stream
        first, end = self._range
        create = pb.WatchCreateRequest(
            key=first,
            range_end=end,
            start_revision=max(1, self._next - 1),
            progress_notify=True,
            fragment=True,
        )
        await stream.send(pb.WatchRequest(create_request=create), self._endpoints.deadline_ms)

    async def _disconnect(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def _reconnect_later(self, error: Exception) -> None:
        where = self._last.address if self._last else "any member"
        await self._disconnect()
        pause_ms = min(RECONNECT_MS[1], RECONNECT_MS[0] << min(self._failures, 10))
        self._failures += 1
        log.warning(
            "Watch of %s at %s broke (%s); resuming at revision %d in %d ms.",
            self._prefix, where, error, self._next, pause_ms,
        )  # fmt: skip
        await self._clock.sleep(pause_ms)

    async def _relist(self) -> WatchBatch | None:
        """Everything that exists. Raises nothing but ``StoreDenied``: it comes back until it succeeds."""
        try:
            page = await self._store.range(self._prefix)
        except StoreUnavailable as error:
            log.warning("Reading %s again after a compaction: %s; trying again.", self._prefix, error)
            await self._clock.sleep(RECONNECT_MS[1])
            return None
        self._next = page.revision + 1
        self._keys = len(page.items)
        return WatchBatch(tuple(Change(kv, deleted=False) for kv in page.items), page.revision, reset=True)

    # -- one step on a connection

    async def _step(self) -> WatchBatch | None:
        stream = self._stream
        if stream is None:
            raise _Broken("it was closed")
        now_ms = self._clock.mono_ms()
        if now_ms >= stream.heard_ms + STALL_MS:
            raise _Broken(f"not a word for {now_ms - stream.heard_ms} ms")
        if now_ms >= stream.asked_ms + PROGRESS_MS:
            stream.asked_ms = now_ms
            await stream.send(pb.WatchRequest(progress_request=pb.WatchProgressRequest()), STALL_MS)
        check_ms = max(stream.told_ms, stream.checked_ms) + CHECK_MS
        if not stream.in_order and now_ms >= check_ms:
            stream.checked_ms = now_ms
            return await self._check_progress(stream)
        due_ms = min(stream.heard_ms + STALL_MS, stream.asked_ms + PROGRESS_MS) - now_ms
        if not stream.in_order:
            due_ms = min(due_ms, check_ms - now_ms)
        response = await stream.next(max(1, due_ms))
        return None if response is None else self._digest(stream, response)

    def _digest(self, stream: _Stream, response: Any) -> WatchBatch | None:
        now_ms = stream.heard_ms = self._clock.mono_ms()
        cluster = response.header.cluster_id
        if self._cluster and cluster and cluster != self._cluster:
            self._cluster = cluster
            raise RevisionCompacted(f"{stream.endpoint.address} now belongs to another cluster, restored from a backup")
        self._cluster = cluster or self._cluster
        if response.canceled:
            self._cancelled(response)
        self._failures, self._denied = 0, False
        if response.fragment:
            stream.pieces.extend(response.events)
            return None
        events, stream.pieces = [*stream.pieces, *response.events], []
        changes = tuple(_change(event) for event in events if event.kv.mod_revision >= self._next)
        if changes:
            stream.told_ms = now_ms
            return self._changed(changes)
        # A notification for this very watch (its id, not -1) is queued among its changes and so always in order.
        truthful = stream.in_order or response.watch_id != -1
        revision = Revision(response.header.revision)
        if events or response.created or not truthful or revision < self._next - 1:
            return None
        stream.told_ms = now_ms
        return WatchBatch((), revision)

    def _changed(self, changes: tuple[Change, ...]) -> WatchBatch:
        revision = changes[-1].kv.mod_revision
        self._next = revision + 1
        if self._keys is not None:
            self._keys += sum(-1 if c.deleted else c.kv.version == 1 for c in changes)
        return WatchBatch(changes, revision)

    def _cancelled(self, response: Any) -> None:
        """Raises what a cancelled watch means."""
        reason = response.cancel_reason or "no reason given"
        if response.compact_revision:
            raise RevisionCompacted(f"compacted up to {response.compact_revision}")
        if "permission denied" in reason:  # also the answer to a token that has expired
            had_token = self._endpoints.drop_token()
            if self._denied or not had_token:
                raise StoreDenied(f"watch of {self._prefix!r}: {reason}; grant the user a role on these keys")
            self._denied = True
        raise _Broken(reason)

    # -- progress by reading, where notifications cannot be trusted

    async def _check_progress(self, stream: _Stream) -> WatchBatch | None:
        if self._keys is None:
            self._keys = await self._count_keys(stream)
        reply = await self._read(stream, limit=1, keys_only=True, min_mod_revision=self._next)
        revision = Revision(reply.header.revision)
        if reply.kvs or reply.count != self._keys or revision < self._next - 1:
            if self._clock.mono_ms() >= stream.told_ms + STALL_MS:
                raise _Broken(f"changes up to revision {revision} are overdue")
            return None
        stream.heard_ms = stream.told_ms = self._clock.mono_ms()
        return WatchBatch((), revision)

    async def _count_keys(self, stream: _Stream) -> int:
        """Keys under the prefix at the last revision delivered. Raises ``RevisionCompacted``."""
        if self._next == 1:
            return 0
        return int((await self._read(stream, count_only=True, revision=self._next - 1)).count)

    async def _read(self, stream: _Stream, **what: Any) -> Any:
        """From the watch's own member, so that it is also a sign of life."""
        first, end = self._range
        request = pb.RangeRequest(key=first, range_end=end, **what)
        timeout = self._endpoints.deadline_ms / 1_000
        try:
            metadata = await self._endpoints.metadata(stream.endpoint, timeout)
            return await stream.endpoint.kv.Range(request, timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            known = definite(f"watch of {self._prefix!r}", error)
            if isinstance(known, RevisionCompacted | StoreDenied):
                raise known from error
            raise _Broken(f"{stream.endpoint.address}: {known}") from error


def _change(event: Any) -> Change:
    kv = convert(event.kv)
    return Change(kv, deleted=event.type == DELETE)
