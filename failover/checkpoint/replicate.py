"""Checkpoints in more than one region: which heads are brought over, and the record that they arrived."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from failover.domain.indexes import LANDED, active_migrations
from gridkeeper.decision import Decision, Put, Versioned, guards_of
from gridkeeper.ids import JobId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.ports.jobs import CheckpointError, CheckpointStore
from gridkeeper.records.jobs import TERMINAL_JOB, GrantRecord, HeadRecord
from gridkeeper.snapshot import GlobalState

log = logging.getLogger("gridkeeper.checkpoint")


@dataclass(frozen=True, slots=True)
class CopyTask:
    """Bring the newest checkpoint of ``job`` to a region from one of ``sources``. ``urgent``: a migration waits."""

    job: JobId
    step: int
    digest: str
    sources: tuple[RegionId, ...]
    urgent: bool


def wanted_copies(world: GlobalState, region: RegionId) -> tuple[CopyTask, ...]:
    """The heads that ``region`` should hold and does not: of jobs that are moving here, first; then, as a standby, of
    jobs that may run here. Only the newest checkpoint of each, and none of jobs that have ended. Pure."""
    active = active_migrations(world)
    tasks: list[CopyTask] = []
    for job, head in sorted(world.heads.items()):
        record = world.jobs.get(job)
        if record is None or record.record.state in TERMINAL_JOB or region in head.record.regions:
            continue
        migration = active.get(job)
        urgent = (
            migration is not None and migration.record.target_region == region and migration.record.state not in LANDED
        )
        allowed = not record.record.spec.regions or region in record.record.spec.regions
        if urgent or allowed:
            tasks.append(CopyTask(job, head.record.step, head.record.digest, head.record.regions, urgent))
    return tuple(sorted(tasks, key=lambda task: (not task.urgent, task.job)))


def record_copy(head: Versioned[HeadRecord], region: RegionId, grant: Versioned[GrantRecord] | None) -> Decision:
    """The head's checkpoint is verified in ``region`` too (global store). It compares the head's revision, and the
    revision of the region's grant, under which its leader writes. Pure."""
    record = head.record
    changed = replace(record, regions=(*record.regions, region))
    put = Put(KEYS.head(record.job), changed, head.revision)
    guards = guards_of([(KEYS.grant(region), grant)])
    sentence = f"checkpoint {record.job} step {record.step} ({record.digest[:12]}) is verified in {region} too"
    return Decision("migrate.precopy", sentence, (put,), guards, f"job/{record.job}", (record.digest,), audit=False)


class Replicator:
    """Carries ``wanted_copies`` out for one region. ``stores``: every region's store, as reachable from here."""

    def __init__(self, region: RegionId, stores: Mapping[RegionId, CheckpointStore]) -> None:
        self._region = region
        self._stores = stores
        self._complained: dict[JobId, str] = {}

    async def copy(self, world: GlobalState) -> Sequence[Decision]:
        """Bring one checkpoint over and return the decision that records it; empty: nothing to do, or nothing that
        can be read now. One at a time, so that what a migration waits for comes first in every round."""
        for task in wanted_copies(world, self._region):
            failure = await self._bring(task)
            if failure:
                self._complain(task, failure)
                continue
            self._complained.pop(task.job, None)
            return (record_copy(world.heads[task.job], self._region, world.grants.get(self._region)),)
        return ()

    async def _bring(self, task: CopyTask) -> str:
        """Why the copy could not be made; "" when it is here and verified."""
        mine = self._stores.get(self._region)
        if mine is None:
            return f"no checkpoint store is configured for region {self._region}"
        failures: list[str] = []
        for source in task.sources:
            store = self._stores.get(source)
            if store is None:
                failures.append(f"no checkpoint store is configured for region {source}")
                continue
            try:
                moved = await mine.copy_from(store, task.job, task.step, task.digest)
            except CheckpointError as error:
                failures.append(f"from {source}: {error}")
                continue
            log.info("checkpoint %s step %d came from %s, %d bytes moved", task.job, task.step, source, moved)
            return ""
        return "; ".join(failures)

    def _complain(self, task: CopyTask, failure: str) -> None:
        """Once per reason: the loop tries again all the time."""
        if self._complained.get(task.job) != failure:
            self._complained[task.job] = failure
            log.warning("checkpoint %s step %d does not reach %s: %s", task.job, task.step, self._region, failure)
