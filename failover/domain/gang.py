"""Gangs: jobs of several nodes with one ownership and one epoch. Pure.

A job on one node is a gang of one; nothing here is a second machine. The ownership names all devices, rank by rank, and
a device's id names its node: so who the members are follows from it. What the agents report of the members is folded
into the one run record of the epoch, on which all that decides about jobs rests: it has ended when *every* member is
confirmed stopped, it runs when every member runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, Epoch, JobId, NodeId, node_of
from gridkeeper.records.jobs import MemberRun, OwnershipRecord, RunPhase, RunRecord
from gridkeeper.snapshot import GlobalState

PORTS = range(20_000, 30_000)
"""Where rank 0 is met: below the ports that Linux gives to outgoing connections (32768 and up)."""


@dataclass(frozen=True, slots=True)
class Member:
    """One node's share of a gang. Its rank is its place among the members."""

    rank: int
    node: NodeId
    devices: tuple[DeviceId, ...]


def members_of(devices: Iterable[DeviceId]) -> tuple[Member, ...]:
    """The members whose devices these are, by rank: each node's devices stand together."""
    by_node: dict[NodeId, list[DeviceId]] = {}
    for device in devices:
        by_node.setdefault(node_of(device), []).append(device)
    return tuple(Member(rank, node, tuple(here)) for rank, (node, here) in enumerate(by_node.items()))


def nodes_of(owner: OwnershipRecord) -> tuple[NodeId, ...]:
    """The nodes that run the job, by rank."""
    if owner.spec.members == 1:
        return (owner.node,)
    return tuple(member.node for member in members_of(owner.devices))


def member_on(owner: OwnershipRecord, node: NodeId | str) -> Member | None:
    """The member that runs on ``node``."""
    if owner.spec.members == 1:
        return Member(0, owner.node, owner.devices) if owner.node == node else None
    return next((member for member in members_of(owner.devices) if member.node == node), None)


# -- what the members' reports come to ---------------------------------------------------------------------------------


def unheard(node: NodeId) -> MemberRun:
    """A member of which no agent has spoken yet."""
    return MemberRun(
        node=node,
        reported=False,
        phase=RunPhase.STARTING,
        exit_code=0,
        exit_signal=0,
        stop_confirmed=False,
        stopped_by_us=False,
        first_step=-1,
        last_step=-1,
        first_step_ms=0,
        last_step_ms=0,
        started_ms=0,
        ended_ms=0,
        last_loss=0.0,
        reason="",
        part_step=-1,
        part_digest="",
        part_bytes=0,
        part_suspect=False,
    )


def rank_on(run: RunRecord, node: NodeId | str) -> int:
    """The rank of the member that the record has on ``node``; −1: none."""
    if not run.members:
        return 0 if run.node == node else -1
    return next((rank for rank, member in enumerate(run.members) if member.node == node), -1)


def member_failed(member: MemberRun) -> bool:
    """Its process has ended, and not as one that is done: the gang cannot go on."""
    if not member.ended_ms and member.phase is not RunPhase.EXITED:
        return False
    return member.exit_code != 0 or member.exit_signal != 0 or member.stopped_by_us


def is_broken(run: Versioned[RunRecord] | None) -> bool:
    """A member has failed, so the others wait for it in vain: they are to be stopped, and the gang starts anew. Of a
    job on one node: never; its end is the end of the whole."""
    return run is not None and any(member_failed(member) for member in run.record.members)


def phase_of(members: Collection[MemberRun]) -> RunPhase:
    """What the gang does, as one."""
    phases = {member.phase for member in members}
    if phases == {RunPhase.EXITED}:
        return RunPhase.EXITED
    if RunPhase.STOPPING in phases or any(member_failed(member) for member in members):
        return RunPhase.STOPPING
    return RunPhase.STARTING if RunPhase.STARTING in phases else RunPhase.RUNNING


