"""The store: etcd v3's model, as small as we use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gridkeeper.ids import Revision

ANY = Revision(0)
"""As a ``revision``: the newest, linearizable. As a ``min_mod_revision``: all."""


class StoreError(Exception):
    """Base of everything that a store raises."""


class StoreUnavailable(StoreError):
    """A *read* could not be answered in time, or a write certainly did not happen. Try again later."""


class OutcomeUnknown(StoreError):
    """A *write* whose reply was lost: it may have happened, and may yet happen. Read again; never blindly retry."""


class NoSpace(StoreUnavailable):
    """etcd's NOSPACE alarm: reads work, writes certainly do not."""


class LeaseGone(StoreError):
    """The lease has expired or was revoked."""


class TooLarge(StoreError):
    """More than etcd's defaults allow: 128 operations or 1.5 MiB per transaction."""


class StoreDenied(StoreError):
    """The store refuses this user, password or certificate; nothing was done. Trying again is pointless."""


class RevisionCompacted(StoreError):
    """A read at a revision that has been compacted away."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: str
    value: bytes
    create_revision: Revision
    mod_revision: Revision
    version: int
    lease: int


@dataclass(frozen=True, slots=True)
class Page:
    """``revision``: of the store when it was read (header revision). ``more``: keys follow after the last one."""

    items: tuple[KeyValue, ...]
    revision: Revision
    more: bool


@dataclass(frozen=True, slots=True)
class Compare:
    """``key``'s mod (or, with ``create=True``, create) revision equals ``revision`` (0: the key does not exist)."""

    key: str
    revision: Revision
    create: bool = False


@dataclass(frozen=True, slots=True)
class PutOp:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class DeleteOp:
    key: str


@dataclass(frozen=True, slots=True)
class GetOp:
    key: str


Op = PutOp | DeleteOp | GetOp


@dataclass(frozen=True, slots=True)
class TxnResult:
    """``revision``: of the store after the transaction. ``values``: one per ``GetOp`` of the branch taken, in order."""

    succeeded: bool
    revision: Revision
    values: tuple[KeyValue | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One key that changed. ``value is None``: deleted (then ``kv`` has only the key and the mod revision)."""

    kv: KeyValue
    deleted: bool


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Changes of whole revisions, in order. ``revision``: everything up to it has been delivered (also sent without
    changes, as a sign of progress, about once a second). ``reset``: the history in between was compacted; ``changes``
    then holds every key that exists at ``revision`` and all other keys under the prefix are gone."""

    changes: tuple[Change, ...]
    revision: Revision
    reset: bool = False


class Watch(Protocol):
    """An async iterator of batches. Cancelling a waiting ``__anext__`` loses nothing: ask again."""

    def __aiter__(self) -> Watch: ...

    async def __anext__(self) -> WatchBatch: ...

    async def aclose(self) -> None:
        """End it, from any task; a waiting ``__anext__`` ends with ``StopAsyncIteration``. Idempotent."""
        ...


class Store(Protocol):
    """All calls have a deadline and raise ``StoreUnavailable`` (reads, and writes that certainly did not happen) or
    ``OutcomeUnknown`` (writes). Reads are linearizable unless ``revision`` is given."""

    async def get(self, key: str) -> tuple[KeyValue | None, Revision]:
        """The key and the store's revision."""
        ...

    async def range(
        self,
        prefix: str,
        *,
        after: str = "",
        limit: int = 0,
        revision: Revision = ANY,
        min_mod_revision: Revision = ANY,
    ) -> Page:
        """Keys under ``prefix`` in key order, from the first one greater than ``after``; at most ``limit`` (0: the
        adapter pages internally, at one revision, until all are read). ``min_mod_revision``: only keys changed at or
        after it. Raises ``RevisionCompacted``."""
        ...

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        """One atomic transaction. Raises ``TooLarge`` before sending, ``NoSpace``, ``LeaseGone``."""
        ...

    async def lease_grant(self, ttl_s: int) -> int: ...

    async def lease_keepalive(self, lease: int) -> int:
        """One keep-alive; the new TTL in seconds. Raises ``LeaseGone``."""
        ...

    async def lease_revoke(self, lease: int) -> None: ...

    def watch(self, prefix: str, start: Revision) -> Watch:
        """Changes under ``prefix`` from revision ``start`` on, for ever: it reconnects by itself, to any endpoint, and
        re-lists after a compaction. No change is lost and none delivered twice. Close it by ``aclose()``."""
        ...

    async def close(self) -> None: ...
