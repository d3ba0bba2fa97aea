"""A store's records in memory, kept current by one watch: what decisions and the API read.

One mirror per store and process. History (audit, ledger entries, adjustments, cursors) is left in the store and read
from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from gridkeeper import codec, keys
from gridkeeper.decision import Versioned
from gridkeeper.ids import Revision
from gridkeeper.memo import Journal, Memo, Published
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.store import KeyValue, Store, StoreError, WatchBatch
from gridkeeper.records.jobs import only_progress

log = logging.getLogger("gridkeeper.mirror")

HISTORY = frozenset({"audit", "entries", "cursors", "adjustments"})
STALE_AFTER_MS = 3_000
"""Three missed signs of progress (one a second): from here the mirror is not fresh."""


Changed = Mapping[str, Collection[str]]
"""Kind -> names of what was written or deleted."""


class Mirror:
    """``root`` is a region's root or the global one; kinds are the first path element under it."""

    def __init__(self, store: Store, root: str, clock: Clock) -> None:
        self._store = store
        self._root = root
        self._clock = clock
        self._kinds: dict[str, dict[str, Versioned[Any]]] = {}
        self._published: dict[str, Published[str, Versioned[Any]]] = {}
        self._journals: dict[str, Journal[str]] = {}
        self._unpublished: dict[str, set[str]] = {}
        self._suspect: dict[str, Revision] = {}
        self._shown: frozenset[str] = frozenset()
        self._heard_ms = -STALE_AFTER_MS
        self._moved = asyncio.Event()
        self._stirred = asyncio.Event()
        self._calm = True
        self.stirs = 0
        """Batches so far that changed more than how far jobs have come (``wait_stirred``)."""
        self._awaiting: list[tuple[int, int, asyncio.Future[None]]] = []  # revision, number, who waits for it
        self._awaited = 0
        self._listeners: list[tuple[frozenset[str], Callable[[Changed], None]]] = []
        self._changed: dict[str, set[str]] = {}
        self.revision = Revision(0)
        self.version = 0
        self.memo = Memo()

    async def run(self) -> None:
        """Load, then follow for ever. A store that is away is waited for."""
        while True:
            try:
                page = await self._store.range(self._root)
            except StoreError as error:
                log.warning("%s cannot be read yet: %s", self._root, error)
                await self._clock.sleep(500)
                continue
            self._reset(page.items)
            self._advance(page.revision, changed=True)
            try:
                async with contextlib.aclosing(self._store.watch(self._root, Revision(page.revision + 1))) as batches:
                    async for batch in batches:
                        self._take(batch)
            except StoreError as error:
                log.error("%s cannot be followed, and is read anew: %s", self._root, error)
                await self._clock.sleep(500)

    def _take(self, batch: WatchBatch) -> None:
        if batch.reset:
            self._reset([c.kv for c in batch.changes if not c.deleted])
        else:
            for change in batch.changes:
                if change.deleted:
                    self._drop(change.kv.key)
                else:
                    self._keep(change.kv)
        self._advance(batch.revision, changed=bool(batch.changes) or batch.reset)

    def _advance(self, revision: Revision, changed: bool) -> None:
        self._heard_ms = self._clock.mono_ms()
        if revision > self.revision:
            self.revision = revision
        if changed:
            self.version += 1
            self._tell()
        while self._awaiting and (self._awaiting[0][0] <= self.revision or self._awaiting[0][2].done()):
            _, _, there = heapq.heappop(self._awaiting)
            if not there.done():
                there.set_result(None)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        if not self._calm:
            self._calm = True
            self.stirs += 1
            stirred, self._stirred = self._stirred, asyncio.Event()
            stirred.set()

    def listen(self, kinds: Collection[str], heard: Callable[[Changed], None]) -> None:
        """Call ``heard`` with what has changed in these kinds, after each batch: once now with all that is there. It
        must not raise, and returns at once."""
        self._listeners.append((frozenset(kinds), heard))
        heard({kind: tuple(self._kinds.get(kind, {})) for kind in kinds})

    def _tell(self) -> None:
        changed, self._changed = self._changed, {}
        for kinds, heard in self._listeners:
            mine = {kind: changed[kind] for kind in kinds if kind in changed}
            if mine:
                heard(mine)

    def _reset(self, items: Iterable[KeyValue]) -> None:
        before = self._kinds
        for kind, held in before.items():
            self._changed.setdefault(kind, set()).update(held)
            self._unpublished.setdefault(kind, set()).update(held)
        self._kinds, self._calm = {kind: {} for kind in before}, False
        self._suspect.clear()
        for kv in items:
            kind, _ = self._split(kv.key)
            old = before.get(kind, {}).get(self._split(kv.key)[1])
            self._keep(kv, old)

    def _split(self, key: str) -> tuple[str, str]:
        kind, _, rest = key[len(self._root) :].partition("/")
        return kind, rest

    def _keep(self, kv: KeyValue, old: Versioned[Any] | None = None) -> None:
        kind, name = self._split(kv.key)
        record = keys.kind_of(kv.key)
        if record is None or kind in HISTORY:
            return
        held = self._kinds.setdefault(kind, {})
        self._note(kind, name)
        try:
            value: Any = codec.decode(record, kv.value)
        except codec.CorruptRecord as error:
            # What it stood for is unknown: it leaves the mirror, and decisions see its key as suspect.
            log.error("%s holds no valid %s: %s", kv.key, record.__name__, error)
            self._suspect[kv.key] = kv.mod_revision
            self._calm = False
            held.pop(name, None)
            return
        self._suspect.pop(kv.key, None)
        # A store that was restored from a backup may hold something else at that revision, which is seen only now.
        same = old is not None and old.revision == kv.mod_revision and old.record == value
        seen = old.seen_ms if old and same else self._clock.mono_ms()
        if self._calm:
            known = held.get(name)
            self._calm = kind == "runs" and known is not None and only_progress(known.record, value)
        held[name] = Versioned(value, kv.mod_revision, kv.create_revision, seen)

    def _drop(self, key: str) -> None:
        kind, name = self._split(key)
        self._suspect.pop(key, None)
        self._calm = False
        if self._kinds.get(kind, {}).pop(name, None) is not None:
            self._note(kind, name)

    def _note(self, kind: str, name: str) -> None:
        self._changed.setdefault(kind, set()).add(name)
        self._unpublished.setdefault(kind, set()).add(name)

    @property
    def loaded(self) -> bool:
        """The first complete read is in."""
        return self.revision > 0

    @property
    def fresh(self) -> bool:
        """The store has been heard within ``STALE_AFTER_MS``."""
        return self.loaded and self._clock.mono_ms() - self._heard_ms <= STALE_AFTER_MS

    @property
    def suspect(self) -> frozenset[str]:
        if self._shown != self._suspect.keys():
            self._shown = frozenset(self._suspect)
        return self._shown

    def torn(self, kind: str) -> dict[str, Revision]:
        """Names of one kind whose records do not decode, and under which revision they stand."""
        found = ((self._split(key), revision) for key, revision in self._suspect.items())
        return {name: revision for (of, name), revision in found if of == kind}

    def kind(self, kind: str) -> Mapping[str, Versioned[Any]]:
        """Name -> record of one kind, as a mapping that never changes once handed out."""
        if kind in self._unpublished or kind not in self._published:
            changed = frozenset(self._unpublished.pop(kind, ()))
            journal = self._journals.setdefault(kind, Journal())
            self._published[kind] = Published(self._kinds.get(kind, {}), journal, changed)
        return self._published[kind]

    def newest(self, kind: str, name: str) -> Versioned[Any] | None:
        """One record, without handing out the kind."""
        return self._kinds.get(kind, {}).get(name)

    def one(self, kind: str) -> Versioned[Any] | None:
        """The single record of a kind that has no name (``leader``, ``detector``, ``meta``)."""
        return self.kind(kind).get("")

    async def wait_loaded(self) -> None:
        while not self.loaded:
            await self._moved.wait()

    async def wait_revision(self, revision: int, timeout_ms: int) -> bool:
        """Wait until everything up to ``revision`` is in. False: the time was up."""
        if self.revision >= revision:
            return True
        self._awaited += 1
        there: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (revision, self._awaited, there)
        heapq.heappush(self._awaiting, entry)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await there
        except TimeoutError:
            return self.revision >= revision
        return True

    async def catch_up(self, timeout_ms: int) -> bool:
        """Wait until all that the store held when this was called is in: it is asked by quorum. False: the time was up.
        Raises the store's errors."""
        _, revision = await self._store.get(self._root + "meta")
        return await self.wait_revision(revision, timeout_ms)

    async def wait_moved(self, timeout_ms: int) -> bool:
        """Wait for the next batch of any kind. False: the time was up."""
        return await self._wait(self._moved, timeout_ms)

    async def wait_stirred(self, timeout_ms: int) -> bool:
        """Wait for the next batch that changes more than how far jobs have come: hundreds of them tell of a step each
        second, and nothing that is decided at once rests on it. False: the time was up."""
        return await self._wait(self._stirred, timeout_ms)

    @staticmethod
    async def _wait(event: asyncio.Event, timeout_ms: int) -> bool:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await event.wait()
        except TimeoutError:
            return False
        return True