def folded(run: RunRecord, members: tuple[MemberRun, ...]) -> RunRecord:
    """The gang's record. The first member that failed says how the gang ended: the others' ends follow from it. The
    gang's steps are those of the lowest rank that tells of any: ranks step together, and one write tells of all."""
    failed = [member for member in members if member_failed(member)]
    teller = next((member for member in members if member.first_step >= 0), None)
    phase = phase_of(members)
    first = min(failed, key=lambda member: (member.ended_ms or 1 << 62, member.node), default=None)
    ends = [member.ended_ms for member in members if member.ended_ms]
    ended_ms = first.ended_ms if first else max(ends, default=0)
    return replace(
        run,
        node=members[0].node,
        phase=phase,
        exit_code=first.exit_code if first else 0,
        exit_signal=first.exit_signal if first else 0,
        stop_confirmed=phase is RunPhase.EXITED and all(member.stop_confirmed for member in members),
        stopped_by_us=first.stopped_by_us if first else any(member.stopped_by_us for member in members),
        first_step=teller.first_step if teller else -1,
        last_step=teller.last_step if teller else -1,
        first_step_ms=teller.first_step_ms if teller else 0,
        last_step_ms=teller.last_step_ms if teller else 0,
        started_ms=min((member.started_ms for member in members if member.started_ms), default=0),
        ended_ms=ended_ms if first or phase is RunPhase.EXITED else 0,
        last_loss=teller.last_loss if teller else 0.0,
        reason=_reason(members, first),
        members=members,
    )


def _reason(members: tuple[MemberRun, ...], first: MemberRun | None) -> str:
    if first is not None:
        return f"rank {members.index(first)} on {first.node}: {first.reason}"[:512]
    said = [f"rank {rank}: {member.reason}" for rank, member in enumerate(members) if member.reason]
    return "; ".join(said)[:512]


def unheard_members(run: RunRecord) -> tuple[NodeId, ...]:
    """Nodes of members that have not been reported yet."""
    return tuple(member.node for member in run.members if not member.reported)


# -- one checkpoint of many parts --------------------------------------------------------------------------------------


def settled_step(run: RunRecord, head_step: int, committed: Callable[[int], bool]) -> int:
    """The newest step that nothing more is wanted of: the head, or one that this epoch ``committed`` beyond it as
    suspect, which no head moves to. Members' parts name all that there may be: a commit needs every one of them."""
    parts = {member.part_step for member in run.members if member.part_step > head_step}
    return max((step for step in parts if committed(step)), default=head_step)


def wanted_part(run: RunRecord, settled: int) -> int:
    """The step whose parts the members are to store now; −1: rank 0 has stored none beyond the settled one yet.

    Rank 0 chooses, and takes its newest each time; the others follow. A member whose process has ended makes no more
    checkpoints, so the gang takes no newer one than the newest that *it* has stored."""
    parts = [m.part_step for rank, m in enumerate(run.members) if rank == 0 or m.ended_ms]
    return min((step for step in parts if step > settled), default=-1)


def parts_complete(run: RunRecord, step: int) -> bool:
    """Every member has stored its part of that step, verified."""
    return all(member.part_step == step for member in run.members)


def never_complete(run: RunRecord, settled: int) -> str:
    """Why no parts beyond the settled step ever come together, as a sentence; "": they may. A member that has ended
    with another step than the wanted one has none that is not newer, and the wanted one only falls."""
    step = wanted_part(run, settled)
    for rank, member in enumerate(run.members):
        if step >= 0 and member.phase is RunPhase.EXITED and member.part_step != step:
            return f"rank {rank} on {member.node} has ended and stored no part of step {step}"
    return ""


# -- where the members meet --------------------------------------------------------------------------------------------


def rendezvous_port(world: GlobalState, job: JobId, epoch: Epoch, node: NodeId) -> int:
    """A port for rank 0 on ``node``, another one for each epoch: a straggler of an older epoch finds nobody. No port
    that another owner meets at on that node."""
    taken = {
        held.record.rendezvous.rpartition(":")[2]
        for held in world.ownership.values()
        if held.record.rendezvous and held.record.node == node and held.record.job != job
    }
    first = zlib.crc32(f"{job}@{epoch}".encode()) % len(PORTS)
    tried = (PORTS[(first + number) % len(PORTS)] for number in range(len(taken) + 1))
    return next(port for port in tried if str(port) not in taken)
