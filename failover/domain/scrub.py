"""Which checkpoints are read again, and what follows when one is damaged. Pure.

A checkpoint was verified when it was committed or copied; disks and buckets lose bytes afterwards. Each region reads
its own again now and then, and at once what a job is about to resume from. One that is damaged here is taken from
another region that has it; if none has, the job's head goes back to the newest older checkpoint that is whole, and says
instead of which and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from failover.domain.indexes import active_migrations
from gridkeeper.decision import Decision, Draft, Versioned, guards_of
from gridkeeper.ids import JobId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.records.jobs import CheckpointRecord, HeadRecord
from gridkeeper.snapshot import GlobalState

WHY_BYTES = 300


@dataclass(frozen=True, slots=True, order=True)
class Stored:
    """One checkpoint in one region's store."""

    job: JobId
    step: int
    digest: str


@dataclass(frozen=True, slots=True)
class ScrubTask:
    """``urgent``: a job is about to resume from it, so it is read at full speed."""

    what: Stored
    urgent: bool


def places(record: CheckpointRecord) -> tuple[RegionId, ...]:
    """Where a checkpoint was verified, first where it was written; () if it is damaged everywhere."""
    return () if record.damage else (record.region, *record.regions)


def next_scrub(
    world: GlobalState, region: RegionId, read: Mapping[Stored, int], now_ms: int, every_ms: int
) -> ScrubTask | None:
    """What to read next in ``region``: the head of a job that is on its way, if it was not read since that began; then
    whatever was not read for ``every_ms``, heads first, longest unread first. ``read``: when this process last found
    each whole (ledger ms); else its commit counts."""
    active = active_migrations(world)
    due: list[tuple[tuple[int, int, Stored], bool]] = []
    for versioned in world.checkpoints.values():
        record = versioned.record
        if region not in places(record) or record.expires_ms:
            continue
        what = Stored(record.job, record.step, record.digest)
        last = read.get(what, record.committed_ms)
        head = world.heads.get(record.job)
        is_head = head is not None and (head.record.step, head.record.digest) == (record.step, record.digest)
        migration = active.get(record.job)
        if is_head and migration is not None and read.get(what, 0) < migration.record.requested_ms:
            due.append(((0, last, what), True))
        elif now_ms - last >= every_ms:
            due.append(((1 if is_head else 2, last, what), False))
    if not due:
        return None
    (_, _, what), urgent = min(due)
    return ScrubTask(what, urgent)


def older_ones(world: GlobalState, region: RegionId, damaged: Stored) -> tuple[CheckpointRecord, ...]:
    """What the job could resume from instead, in ``region``, newest first."""
    found = [
        v.record
        for v in world.checkpoints.values()
        if v.record.job == damaged.job
        and v.record.step < damaged.step
        and not v.record.suspect
        and not v.record.expires_ms
        and region in places(v.record)
    ]
    return tuple(sorted(found, key=lambda record: -record.step))


def is_last_copy(world: GlobalState, region: RegionId, damaged: Stored) -> bool:
    """It is the head, and no other region has it: the job needs another one."""
    head = world.heads.get(damaged.job)
    return (
        head is not None
        and (head.record.step, head.record.digest) == (damaged.step, damaged.digest)
        and set(head.record.regions) <= {region}
    )


def decide_damage(
    world: GlobalState, region: RegionId, damaged: Stored, why: str, instead: CheckpointRecord | None
) -> tuple[Decision, ...]:
    """``damaged`` is not whole in ``region``. ``instead``: an older one that was just verified there, wanted if
    ``is_last_copy``; None: there is none, and the head stays, so that nothing starts from scratch unasked."""
    name = KEYS.checkpoint(damaged.job, damaged.step)
    kept = world.checkpoints.get(KEYS.checkpoint_name(damaged.job, damaged.step))
    head = world.heads.get(damaged.job)
    if kept is None or kept.record.digest != damaged.digest or region not in places(kept.record):
        return ()
    last = is_last_copy(world, region, damaged)
    if last and instead is None:
        return ()
    draft = Draft()
    left = tuple(r for r in places(kept.record) if r != region)
    short = why[:WHY_BYTES]
    if left:
        draft.put(name, replace(kept.record, region=left[0], regions=left[1:]), kept)
    else:
        draft.put(name, replace(kept.record, damage=f"{region}: {short}"), kept)
    sentence = f"checkpoint {damaged.job} step {damaged.step} is damaged in {region}: {short}"
    unchanged: list[tuple[str, Versioned[Any] | None]] = []
    if head is None or (head.record.step, head.record.digest) != (damaged.step, damaged.digest):
        unchanged.append((KEYS.head(damaged.job), head))
    elif not last:
        regions = tuple(r for r in head.record.regions if r != region)
        draft.put(KEYS.head(damaged.job), replace(head.record, regions=regions), head)
        sentence += f"; {', '.join(regions)} has it whole"
    else:
        assert instead is not None
        told = f"step {damaged.step}, which is damaged in {region}: {short}"
        back = HeadRecord(
            instead.job,
            instead.step,
            instead.epoch,
            instead.digest,
            instead.size_bytes,
            tuple(sorted(places(instead), key=lambda r: r != region)),
            instead.committed_ms,
            instead=told,
        )
        draft.put(KEYS.head(damaged.job), back, head)
        sentence += f"; {damaged.job} resumes from step {instead.step} instead"
        older = KEYS.checkpoint(instead.job, instead.step)
        unchanged.append((older, world.checkpoints.get(KEYS.checkpoint_name(instead.job, instead.step))))
    unchanged.append((KEYS.grant(region), world.grants.get(region)))
    return (
        Decision(
            "verify.manifest",
            sentence,
            draft.writes(),
            guards_of(unchanged),
            f"job/{damaged.job}",
            (damaged.digest,),
        ),
    )
