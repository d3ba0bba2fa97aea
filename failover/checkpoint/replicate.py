"""Checkpoints in more than one region: which heads are brought over, and the record that they arrived."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from failover.checkpoint.pace import TokenPace
from failover.domain.indexes import LANDED, active_migrations
from failover.domain.regions import barred_from
from failover.domain.scrub import places
from gridkeeper.decision import Decision, Put, Versioned, guards_of
from gridkeeper.ids import JobId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.policy.model import PlacementPolicy, Policy
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import CheckpointError, CheckpointStore
from gridkeeper.records.jobs import TERMINAL_JOB, CheckpointRecord, GrantRecord, HeadRecord
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


DEFAULT_POLICY = Policy()


def wanted_copies(
    world: GlobalState, region: RegionId, placement: PlacementPolicy = DEFAULT_POLICY.placement
) -> tuple[CopyTask, ...]:
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
        if not barred_from(record.record.spec, region, placement):
            tasks.append(CopyTask(job, head.record.step, head.record.digest, head.record.regions, urgent))
    return tuple(sorted(tasks, key=lambda task: (not task.urgent, task.job)))


def record_copy(
    head: Versioned[HeadRecord],
    region: RegionId,
    grant: Versioned[GrantRecord] | None,
    kept: Versioned[CheckpointRecord] | None = None,
) -> Decision:
    """The head's checkpoint is verified in ``region`` too (global store). ``kept``: its record. It compares the head's
    revision, and that of the region's grant, under which its leader writes. Pure."""
    record = head.record
    changed = replace(record, regions=(*record.regions, region))
    puts = [Put(KEYS.head(record.job), changed, head.revision)]
    if kept is not None and kept.record.digest == record.digest and region not in places(kept.record):
        more = replace(kept.record, regions=(*kept.record.regions, region))
        puts.append(Put(KEYS.checkpoint(record.job, record.step), more, kept.revision))
    guards = guards_of([(KEYS.grant(region), grant)])
    sentence = f"checkpoint {record.job} step {record.step} ({record.digest[:12]}) is verified in {region} too"
    subject, evidence = f"job/{record.job}", (record.digest,)
    return Decision("migrate.precopy", sentence, tuple(puts), guards, subject, evidence, audit=False)


class Replicator:
    """Carries ``wanted_copies`` out for one region. ``stores``: every region's store, as reachable from here."""

    def __init__(self, region: RegionId, stores: Mapping[RegionId, CheckpointStore], clock: Clock) -> None:
        self._region = region
        self._clock = clock
        self._stores = stores
        self._complained: dict[JobId, str] = {}

    async def copy(self, world: GlobalState, policy: Policy = DEFAULT_POLICY) -> Sequence[Decision]:
        """Bring one checkpoint over and return the decision that records it; empty: nothing to do, or nothing that
        can be read now. One at a time, so that what a migration waits for comes first in every
        round."""
        for task in wanted_copies(world, self._region, policy.placement):
            failure = await self._bring(task, policy.checkpoints.copy_bytes_per_s)
            if failure:
                self._complain(task, failure)
                continue
            self._complained.pop(task.job, None)
            key = KEYS.checkpoint_name(task.job, task.step)
            grant = world.grants.get(self._region)
            return (record_copy(world.heads[task.job], self._region, grant, world.checkpoints.get(key)),)
        return ()

    async def _bring(self, task: CopyTask, bytes_per_s: int) -> str:
        """Why the copy could not be made; "" when it is here and verified."""
        mine = self._stores.get(self._region)
        if mine is None:
            return f"no checkpoint store is configured for region {self._region}"
        pace = None if task.urgent or not bytes_per_s else TokenPace(self._clock, bytes_per_s)
        failures: list[str] = []
        for source in task.sources:
            store = self._stores.get(source)
            if store is None:
                failures.append(f"no checkpoint store is configured for region {source}")
                continue
            try:
                moved = await mine.copy_from(store, task.job, task.step, task.digest, pace)
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
