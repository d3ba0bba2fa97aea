"""How far a region's store is behind a job's newest checkpoint. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from failover.domain.scrub import places
from gridkeeper.decision import Versioned
from gridkeeper.ids import JobId, RegionId
from gridkeeper.records.jobs import TERMINAL_JOB, CheckpointRecord
from gridkeeper.snapshot import GlobalState


@dataclass(frozen=True, slots=True)
class Lag:
    """``steps``, ``work_ms``: what a move there would lose if the other regions were gone now, from the newest
    checkpoint that was verified there; −1: none was. ``bytes``: at most so many are still to be brought."""

    job: JobId
    region: RegionId
    steps: int
    work_ms: int
    bytes: int


def lags(world: GlobalState) -> Iterator[Lag]:
    """For each job that goes on and has a checkpoint, and each region where it may run."""
    newest = world.memo.once(_newest, world.checkpoints)
    for job, head in sorted(world.heads.items()):
        record = world.jobs.get(job)
        if record is None or record.record.state in TERMINAL_JOB:
            continue
        for region in sorted(record.record.spec.regions or world.regions):
            if region in head.record.regions:
                yield Lag(job, region, 0, 0, 0)
                continue
            there = newest.get((job, region))
            if there is None:
                yield Lag(job, region, -1, -1, head.record.size_bytes)
                continue
            work_ms = max(0, head.record.committed_ms - there.committed_ms)
            yield Lag(job, region, max(0, head.record.step - there.step), work_ms, head.record.size_bytes)


def _newest(
    checkpoints: Mapping[str, Versioned[CheckpointRecord]],
) -> dict[tuple[JobId, RegionId], CheckpointRecord]:
    found: dict[tuple[JobId, RegionId], CheckpointRecord] = {}
    for versioned in checkpoints.values():
        record = versioned.record
        if record.suspect or record.expires_ms:
            continue
        for region in places(record):
            best = found.get((record.job, region))
            if best is None or best.step < record.step:
                found[record.job, region] = record
    return found
