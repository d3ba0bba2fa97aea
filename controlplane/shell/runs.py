"""From an agent's report of a workload to the durable record of that run. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from failover.domain.gang import folded, nodes_of, unheard
from gridkeeper.ids import Epoch, JobId, NodeId, RegionId
from gridkeeper.records.jobs import MemberRun, OwnershipRecord, RunPhase, RunRecord, only_progress
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import Workload, WorkloadReport

STEP_EVERY_MS = 2_000
STEPS_PER_S = 300
"""A run that only made progress is rewritten at most once per ``STEP_EVERY_MS``, and all runs of a replica's streams
together at most so often: etcd holds facts, not telemetry. With 3,000 streams a job's step is still known soon
enough to witness, by default, that a silent node lives (``Timings.unreachable_ms``)."""
MAX_REASON = 512
MAX_AGE_MS = 366 * 24 * 3600 * 1000
"""Ages beyond this are of no honest agent; cut, they still make a date that everybody can show."""


class BadWorkload(ValueError):
    """A report that no honest agent sends; the message names the field, the value and the remedy."""


def epoch_of(message: records_pb2.Epoch) -> Epoch:
    return Epoch(int(message.generation), int(message.number))


def epoch_message(epoch: Epoch) -> records_pb2.Epoch:
    return records_pb2.Epoch(generation=epoch.generation, number=epoch.number)


def phase_of(workload: Workload) -> RunPhase:
    """The reported phase. An exit counts only when the whole tree is gone and the last checkpoint is announced: until
    then the run is still stopping. Raises ``BadWorkload``."""
    name = records_pb2.RunPhase.Name(workload.phase) if workload.phase in records_pb2.RunPhase.values() else ""
    try:
        phase = RunPhase[name.removeprefix("RUN_PHASE_")]
    except KeyError:
        raise BadWorkload(f"workload.phase: {workload.phase} is unknown to this version; upgrade it first") from None
    if phase is RunPhase.EXITED and (workload.storing_checkpoint or not workload.stop_confirmed):
        return RunPhase.STOPPING
    return phase


def has_begun(run: RunRecord, rank: int) -> bool:
    """A process of that epoch was seen; of a gang: of that member."""
    of: RunRecord | MemberRun = run.members[rank] if run.members else run
    return of.first_step >= 0 or of.phase in (RunPhase.RUNNING, RunPhase.STOPPING)


def has_ended(run: RunRecord, rank: int) -> bool:
    """Its end is on record; of a gang: that member's."""
    if run.members:
        return rank >= 0 and run.members[rank].phase is RunPhase.EXITED
    return run.phase is RunPhase.EXITED


def goes_on(report: WorkloadReport, job: JobId, epoch: Epoch) -> bool:
    """The agent knows of that epoch, and not as of one that has ended."""
    return any(
        workload.job == job and epoch_of(workload.epoch) == epoch and workload.phase != records_pb2.RUN_PHASE_EXITED
        for workload in report.workloads
    )


def run_record(workload: Workload, old: RunRecord | None, region: RegionId, node: NodeId, wall_ms: int) -> RunRecord:
    """The record of what the agent reports now. Times are the receiver's wall clock minus the reported ages, and once
    set they stay, so that a repeated report changes nothing. Raises ``BadWorkload``."""
    phase = phase_of(workload)
    ended = phase is RunPhase.EXITED

    def kept(before: int, age_ms: int, happened: bool) -> int:
        return before or (wall_ms - min(max(0, age_ms), MAX_AGE_MS) if happened else 0)

    first_step, last_step = workload.first_step, workload.last_step
    if old and first_step < 0:  # an agent that lost its state has forgotten steps that were made
        first_step, last_step = old.first_step, old.last_step
    last_step_ms = old.last_step_ms if old and old.last_step == last_step else 0
    return RunRecord(
        job=JobId(workload.job),
        epoch=epoch_of(workload.epoch),
        region=region,
        node=node,
        phase=phase,
        exit_code=workload.exit_code if ended else 0,
        exit_signal=workload.exit_signal if ended else 0,
        stop_confirmed=ended and workload.stop_confirmed,
        stopped_by_us=workload.stopped_by_us,
        resumed_step=workload.resumed_step,
        first_step=first_step,
        last_step=last_step,
        first_step_ms=kept(old.first_step_ms if old else 0, workload.first_step_age_ms, workload.first_step >= 0),
        last_step_ms=kept(last_step_ms, workload.last_step_age_ms, workload.last_step >= 0),
        started_ms=kept(old.started_ms if old else 0, workload.started_age_ms, True),
        ended_ms=kept(old.ended_ms if old else 0, workload.ended_age_ms, ended),
        last_loss=workload.last_loss if math.isfinite(workload.last_loss) else 0.0,
        reason=workload.reason[:MAX_REASON],
    )


