"""What one node is told to run: a command per epoch, sent on change, repeated beside the answers to its messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from controlplane.shell.mirror import Mirror
from controlplane.shell.orders import Orders
from controlplane.shell.parts import settled_in
from controlplane.shell.runs import epoch_message, epoch_of, goes_on, has_begun, has_ended
from controlplane.shell.session import AgentStream
from failover.domain.fencing import command_for
from failover.domain.gang import Member, member_on, rank_on, wanted_part
from gridkeeper import codec
from gridkeeper.decision import Versioned
from gridkeeper.ids import Epoch, JobId, NodeId, slot_of
from gridkeeper.keys import KEYS
from gridkeeper.ports.clock import Clock
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import OwnershipRecord, RunRecord
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import Command, ControlFrame, Workload

REPEAT_MS = 800
"""A node that does not report what it was told is told again: with the next message from it, one a second."""
SETTLED_MS = 5_000
"""One that reports what it was told."""

RUNS = frozenset({records_pb2.RUN_PHASE_STARTING, records_pb2.RUN_PHASE_RUNNING})


class Commands:
    """One per replica. ``world``: the mirror of the global store."""

    def __init__(self, world: Mirror, clock: Clock) -> None:
        self._world = world
        self._clock = clock
        self._term = 0
        self.orders = Orders(world)

    def changed(self, stream: AgentStream) -> list[ControlFrame]:
        """Those that the node has not been told as they are now."""
        told, wanted = stream.told, self.wanted(stream)
        stream.told = wanted
        return [ControlFrame(command=c) for name, c in wanted.items() if told.get(name) != c]

    def due(self, stream: AgentStream) -> list[ControlFrame]:
        """All of them, if it is time to repeat them."""
        now = self._clock.mono_ms()
        if now < stream.repeat_ms:
            return []
        stream.told = self.wanted(stream)
        stream.repeat_ms = now + (SETTLED_MS if settled(stream) else REPEAT_MS)
        return [ControlFrame(command=command) for command in stream.told.values()]

    def wanted(self, stream: AgentStream) -> Mapping[str, Command]:
        """One command per (job, epoch): what ownership wants here, stops for epochs that are over, and leave to forget
        what is durably recorded as ended.

        An epoch starts once. If it has begun, and the agent does not report it (its state was lost), it is told to
        stop: it then reports that nothing of it runs, and the job goes on at a new epoch from its newest checkpoint."""
        leader = self._world.one("leader")
        if leader:
            self._term = max(self._term, leader.created)
        wanted: dict[str, Command] = {}
        if not self._term:
            return wanted
        before, stream.commands = stream.commands, {}
        for job in self.orders.jobs_of(stream.node):
            held = self._world.newest("ownership", job)
            if held is None:
                continue
            owner: OwnershipRecord = held.record
            run, member = self._run(owner.job, owner.epoch), member_on(owner, stream.node)
            if member is None or (run and has_ended(run.record, member.rank)):
                continue
            made_of = (int(held.revision), self._term, self._gang_step(run))
            made = before.get(job)
            command = made[1] if made and made[0] == made_of else self._command(owner, member, made_of[2])
            stream.commands[job] = (made_of, command)
            if command.desired == records_pb2.DESIRED_RUN and run and has_begun(run.record, member.rank):
                if stream.report is None:
                    continue
                if not goes_on(stream.report, owner.job, owner.epoch):
                    command = self._command(owner, member, made_of[2])
                    command.desired = records_pb2.DESIRED_STOP
            wanted[f"{owner.job}@{owner.epoch}"] = command
        for workload in stream.report.workloads if stream.report else ():
            epoch = epoch_of(workload.epoch)
            name = f"{workload.job}@{epoch}"
            if name not in wanted and not self.behind(JobId(workload.job), epoch):
                wanted[name] = self._over(stream.node, workload, epoch)
        return wanted

    def behind(self, job: JobId, epoch: Epoch) -> bool:
        """The agent knows of a newer epoch than the mirror: nothing may be concluded from what the mirror shows, and a
        stop would be final. An epoch that truly is nobody's is ended by its missing renewals."""
        owner = self._world.newest("ownership", job)
        return owner is None or owner.record.epoch < epoch

    def _run(self, job: JobId, epoch: Epoch) -> Versioned[RunRecord] | None:
        return self._world.newest("runs", run_name(job, epoch))

    def _gang_step(self, run: Versioned[RunRecord] | None) -> int:
        if run is None or not run.record.members:
            return -1
        return wanted_part(run.record, settled_in(self._world, run.record))

    def _command(self, owner: OwnershipRecord, member: Member, gang_step: int) -> Command:
        return Command(
            term=self._term,
            job=owner.job,
            epoch=epoch_message(owner.epoch),
            desired=records_pb2.DESIRED_RUN if command_for(owner) is Desired.RUN else records_pb2.DESIRED_STOP,
            spec=cast(records_pb2.JobSpec, codec.to_message(owner.spec)),
            slots=[slot_of(device) for device in member.devices],
            resume_step=owner.resume_step,
            resume_digest=owner.resume_digest,
            checkpoint_request=owner.checkpoint_request,
            trace=owner.trace,
            rank=member.rank,
            rendezvous=owner.rendezvous,
            gang_step=gang_step,
        )

    def _over(self, node: NodeId, workload: Workload, epoch: Epoch) -> Command:
        """For an epoch that ownership does not want here (any more)."""
        run = self._run(JobId(workload.job), epoch)
        durable = run is not None and has_ended(run.record, rank_on(run.record, node))
        owner = self._world.newest("ownership", workload.job)
        return Command(
            term=self._term,
            job=workload.job,
            epoch=epoch_message(epoch),
            desired=records_pb2.DESIRED_STOP,
            spec=cast(records_pb2.JobSpec, codec.to_message(owner.record.spec)) if owner else None,
            resume_step=-1,
            forget=durable,
        )


def run_name(job: JobId, epoch: Epoch) -> str:
    """Of a run in the mirror."""
    return KEYS.run_name(job, epoch.generation, epoch.number)


def settled(stream: AgentStream) -> bool:
    """The node reports as running, and reports nothing but, what it was last told to run."""
    workloads = stream.report.workloads if stream.report else ()
    if len(workloads) != len(stream.told):
        return False
    for workload in workloads:
        command = stream.told.get(f"{workload.job}@{epoch_of(workload.epoch)}")
        if command is None or command.desired != records_pb2.DESIRED_RUN or workload.phase not in RUNS:
            return False
        if workload.checkpoint_request < command.checkpoint_request:
            return False
    return True
