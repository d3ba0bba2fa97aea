"""A watch on the simulated store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gridkeeper.ids import Revision
from gridkeeper.ports.store import Change, RevisionCompacted, WatchBatch

if TYPE_CHECKING:
    from chaos.simulate.store import SimCluster, SimStore


class SimWatch:
    """A watch: what changed, some drawn time later, revisions whole and in order; progress when nothing did."""

    def __init__(self, cluster: SimCluster, store: SimStore, prefix: str, start: Revision) -> None:
        self._cluster = cluster
        self._store = store
        self._prefix = prefix
        self._next = max(1, int(start))
        self._due_ms = cluster.clock.mono_ms() + cluster.settings.progress_ms
        self._wake = asyncio.Event()
        self._closed = False

    def __aiter__(self) -> SimWatch:
        return self

    async def __anext__(self) -> WatchBatch:
        clock, settings = self._cluster.clock, self._cluster.settings
        while not self._closed:
            if not self._store.partitioned:
                if self._pending():
                    await clock.sleep(round(self._cluster.rng.uniform(*settings.watch_delay_ms)))
                    batch = None if self._closed or self._store.partitioned else self._take()
                    if batch is not None:
                        return batch
                    continue
                if clock.mono_ms() >= self._due_ms:
                    return self._deliver((), self._cluster.mvcc.revision)
            self._wake.clear()
            await self._wait(max(1, self._due_ms - clock.mono_ms()))
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End it; a waiting ``__anext__`` ends too. Idempotent."""
        self._closed = True
        self._store.forget(self)
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    async def _wait(self, most_ms: int) -> None:
        if self._store.partitioned:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(most_ms / 1_000):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _pending(self) -> bool:
        """Something to deliver. Revisions that changed nothing under the prefix are passed over."""
        mvcc = self._cluster.mvcc
        if self._next > mvcc.revision:
            return False
        try:
            if mvcc.changes_since(self._prefix, self._next):
                return True
        except RevisionCompacted:
            return True
        self._next = mvcc.revision + 1
        return False

    def _take(self) -> WatchBatch:
        mvcc = self._cluster.mvcc
        try:
            changes = mvcc.changes_since(self._prefix, self._next)
        except RevisionCompacted:
            page = mvcc.range(self._prefix)
            return self._deliver(tuple(Change(kv, deleted=False) for kv in page.items), mvcc.revision, reset=True)
        return self._deliver(changes, mvcc.revision)

    def _deliver(self, changes: tuple[Change, ...], revision: int, *, reset: bool = False) -> WatchBatch:
        self._next = max(self._next, revision + 1)
        self._due_ms = self._cluster.clock.mono_ms() + self._cluster.settings.progress_ms
        return WatchBatch(changes, Revision(revision), reset)
