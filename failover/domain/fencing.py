"""Who may run a job, who may take it over, and when a checkpoint becomes the newest one. Pure.

The order that safety rests on (rule 4.1): a renewal is acknowledged only from a view younger than S that shows no
revoke intent; an agent stops F after the *send* of its last acknowledged renewal; a taker-over waits R after it saw
the intent durably committed; R ≥ (S + F) × clock ratio. So the last acknowledgement given from a view without the
intent is at most S younger than the intent, and its agent has stopped by S + F: each on a clock of its own.

An intent may be withdrawn (``withdrawal``); a later one is another revision of the ownership, and R runs anew from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from failover.domain.gang import member_on
from gridkeeper.decision import ABSENT, Decision, Guard, Put, Versioned, guards_of
from gridkeeper.ids import Epoch, JobId, NodeId, RegionId, Revision
from gridkeeper.keys import KEYS
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import CheckpointRecord, HeadRecord, OwnershipRecord
from gridkeeper.snapshot import GlobalState
from gridkeeper.timings import Timings


@dataclass(frozen=True, slots=True)
class Refusal:
    """It can never be granted; the sentence names what was asked and what stands against it."""

    sentence: str


def may_acknowledge(
    ownership: Versioned[OwnershipRecord] | None,
    node: NodeId | str,
    epoch: Epoch,
    view_age_ms: int,
    grant_held: bool,
    timings: Timings,
) -> bool:
    """Whether a replica may acknowledge a renewal of ``epoch`` by ``node``.

    A job that is asked to stop is still acknowledged: it needs its grace period for the last checkpoint.
    """
    if ownership is None or not grant_held or not 0 <= view_age_ms < timings.stale_ms:
        return False
    record = ownership.record
    return record.epoch == epoch and record.revoke is None and member_on(record, node) is not None


def takeover_allowed(seen_ms: int, now_mono_ms: int, timings: Timings) -> bool:
    """R has passed since this process first saw the revision that carries the revoke intent."""
    return now_mono_ms - seen_ms >= timings.takeover_ms


def command_for(ownership: OwnershipRecord) -> Desired:
    """What the owner's agent is to do. A revoke intent is a stop, unless silence is its only cause: a stop is final for
    its epoch, so none is sent while the intent may be withdrawn. Safety does not rest on it: nothing is renewed under
    an intent, so the agent starts nothing and fences what runs by F."""
    revoked = ownership.revoke is not None and not ownership.revoke.withdrawable
    return Desired.STOP if revoked else ownership.desired


def epoch_refused(highest: Epoch | None, epoch: Epoch) -> bool:
    """An agent or executor refuses an epoch lower than the highest it has ever seen for the job."""
    return highest is not None and epoch < highest


def commit_head(
    *,
    job: JobId,
    epoch: Epoch,
    step: int,
    digest: str,
    size_bytes: int,
    region: RegionId,
    world: GlobalState,
    ledger_ms: int,
    suspect: bool = False,
) -> Decision | Refusal:
    """The transaction that makes a checkpoint, *already verified* in ``region``'s store, the job's newest one.

    It compares the ownership revision, so no checkpoint of an epoch that has lost the job is ever committed, and the
    head's, so the head never goes back. A ``suspect`` one is recorded but does not become the head: a job does not
    resume from it by default.
    """
    name = f"checkpoint {job} step {step} of epoch {epoch}"
    for key in (KEYS.ownership(job), KEYS.head(job)):
        if key in world.suspect_keys:
            return Refusal(f"{name}: {key} does not decode; restore it from a backup before checkpoints go on")
    if step < 0:
        return Refusal(f"{name}: step is negative; name the directory step-<n> with n ≥ 0")
    ownership, head = world.ownership.get(job), world.heads.get(job)
    if ownership is None:
        return Refusal(f"{name}: nobody owns the job")
    if ownership.record.epoch != epoch:
        return Refusal(f"{name}: the job is owned at epoch {ownership.record.epoch}")
    if head is not None and step <= head.record.step:
        return Refusal(
            f"{name}: the head is at step {head.record.step} of epoch {head.record.epoch} and never goes back"
        )
    checkpoint_key = KEYS.checkpoint(job, step)
    written = world.checkpoints.get(KEYS.checkpoint_name(job, step))
    if written is not None and written.record.epoch == epoch and written.record.digest == digest:
        return Refusal(f"{name}: recorded already, as suspect; it is not resumed from")
    record = CheckpointRecord(job, step, epoch, digest, size_bytes, region, suspect, ledger_ms)
    guards = [Guard(KEYS.ownership(job), ownership.revision)]
    writes = [Put(checkpoint_key, record, written.revision if written else ABSENT)]
    if suspect:
        guards += guards_of([(KEYS.head(job), head)])
    else:
        moved = HeadRecord(job, step, epoch, digest, size_bytes, (region,), ledger_ms)
        writes.append(Put(KEYS.head(job), moved, head.revision if head else Revision(ABSENT)))
    before = f"after step {head.record.step}" if head else "the first"
    sentence = f"{name} is verified in {region} and {'kept as suspect' if suspect else f'the newest ({before})'}"
    return Decision(
        "verify.manifest",
        sentence,
        tuple(writes),
        tuple(guards),
        subject=f"job/{job}",
        evidence=(digest,),
        audit=False,  # nor a trace: the owner's is that of the fault that brought the job here, and long over
    )