def gang_record(
    workload: Workload,
    old: RunRecord | None,
    owner: OwnershipRecord | None,
    region: RegionId,
    node: NodeId,
    wall_ms: int,
) -> RunRecord:
    """``run_record`` of a job on any number of nodes: what the agent of one of them reports is written into its member,
    and the record says what the members come to. ``owner``: of that epoch; it is needed for the first report."""
    if old is not None:
        members = old.members
    else:
        nodes = nodes_of(owner) if owner else ()
        members = tuple(unheard(of) for of in nodes) if len(nodes) > 1 else ()
    if not members:
        return run_record(workload, old, region, node, wall_ms)
    rank = next(number for number, member in enumerate(members) if member.node == node)
    before = members[rank]
    if before.phase is RunPhase.EXITED and old is not None:
        return old
    alone = run_record(workload, _alone(workload, region, before) if before.reported else None, region, node, wall_ms)
    ended = workload.phase == records_pb2.RUN_PHASE_EXITED
    member = replace(
        before,
        reported=True,
        phase=alone.phase,
        exit_code=workload.exit_code if ended else 0,
        exit_signal=workload.exit_signal if ended else 0,
        stop_confirmed=alone.stop_confirmed,
        stopped_by_us=alone.stopped_by_us,
        first_step=alone.first_step,
        last_step=alone.last_step,
        first_step_ms=alone.first_step_ms,
        last_step_ms=alone.last_step_ms,
        started_ms=alone.started_ms,
        ended_ms=before.ended_ms or (wall_ms - min(max(0, workload.ended_age_ms), MAX_AGE_MS) if ended else 0),
        last_loss=alone.last_loss,
        reason=alone.reason,
    )
    return folded(replace(alone, members=()), (*members[:rank], member, *members[rank + 1 :]))


def _alone(workload: Workload, region: RegionId, member: MemberRun) -> RunRecord:
    """What is on record of one member, as of a job on one node."""
    return RunRecord(
        job=JobId(workload.job),
        epoch=epoch_of(workload.epoch),
        region=region,
        node=member.node,
        phase=member.phase,
        exit_code=member.exit_code,
        exit_signal=member.exit_signal,
        stop_confirmed=member.stop_confirmed,
        stopped_by_us=member.stopped_by_us,
        resumed_step=-1,
        first_step=member.first_step,
        last_step=member.last_step,
        first_step_ms=member.first_step_ms,
        last_step_ms=member.last_step_ms,
        started_ms=member.started_ms,
        ended_ms=member.ended_ms,
        last_loss=member.last_loss,
        reason=member.reason,
    )


def said_of(workload: Workload) -> tuple[object, ...]:
    """What a report says of a run beyond progress and ages: while this and the record stay as they are, so does
    ``run_record`` but for progress."""
    return (
        workload.phase,
        workload.exit_code,
        workload.exit_signal,
        workload.stop_confirmed,
        workload.stopped_by_us,
        workload.resumed_step,
        workload.first_step,
        workload.last_step >= 0,
        workload.reason,
        workload.storing_checkpoint,
    )


def step_every_ms(streams: int) -> int:
    """How often the progress of one run is written by a replica that holds so many streams."""
    return max(STEP_EVERY_MS, streams * 1000 // STEPS_PER_S)


def says_more(old: RunRecord | None, new: RunRecord) -> bool:
    """Whether the new record says more than progress. A run never goes back from ``EXITED``."""
    if old is None:
        return True
    if old.phase is RunPhase.EXITED:
        return False
    return not only_progress(old, new)


def progressed(old: RunRecord, new: RunRecord) -> bool:
    return old.phase is not RunPhase.EXITED and new.last_step != old.last_step
