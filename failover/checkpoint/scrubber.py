"""Reads the checkpoints of a region again, slowly, and hands in what is damaged."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from failover.checkpoint.pace import TokenPace
from failover.domain.scrub import Stored, decide_damage, is_last_copy, next_scrub, older_ones
from gridkeeper.decision import Decision
from gridkeeper.ids import RegionId
from gridkeeper.policy.model import CheckpointPolicy
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import CheckpointDamaged, CheckpointError, CheckpointStore
from gridkeeper.records.jobs import CheckpointRecord
from gridkeeper.snapshot import GlobalState

log = logging.getLogger("gridkeeper.checkpoint")


class Scrubber:
    """For one region. ``store``: None if it has none configured."""

    def __init__(self, region: RegionId, store: CheckpointStore | None, clock: Clock) -> None:
        self._region = region
        self._store = store
        self._clock = clock
        self._read: dict[Stored, int] = {}
        self._complained = ""

    async def look(self, world: GlobalState, policy: CheckpointPolicy, now_ms: int) -> Sequence[Decision]:
        """Read the one that is due, if any. ``now_ms``: ledger time."""
        if self._store is None:
            return ()
        task = next_scrub(world, self._region, self._read, now_ms, policy.scrub_every_ms)
        if task is None:
            self._forget(world)
            return ()
        what = task.what
        pace = None if task.urgent else TokenPace(self._clock, policy.scrub_bytes_per_s)
        try:
            await self._store.verify(what.job, what.step, what.digest, pace)
        except CheckpointDamaged as error:
            return await self._damaged(world, what, str(error), now_ms)
        except CheckpointError as error:
            self._complain(f"checkpoints of {self._region} cannot be read again now: {error}")
            return ()
        self._complained = ""
        self._read[what] = now_ms
        return ()

    async def _damaged(self, world: GlobalState, what: Stored, why: str, now_ms: int) -> Sequence[Decision]:
        instead: CheckpointRecord | None = None
        if is_last_copy(world, self._region, what):
            instead = await self._whole(older_ones(world, self._region, what))
            if instead is None:
                self._read[what] = now_ms  # looked at again when it is due, or when another migration begins
                self._complain(f"{why}; no older checkpoint of {what.job} is whole in {self._region} either")
        return decide_damage(world, self._region, what, why, instead)

    async def _whole(self, candidates: Sequence[CheckpointRecord]) -> CheckpointRecord | None:
        """The first that can be read from end to end."""
        assert self._store is not None
        for record in candidates:
            try:
                await self._store.verify(record.job, record.step, record.digest)
            except CheckpointError as error:
                log.warning("Not resumed from either: %s", error)
            else:
                return record
        return None

    def _complain(self, failure: str) -> None:
        if failure != self._complained:
            self._complained = failure
            log.error("%s", failure)

    def _forget(self, world: GlobalState) -> None:
        kept = {Stored(v.record.job, v.record.step, v.record.digest) for v in world.checkpoints.values()}
        self._read = {what: at for what, at in self._read.items() if what in kept}
