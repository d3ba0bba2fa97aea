"""Checkpoints in more than one region: which heads are brought over, and the record that they arrived."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from failover.checkpoint.pace import TokenPace
from failover.domain.grants import grant_guard
from failover.domain.indexes import LANDED, active_migrations
from failover.domain.regions import barred_from
from failover.domain.scrub import places
from failover.domain.turns import link_policy
from gridkeeper.decision import Decision, Now, Put, Versioned, guards_of
from gridkeeper.ids import JobId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.policy.model import PlacementPolicy, Policy
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import CheckpointError, CheckpointStore
from gridkeeper.records.jobs import (
    TERMINAL_JOB,
    CheckpointRecord,
    CopyProgress,
    GrantRecord,
    HeadRecord,
    MigrationState,
)
from gridkeeper.snapshot import GlobalState

log = logging.getLogger("gridkeeper.checkpoint")


COPIES = frozenset({MigrationState.PRE_COPYING, MigrationState.SOURCE_FENCED, MigrationState.COPYING})
"""States of a migration that waits for a copy."""


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


@dataclass(frozen=True, slots=True)
class Copying:
    """A copy that is under way. ``began_ms``: on the boot-time clock."""

    task: CopyTask
    source: RegionId
    began_ms: int
    here: int = 0
    total: int = 0


def record_progress(world: GlobalState, region: RegionId, copying: Copying, now: Now) -> Decision | None:
    """How far the copy is that a migration to ``region`` waits for, on its record (global store), if it has come on.
    Pure."""
    migration, grant = active_migrations(world).get(copying.task.job), grant_guard(world, region)
    if migration is None or grant is None or not copying.total:
        return None
    record = migration.record
    if record.target_region != region or record.state not in COPIES:
        return None
    if record.copy is not None and (record.copy.step, record.copy.bytes_here) == (copying.task.step, copying.here):
        return None
    spent, left = max(1, now.mono_ms - copying.began_ms), copying.total - copying.here
    before = record.copy if record.copy is not None and record.copy.step == copying.task.step else None
    lately = max(0, copying.here - before.bytes_here) if before else copying.here
    since = max(1, now.ledger_ms - before.seen_ms) if before else spent
    progress = CopyProgress(
        step=copying.task.step,
        source=copying.source,
        bytes_total=copying.total,
        bytes_here=copying.here,
        began_ms=now.ledger_ms - spent,
        seen_ms=now.ledger_ms,
        eta_ms=left * since // lately if lately else -1,
    )
    put = Put(KEYS.migration(record.id), replace(record, copy=progress), migration.revision)
    sentence = f"checkpoint step {progress.step} of {record.job}: {progress.bytes_here} of {progress.bytes_total} bytes"
    name = f"migration/{record.id}"
    return Decision("migrate.precopy", sentence, (put,), (grant,), name, (), record.trace, audit=False)


class Replicator:
    """Carries ``wanted_copies`` out for one region. ``stores``: every region's store, as reachable from here."""

    def __init__(self, region: RegionId, stores: Mapping[RegionId, CheckpointStore], clock: Clock) -> None:
        self._region = region
        self._clock = clock
        self._stores = stores
        self._complained: dict[JobId, str] = {}
        self._paces: dict[RegionId, tuple[int, TokenPace]] = {}
        self.copying: Copying | None = None
        """What is under way now."""

    async def copy(self, world: GlobalState, policy: Policy = DEFAULT_POLICY) -> Sequence[Decision]:
        """Bring one checkpoint over and return the decision that records it; empty: nothing to do, or nothing that
        can be read now. One at a time, so that what a migration waits for comes first in every
        round."""
        for task in wanted_copies(world, self._region, policy.placement):
            try:
                failure = await self._bring(task, policy)
            finally:
                self.copying = None
            if failure:
                self._complain(task, failure)
                continue
            self._complained.pop(task.job, None)
            key = KEYS.checkpoint_name(task.job, task.step)
            grant = world.grants.get(self._region)
            return (record_copy(world.heads[task.job], self._region, grant, world.checkpoints.get(key)),)
        return ()

    async def _bring(self, task: CopyTask, policy: Policy) -> str:
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
            self.copying = began = Copying(task, source, self._clock.mono_ms())

            def told(here: int, total: int, began: Copying = began) -> None:
                self.copying = replace(began, here=here, total=total)

            pace = self._pace(task, source, policy)
            try:
                moved = await mine.copy_from(store, task.job, task.step, task.digest, pace, told)
            except CheckpointError as error:
                failures.append(f"from {source}: {error}")
                continue
            log.info("checkpoint %s step %d came from %s, %d bytes moved", task.job, task.step, source, moved)
            return ""
        return "; ".join(failures)

    def _pace(self, task: CopyTask, source: RegionId, policy: Policy) -> TokenPace | None:
        """The link's limit holds for all copies over it, that of copies ahead of any need for those alone."""
        link = link_policy(policy.moves, source, self._region).bytes_per_s
        ahead = 0 if task.urgent else policy.checkpoints.copy_bytes_per_s
        limit = min(filter(None, (link, ahead)), default=0)
        if not limit:
            return None
        before = self._paces.get(source)
        if before is None or before[0] != limit:
            before = self._paces[source] = (limit, TokenPace(self._clock, limit))
        return before[1]

    def _complain(self, task: CopyTask, failure: str) -> None:
        """Once per reason: the loop tries again all the time."""
        if self._complained.get(task.job) != failure:
            self._complained[task.job] = failure
            log.warning("checkpoint %s step %d does not reach %s: %s", task.job, task.step, self._region, failure)
