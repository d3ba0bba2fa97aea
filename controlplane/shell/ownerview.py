"""A replica's own linearizable view of ownership: what it may acknowledge renewals from.

The mirror follows a watch and may lag; this view is read from the store's quorum, dated by when the read *started*, so
its age is an upper bound of how old the truth in it can be. While the store is away, the view is as good as new if
every region promises that nobody decides beyond it (``promises``); it is dated then by when they were asked.
"""

from __future__ import annotations

import logging

from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.ids import Extent, JobId, RegionId, Revision
from gridkeeper.keys import KEYS
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import KeyValue, Store, StoreError
from gridkeeper.records.books import MetaRecord
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
        self._generation = 0
        self._grants: dict[RegionId, GrantRecord | None] = {}
        self._as_of_ms: int | None = None
        self._promised_ms: int | None = None

    @property
    def age_ms(self) -> int:
        """How old the view may be; ``NEVER_MS`` before the first read."""
        as_of = max((at for at in (self._as_of_ms, self._promised_ms) if at is not None), default=None)
        return NEVER_MS if as_of is None else self._clock.mono_ms() - as_of

    @property
    def read_age_ms(self) -> int:
        """The same, promises apart."""
        return NEVER_MS if self._as_of_ms is None else self._clock.mono_ms() - self._as_of_ms

    @property
    def extent(self) -> Extent | None:
        """Everything of the global store that matters here, up to this, is in the view; None before the first read."""
        return None if self._as_of_ms is None else Extent(self._generation, int(self._read))

    @property
    def grant(self) -> GrantRecord | None:
        """Of the replica's own region; None also if it does not decode."""
        return self._grants.get(self._region)

    def others(self) -> dict[RegionId, GrantRecord | None]:
        """The other regions' grants; None for one that does not decode."""
        return {region: grant for region, grant in self._grants.items() if region != self._region}

    def promised(self, extent: Extent, asked_ms: int) -> None:
        """Every region has promised who has seen up to ``extent``; the first was asked at ``asked_ms``."""
        if self.extent is not None and self.extent >= extent:
            self._promised_ms = max(asked_ms, self._promised_ms or asked_ms)

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
        """A linearizable read of each. Raises ``StoreError``; what does not decode acknowledges nothing. The order
        matters: what is read later than the owners may be newer than the extent that they stand for, never older."""
        started = self._clock.mono_ms()
        meta, _ = await self._store.get(KEYS.meta)
        generation = _generation(meta)
        page = await self._store.range(KEYS.prefix("ownership"), min_mod_revision=Revision(self._read + 1))
        if page.revision < self._read or generation != self._generation:
            # Restored from a backup: what was read since it was made is not true any more, and what was written since
            # the restore may stand at revisions that were read in the other history.
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
        grants = await self._store.range(KEYS.prefix("grants"))
        self._generation, self._read = generation, page.revision
        self._grants = {RegionId(kv.key.rpartition("/")[2]): _grant(kv) for kv in grants.items}
        self._as_of_ms = started


def _generation(meta: KeyValue | None) -> int:
    """0, below every fence, if it does not decode: then nobody promises anything."""
    try:
        return codec.decode(MetaRecord, meta.value).generation if meta else 1
    except codec.CorruptRecord as error:
        log.error("%s: %s", KEYS.meta, error)
        return 0


def _grant(kv: KeyValue) -> GrantRecord | None:
    try:
        return codec.decode(GrantRecord, kv.value)
    except codec.CorruptRecord as error:
        log.error("%s: %s", kv.key, error)
        return None
