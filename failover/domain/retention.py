"""Which checkpoints are kept, and when the bytes of the others may go. Pure.

A checkpoint that is kept no longer is *marked* by a transaction that compares the job's head and ownership; from then
on nothing resumes from it. After the grace time each region deletes its manifest and says so, the last one deletes the
record. Chunks go when no manifest names them (``failover.checkpoint.sweep``). Never marked: the head, and what the job
was started from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from failover.domain.scrub import Stored
from gridkeeper.decision import Decision, Delete, Now, Put, Versioned, guards_of
from gridkeeper.ids import Epoch, JobId, RegionId
from gridkeeper.keys import KEYS
from gridkeeper.policy.model import DAY_MS, HOUR_MS, CheckpointPolicy
from gridkeeper.records.jobs import CheckpointRecord
from gridkeeper.snapshot import GlobalState, Settings

MOST_AT_ONCE = 64
"""Records in one transaction; etcd takes 128 operations."""


def kept_steps(records: Sequence[CheckpointRecord], policy: CheckpointPolicy, now_ms: int) -> frozenset[int]:
    """Of one job: the newest ``keep_last``; the newest of each of the ``keep_hourly`` newest hours and ``keep_daily``
    newest days (UTC) in which there is one. Suspect and damaged ones do not count; they are kept for
    ``keep_doubtful_ms``, for whoever looks into the fault."""
    sound = sorted((r for r in records if not r.suspect and not r.damage), key=lambda r: -r.step)
    kept = {r.step for r in sound[: policy.keep_last]}
    for width_ms, most in ((HOUR_MS, policy.keep_hourly), (DAY_MS, policy.keep_daily)):
        newest: dict[int, int] = {}
        for record in sound:
            newest.setdefault(record.committed_ms // width_ms, record.step)
        kept |= {newest[slot] for slot in sorted(newest, reverse=True)[:most]}
    doubtful = (r for r in records if r.suspect or r.damage)
    return frozenset(kept | {r.step for r in doubtful if now_ms - r.committed_ms < policy.keep_doubtful_ms})


def decide_retention(world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """Marks of what is kept no longer, one decision per job."""
    policy, now_ms = settings.policy.checkpoints, now.ledger_ms
    made: list[Decision] = []
    for job, records in world.memo.once(_by_job, world.checkpoints).items():
        if len(records) <= policy.keep_last and not any(v.record.suspect or v.record.damage for v in records):
            continue
        if KEYS.head(job) in world.suspect_keys or KEYS.ownership(job) in world.suspect_keys:
            continue
        head, owner = world.heads.get(job), world.ownership.get(job)
        kept = kept_steps([v.record for v in records if not v.record.expires_ms], policy, now_ms)
        pinned = {head.record.step if head else -1, owner.record.resume_step if owner else -1}
        over = [v for v in records if not v.record.expires_ms and v.record.step not in kept | pinned][:MOST_AT_ONCE]
        if not over or head is None:
            continue
        puts = tuple(
            Put(KEYS.checkpoint(job, v.record.step), replace(v.record, expires_ms=now_ms + policy.grace_ms), v.revision)
            for v in over
        )
        steps = ", ".join(str(v.record.step) for v in over)
        sentence = f"checkpoints {steps} of {job} are kept no longer; their bytes go in {policy.grace_ms // 60_000} min"
        guards = guards_of([(KEYS.head(job), head), (KEYS.ownership(job), owner)])
        made.append(Decision("checkpoint.expire", sentence, puts, guards, f"job/{job}", audit=False))
    return tuple(made)


def _by_job(
    checkpoints: Mapping[str, Versioned[CheckpointRecord]],
) -> dict[JobId, list[Versioned[CheckpointRecord]]]:
    found: dict[JobId, list[Versioned[CheckpointRecord]]] = {}
    for versioned in checkpoints.values():
        found.setdefault(versioned.record.job, []).append(versioned)
    return found


def spots(record: CheckpointRecord) -> tuple[RegionId, ...]:
    """Where bytes of it may be, whole or not."""
    return (record.region, *record.regions)


def due_removal(world: GlobalState, region: RegionId, now_ms: int) -> Stored | None:
    """A checkpoint whose manifest ``region`` is to delete now."""
    for versioned in world.checkpoints.values():
        record = versioned.record
        if record.expires_ms and record.expires_ms <= now_ms and region in spots(record):
            head = world.heads.get(record.job)
            if head is None or head.record.digest != record.digest:
                return Stored(record.job, record.step, record.digest)
    return None


def decide_removed(world: GlobalState, region: RegionId, what: Stored) -> tuple[Decision, ...]:
    """``region`` has deleted its manifest; the last one to do so deletes the record."""
    key = KEYS.checkpoint(what.job, what.step)
    kept = world.checkpoints.get(KEYS.checkpoint_name(what.job, what.step))
    if kept is None or kept.record.digest != what.digest or region not in spots(kept.record):
        return ()
    left = tuple(r for r in spots(kept.record) if r != region)
    write: Put | Delete
    if left:
        write = Put(key, replace(kept.record, region=left[0], regions=left[1:]), kept.revision)
    else:
        write = Delete(key, kept.revision)
    guards = guards_of([(KEYS.grant(region), world.grants.get(region))])
    sentence = f"checkpoint {what.job} step {what.step} is deleted in {region}"
    return (Decision("checkpoint.delete", sentence, (write,), guards, f"job/{what.job}", (what.digest,), audit=False),)


def is_orphan(world: GlobalState, what: Stored, epoch: Epoch) -> bool:
    """No record names this manifest of ``epoch``, and none ever will: the epoch is over, and a commit compares the
    ownership. What is not known for sure (no ownership, records that do not decode) is no orphan."""
    key = KEYS.checkpoint(what.job, what.step)
    owner = world.ownership.get(what.job)
    if owner is None or {key, KEYS.ownership(what.job), KEYS.head(what.job)} & world.suspect_keys:
        return False
    kept = world.checkpoints.get(KEYS.checkpoint_name(what.job, what.step))
    head = world.heads.get(what.job)
    named = (kept is not None and kept.record.digest == what.digest) or (
        head is not None and head.record.digest == what.digest
    )
    return not named and world.fresh and epoch < owner.record.epoch
