"""Leader election: who creates the leader key leads, and the key's create revision is the term.

Leading proves nothing to others: every write of a leader also compares the leader key's create revision. What this
module adds is that a leader *knows* in time: ``Leadership.lost`` is set before its lease can end in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from types import TracebackType

from controlplane.store.lease import HeldLease, LeasedKey, pause_after, settle, within
from gridkeeper.ids import Revision, Term
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import (
    ANY,
    Compare,
    GetOp,
    KeyValue,
    LeaseGone,
    OutcomeUnknown,
    PutOp,
    Store,
    StoreUnavailable,
)

__all__ = ["Election", "Leadership", "LeasedKey"]

log = logging.getLogger("gridkeeper.store")

RESIGN_MS = 1_000
"""A store that does not answer for so long is left to let the lease expire."""


class Leadership:
    """One term of office. End it with ``resign`` (or ``async with``), also after it was lost."""

    def __init__(self, store: Store, key: str, term: Term, lease: HeldLease, clock: Clock) -> None:
        self.key = key
        self.term = term
        self.lost = asyncio.Event()
        """Set as soon as another may lead, for whatever reason, and never cleared."""
        self.reason = ""
        """Why it was lost: one sentence for the log."""
        self._lease = lease
        self._clock = clock
        self._holding = asyncio.ensure_future(self._hold())

    def held(self) -> bool:
        """Not lost, by the clock as it is now; does not depend on any task having run."""
        return not self.lost.is_set() and self._lease.trusted()

    async def resign(self) -> None:
        """Stop leading and take the key away, so that another need not wait for the lease. Idempotent."""
        self._lose("it was given up")
        self._holding.cancel()
        await asyncio.gather(self._holding, return_exceptions=True)
        await within(self._clock, RESIGN_MS, self._lease.release())

    async def __aenter__(self) -> Leadership:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.resign()

    def _lose(self, reason: str) -> None:
        if not self.lost.is_set():
            self.reason = reason
            self.lost.set()

    async def _hold(self) -> None:
        try:
            self._lose(await self._lease.hold(self.key, Revision(self.term)))
            log.warning("Term %d of %s is lost: %s.", self.term, self.key, self.reason)
        finally:
            self._lose("its keeper ended")


class Election:
    """One candidate for the leader key. ``record``: the encoded ``LeaderRecord`` to be stored there."""

    def __init__(self, store: Store, key: str, record: bytes, ttl_s: int, clock: Clock) -> None:
        self._store = store
        self._key = key
        self._record = record
        self._ttl_s = ttl_s
        self._clock = clock

    async def campaign(self) -> Leadership:
        """Wait until this candidate leads. Rides out every fault of the store."""
        while True:
            try:
                holder, revision = await self._store.get(self._key)
                if holder is not None:
                    await self._wait_for_end(holder, revision)
                leadership = await self._stand()
            except (StoreUnavailable, OutcomeUnknown) as error:
                await pause_after(error, self._clock, f"Campaign for {self._key}")
                continue
            if leadership is not None:
                return leadership

    async def _stand(self) -> Leadership | None:
        """One attempt: create the key if it is absent. Raises ``StoreUnavailable``."""
        lease = await HeldLease.grant(self._store, self._ttl_s, self._clock)
        elected: Leadership | None = None
        try:
            term = await self._create(lease)
            if term is not None and lease.trusted():
                elected = Leadership(self._store, self._key, term, lease, self._clock)
            return elected
        finally:
            if elected is None:
                await within(self._clock, RESIGN_MS, lease.release())

    async def _create(self, lease: HeldLease) -> Term | None:
        absent = Compare(self._key, ANY, create=True)
        try:
            done = await self._store.txn((absent,), (PutOp(self._key, self._record, lease.id),), (GetOp(self._key),))
        except OutcomeUnknown:
            # The key may be ours, now or later. Read it; if it is not there, the caller revokes the lease, and a put
            # that names a revoked lease fails.
            kv = await settle(self._store, self._key, lease.id, self._clock)
            return Term(kv.create_revision) if kv is not None else None
        except LeaseGone:
            return None
        return Term(done.revision) if done.succeeded else None

    async def _wait_for_end(self, holder: KeyValue, revision: Revision) -> None:
        """Until the key that ``holder`` describes, as of ``revision``, is deleted."""
        async with contextlib.aclosing(self._store.watch(self._key, Revision(revision + 1))) as batches:
            async for batch in batches:
                held = not batch.reset
                for change in batch.changes:
                    if change.kv.key == self._key:
                        held = not change.deleted
                if not held:
                    return
        raise StoreUnavailable(f"{self._key}: the watch ended, the store was closed; open it again")
