"""Deletes in a region's store what is kept no longer, and the chunks that nothing names."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from failover.domain.retention import decide_removed, due_removal, is_orphan
from failover.domain.scrub import Stored
from gridkeeper.decision import Decision
from gridkeeper.ids import RegionId
from gridkeeper.policy.model import CheckpointPolicy
from gridkeeper.ports.jobs import CheckpointError, CheckpointStore, Manifest
from gridkeeper.snapshot import GlobalState

log = logging.getLogger("gridkeeper.checkpoint")


class Collector:
    """For one region. ``store``: None if it has none configured. The first sweep comes ``sweep_every_ms`` after the
    start."""

    def __init__(self, region: RegionId, store: CheckpointStore | None) -> None:
        self._region = region
        self._store = store
        self._swept_ms: int | None = None
        self._complained = ""

    async def look(self, world: GlobalState, policy: CheckpointPolicy, now_ms: int) -> Sequence[Decision]:
        """Delete one manifest that is due, or sweep if it is time. ``now_ms``: ledger time."""
        if self._store is None or not world.fresh:
            return ()
        due = due_removal(world, self._region, now_ms)
        try:
            if due is not None:
                await self._store.remove(due.job, due.step, due.digest)
                return decide_removed(world, self._region, due)
            if self._swept_ms is None:
                self._swept_ms = now_ms
            elif now_ms - self._swept_ms >= policy.sweep_every_ms:
                self._swept_ms = now_ms
                await self._sweep(self._store, world)
            self._complained = ""
        except CheckpointError as error:
            if str(error) != self._complained:
                self._complained = str(error)
                log.warning("checkpoints of %s are not deleted now: %s", self._region, error)
        return ()

    async def _sweep(self, store: CheckpointStore, world: GlobalState) -> None:
        def orphan(manifest: Manifest, digest: str) -> bool:
            return is_orphan(world, Stored(manifest.job, manifest.step, digest), manifest.epoch)

        swept = await store.sweep(orphan)
        log.info(
            "%d manifests and %d chunks that nothing names are deleted in %s, %d bytes",
            swept.manifests, swept.chunks, self._region, swept.bytes,
        )  # fmt: skip
