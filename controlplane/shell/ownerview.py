"""A replica's own linearizable view of ownership: what it may acknowledge renewals from.

The mirror follows a watch and may lag; this view is read from the store's quorum, dated by when the read *started*, so
its age is an upper bound of how old the truth in it can be.
"""

from __future__ import annotations

import logging

from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.ids import JobId, RegionId, Revision
from gridkeeper.keys import KEYS
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import Store, StoreError
from gridkeeper.records.jobs import GrantRecord, OwnershipRecord
from gridkeeper.timings import Timings

log = logging.getLogger("gridkeeper.ownerview")

NEVER_MS = 1 << 60


class OwnerView:
    """Ownership records are never deleted, so reading what changed since the last read is enough."""

    def __init__(self, store: Store, region: RegionId, clock: Clock, timings: Timings) -> None:
        self._store = store
        self._region = region
        self._clock = clock
        self._period_ms = max(50, timings.stale_ms // 4)
        self._owners: dict[JobId, Versioned[OwnershipRecord]] = {}
        self._read = Revision(0)
        self._as_of_ms: int | None = None
        self.grant: GrantRecord | None = None

    @property
    def age_ms(self) -> int:
        """How old the view may be; ``NEVER_MS`` before the first read."""
        return NEVER_MS if self._as_of_ms is None else self._clock.mono_ms() - self._as_of_ms

    def owner(self, job: JobId) -> Versioned[OwnershipRecord] | None:
        return self._owners.get(job)

    async def run(self) -> None:
        """Read for ever. A failed read lets the view age: that is the point."""
        while True:
            try:
                await self.refresh()
            except StoreError as error:
                log.warning("the view of ownership is %d ms old and ages: %s", self.age_ms, error)
            await self._clock.sleep(self._period_ms)

    async def refresh(self) -> None:
        """One linearizable read. Raises ``StoreError``; what does not decode acknowledges nothing."""
        started = self._clock.mono_ms()
        grant, _ = await self._store.get(KEYS.grant(self._region))
        page = await self._store.range(KEYS.prefix("ownership"), min_mod_revision=Revision(self._read + 1))
        if page.revision < self._read:  # restored from a backup: what was read since is not true any more
            page = await self._store.range(KEYS.prefix("ownership"))
            self._owners.clear()
        for kv in page.items:
            job = JobId(kv.key.rpartition("/")[2])
            try:
                record = codec.decode(OwnershipRecord, kv.value)
            except codec.CorruptRecord as error:
                log.error("%s: %s", kv.key, error)
                self._owners.pop(job, None)
                continue
            self._owners[job] = Versioned(record, kv.mod_revision, kv.create_revision, started)
        self._read = page.revision
        try:
            self.grant = codec.decode(GrantRecord, grant.value) if grant else None
        except codec.CorruptRecord as error:
            log.error("%s: %s", KEYS.grant(self._region), error)
            self.grant = None
        self._as_of_ms = started
