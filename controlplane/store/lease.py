"""Holding one key under one lease, and knowing in time when it is held no more.

The holder's view ends before the store's: a lease is trusted until its TTL, less a margin, after the *sending* of the
last keep-alive that was answered, on the holder's boot-time clock; the store counts from the arrival.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable

from gridkeeper.ids import Revision
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import KeyValue, LeaseGone, OutcomeUnknown, PutOp, Store, StoreError, StoreUnavailable

log = logging.getLogger("gridkeeper.store")

RETRY_MS = 250
"""Pause after a call that failed, and the grain at which the watchdog looks at the clock (a suspended host's sleeps
do not end on time)."""
RENEWALS = 6
"""Per TTL."""
MARGIN_PART = 5
"""A fifth of the TTL is given up at the end: covers clocks that differ in rate and the time to act on the loss."""


class HeldLease:
    """A lease that was granted, with the local time until which it may be trusted."""

    def __init__(self, store: Store, lease: int, ttl_s: int, clock: Clock, granted_ms: int) -> None:
        self.id = lease
        self._store = store
        self._clock = clock
        self._ttl_ms = ttl_s * 1_000
        self._trusted_until_ms = self._limit(granted_ms, self._ttl_ms)

    @classmethod
    async def grant(cls, store: Store, ttl_s: int, clock: Clock) -> HeldLease:
        """Raises ``StoreUnavailable``."""
        asked_ms = clock.mono_ms()
        return cls(store, await store.lease_grant(ttl_s), ttl_s, clock, asked_ms)

    @staticmethod
    def _limit(sent_ms: int, ttl_ms: int) -> int:
        return sent_ms + ttl_ms - ttl_ms // MARGIN_PART

    def trusted(self) -> bool:
        """Whether nobody else can have what hangs on the lease, by this host's clock."""
        return self._clock.mono_ms() < self._trusted_until_ms

    async def hold(self, key: str, since: Revision) -> str:
        """Keep the lease alive and watch ``key``, which was put under it at ``since``. Returns why it is lost."""
        tasks = [
            asyncio.ensure_future(self._renew()),
            asyncio.ensure_future(self._expire()),
            asyncio.ensure_future(self._watch(key, since)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(sorted(task.result() for task in done)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def release(self) -> None:
        """Revoke it, so that its keys go at once. If the store does not answer it ends by itself, a TTL from now."""
        try:
            await self._store.lease_revoke(self.id)
        except LeaseGone:
            pass
        except StoreError as error:
            log.warning("Lease %x could not be revoked (%s); it expires within %d ms.", self.id, error, self._ttl_ms)

    async def _renew(self) -> str:
        every_ms = pause_ms = self._ttl_ms // RENEWALS
        while True:
            await self._clock.sleep(pause_ms)
            sent_ms = self._clock.mono_ms()
            try:
                ttl_ms = await self._store.lease_keepalive(self.id) * 1_000
            except LeaseGone:
                return f"lease {self.id:x} is gone"
            except (StoreUnavailable, OutcomeUnknown) as error:
                log.warning("Lease %x was not renewed (%s); trying again.", self.id, error)
                pause_ms = min(RETRY_MS, self._ttl_ms // 10)
                continue
            self._trusted_until_ms = max(self._trusted_until_ms, self._limit(sent_ms, ttl_ms))
            # From sending to sending: a process that is so busy that answers are late must not rest on top of it.
            pause_ms = max(1, sent_ms + min(every_ms, ttl_ms // RENEWALS) - self._clock.mono_ms())

    async def _expire(self) -> str:
        while True:
            left_ms = self._trusted_until_ms - self._clock.mono_ms()
            if left_ms <= 0:
                return f"lease {self.id:x} was not renewed in time"
            await self._clock.sleep(min(left_ms, RETRY_MS))

    async def _watch(self, key: str, since: Revision) -> str:
        async with contextlib.aclosing(self._store.watch(key, Revision(since + 1))) as batches:
            async for batch in batches:
                mine = not batch.reset
                for change in batch.changes:
                    if change.kv.key == key:
                        mine = not change.deleted and change.kv.lease == self.id
                if not mine:
                    return f"{key} was taken away at revision {batch.revision}"
        return "the store was closed"


async def pause_after(error: StoreError, clock: Clock, what: str) -> None:
    """Say what failed, and wait a little."""
    log.warning("%s: %s; trying again.", what, error)
    await clock.sleep(RETRY_MS)


async def settle(store: Store, key: str, lease: int, clock: Clock) -> KeyValue | None:
    """After a put of ``key`` under ``lease`` whose outcome is unknown: the key if it is under that lease, or None.
    After None the caller must revoke the lease: without it the put cannot happen any more."""
    while True:
        try:
            kv, _ = await store.get(key)
        except StoreUnavailable as error:
            await pause_after(error, clock, f"Reading {key} after an unknown outcome")
            continue
        return kv if kv is not None and kv.lease == lease else None


class LeasedKey:
    """Keeps ``key`` in the store while ``run`` runs, under a lease, and makes it anew whenever it is lost. It
    overwrites what a former process of the same name has left."""

    def __init__(self, store: Store, key: str, value: bytes, ttl_s: int, clock: Clock) -> None:
        self._store = store
        self._key = key
        self._value = value
        self._ttl_s = ttl_s
        self._clock = clock
        self.present = asyncio.Event()
        """Set while the key is known to exist."""

    async def run(self) -> None:
        """Until cancelled; then the key is taken away, if the store answers within a second."""
        while True:
            try:
                lease = await HeldLease.grant(self._store, self._ttl_s, self._clock)
            except (StoreUnavailable, OutcomeUnknown) as error:
                await pause_after(error, self._clock, f"A lease for {self._key}")
                continue
            try:
                revision = await self._put(lease)
                if revision is None:
                    continue
                self.present.set()
                reason = await lease.hold(self._key, revision)
                log.warning("%s is lost: %s; making it anew.", self._key, reason)
            finally:
                self.present.clear()
                await within(self._clock, 1_000, lease.release())

    async def _put(self, lease: HeldLease) -> Revision | None:
        """The revision of the put, or None: to be tried with another lease."""
        try:
            done = await self._store.txn((), (PutOp(self._key, self._value, lease.id),))
            return done.revision
        except OutcomeUnknown:
            kv = await settle(self._store, self._key, lease.id, self._clock)
            return kv.mod_revision if kv is not None else None
        except (StoreUnavailable, LeaseGone) as error:
            await pause_after(error, self._clock, f"Writing {self._key}")
            return None


async def within(clock: Clock, most_ms: int, work: Awaitable[None]) -> None:
    """Await ``work``, but no longer than ``most_ms``; then cancel it."""
    doing = asyncio.ensure_future(work)
    alarm = asyncio.ensure_future(clock.sleep(most_ms))
    try:
        await asyncio.wait((doing, alarm), return_when=asyncio.FIRST_COMPLETED)
    finally:
        doing.cancel()
        alarm.cancel()
        await asyncio.gather(doing, alarm, return_exceptions=True)
