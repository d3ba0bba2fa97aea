"""The jobs' half of a stream: renewals are answered, commands sent, reports and checkpoints made durable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import cast

from controlplane.domain.taint import suspicion
from controlplane.shell.apply import Applier, Conflict
from controlplane.shell.mirror import Mirror
from controlplane.shell.orders import Orders
from controlplane.shell.ownerview import OwnerView
from controlplane.shell.runs import epoch_message, epoch_of, goes_on, has_begun, run_record, worth_writing
from controlplane.shell.session import AgentStream
from controlplane.shell.states import global_state
from controlplane.shell.writer import GroupWriter
from failover.domain.fencing import Refusal, command_for, commit_head, may_acknowledge
from gridkeeper import codec
from gridkeeper.decision import ABSENT, Decision, Put, Versioned
from gridkeeper.ids import Epoch, JobId, RegionId, ReplicaId, slot_of
from gridkeeper.keys import KEYS
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import CheckpointError, CheckpointStore
from gridkeeper.ports.store import StoreError
from gridkeeper.records.common import Desired
from gridkeeper.records.jobs import OwnershipRecord, RunPhase, RunRecord
from gridkeeper.timings import Timings
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import (
    CheckpointAck,
    CheckpointReady,
    Command,
    ControlFrame,
    Renewal,
    RenewalAck,
    Workload,
)

log = logging.getLogger("gridkeeper.jobfeed")

REPEAT_MS = 1_000
RETRY_MS = 250


class JobFeed:
    """One per replica; stateless but for what its collaborators hold."""

    def __init__(
        self,
        region: RegionId,
        replica: ReplicaId,
        local: Mirror,
        world: Mirror,
        view: OwnerView,
        applier: Applier,
        checkpoints: CheckpointStore,
        clock: Clock,
        timings: Timings,
    ) -> None:
        self._region = region
        self._local = local
        self._world = world
        self._view = view
        self._writer = GroupWriter(applier, f"machine/{replica}")
        self._checkpoints = checkpoints
        self._clock = clock
        self._timings = timings
        self._written: dict[str, int] = {}
        self._term = 0
        self._orders = Orders(world)

    def _run(self, job: JobId, epoch: Epoch) -> Versioned[RunRecord] | None:
        name = KEYS.run(job, epoch.generation, epoch.number).removeprefix(KEYS.prefix("runs"))
        return self._world.newest("runs", name)

    async def renew(self, stream: AgentStream, renewal: Renewal) -> None:
        """Acknowledge those epochs that may go on; silence is the answer to the rest."""
        held = self._view.grant is not None and self._view.grant.region == self._region
        granted = [
            item
            for item in renewal.jobs
            if may_acknowledge(
                self._view.owner(JobId(item.job)),
                stream.node,
                epoch_of(item.epoch),
                self._view.age_ms,
                held,
                self._timings,
            )
        ]
        await stream.link.send(ControlFrame(renewal_ack=RenewalAck(id=renewal.id, granted=granted)))

    async def command(self, stream: AgentStream) -> None:
        """Send what should run on this node: at once on every change, and again each second while there is something
        to say, for ever."""
        sent: dict[str, bytes] = {}
        repeat_at = 0
        with self._orders.waiting(stream.node, stream.orders):
            while True:
                stream.orders.clear()
                now = self._clock.mono_ms()
                if now >= repeat_at:
                    sent.clear()
                    repeat_at = now + REPEAT_MS
                wanted = self.commands(stream)
                for name, command in wanted.items():
                    data = command.SerializeToString(deterministic=True)
                    if sent.get(name) != data:
                        await stream.link.send(ControlFrame(command=command))
                        sent[name] = data
                with contextlib.suppress(TimeoutError):
                    left_ms = max(1, repeat_at - self._clock.mono_ms())
                    async with asyncio.timeout(left_ms / 1000 if wanted else None):
                        await stream.orders.wait()

    def commands(self, stream: AgentStream) -> Mapping[str, Command]:
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
        for job in self._orders.jobs_of(stream.node):
            held = self._world.newest("ownership", job)
            if held is None:
                continue
            owner: OwnershipRecord = held.record
            run = self._run(owner.job, owner.epoch)
            if run and run.record.phase is RunPhase.EXITED:
                continue
            command = self._command(owner)
            if command.desired == records_pb2.DESIRED_RUN and run and has_begun(run.record):
                if stream.report is None:
                    continue
                if not goes_on(stream.report, owner.job, owner.epoch):
                    command.desired = records_pb2.DESIRED_STOP
            wanted[f"{owner.job}@{owner.epoch}"] = command
        for workload in stream.report.workloads if stream.report else ():
            epoch = epoch_of(workload.epoch)
            name = f"{workload.job}@{epoch}"
            if name not in wanted and not self._behind(JobId(workload.job), epoch):
                wanted[name] = self._over(workload, epoch)
        return wanted

    def _behind(self, job: JobId, epoch: Epoch) -> bool:
        """The agent knows of a newer epoch than the mirror: nothing may be concluded from what the mirror shows, and a
        stop would be final. An epoch that truly is nobody's is ended by its missing renewals."""
        owner = self._world.newest("ownership", job)
        return owner is None or owner.record.epoch < epoch

    def _command(self, owner: OwnershipRecord) -> Command:
        return Command(
            term=self._term,
            job=owner.job,
            epoch=epoch_message(owner.epoch),
            desired=records_pb2.DESIRED_RUN if command_for(owner) is Desired.RUN else records_pb2.DESIRED_STOP,
            spec=cast(records_pb2.JobSpec, codec.to_message(owner.spec)),
            slots=[slot_of(device) for device in owner.devices],
            resume_step=owner.resume_step,
            resume_digest=owner.resume_digest,
            checkpoint_request=owner.checkpoint_request,
            trace=owner.trace,
        )

    def _over(self, workload: Workload, epoch: Epoch) -> Command:
        """For an epoch that ownership does not want here (any more)."""
        run = self._run(JobId(workload.job), epoch)
        durable = run is not None and run.record.phase is RunPhase.EXITED
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

    async def record(self, stream: AgentStream) -> None:
        """Make the newest report durable, as often as it changes something, for ever."""
        while True:
            await stream.reported.wait()
            stream.reported.clear()
            report, at_ms = stream.report, stream.report_ms
            for workload in report.workloads if report else ():
                try:
                    await self._record(stream, workload, at_ms)
                except Conflict:
                    log.info("run of %s changed meanwhile; the next report decides", workload.job)
                except StoreError as error:
                    log.warning("run of %s waits for the global store: %s", workload.job, error)

    async def _record(self, stream: AgentStream, workload: Workload, at_ms: int) -> None:
        job, epoch = JobId(workload.job), epoch_of(workload.epoch)
        old = self._run(job, epoch)
        owner = self._world.newest("ownership", job)
        mine = old.record.node == stream.node if old else False
        if not mine and not (owner and owner.record.node == stream.node and owner.record.epoch == epoch):
            # A node reports only for itself: nothing is written about an epoch that was never given to it.
            log.warning("%s reports %s epoch %s, which is not its own: ignored", stream.node, job, epoch)
            return
        new = run_record(workload, old.record if old else None, self._region, stream.node, at_ms)
        key = KEYS.run(job, epoch.generation, epoch.number)
        ago = self._clock.mono_ms() - self._written.get(key, -(1 << 40))
        if not worth_writing(old.record if old else None, new, ago):
            return
        sentence = f"{job} epoch {epoch} on {stream.node}: {new.phase.value}, step {new.last_step}"
        decision = Decision(
            "executor.report",
            sentence,
            (Put(key, new, old.revision if old else ABSENT),),
            subject=f"job/{job}",
            audit=False,
        )
        revision = await self._writer.apply(decision)
        self._written[key] = self._clock.mono_ms()
        await self._writer.caught_up(revision)

    async def commit_checkpoints(self, stream: AgentStream, ledger_ms: Callable[[], int]) -> None:
        """Verify each announced checkpoint in the region's object store, move the head, acknowledge; for ever."""
        while True:
            ready = await stream.checkpoints.get()
            ack = await self._commit(stream, ready, ledger_ms)
            if ack is not None:
                await stream.link.send(ControlFrame(checkpoint_ack=ack))

    async def _commit(
        self, stream: AgentStream, ready: CheckpointReady, ledger_ms: Callable[[], int]
    ) -> CheckpointAck | None:
        """The acknowledgement, or None if it cannot be told yet (the agent repeats)."""
        job, epoch = JobId(ready.job), epoch_of(ready.epoch)

        def ack(committed: bool, refusal: str = "", retry: bool = False) -> CheckpointAck:
            return CheckpointAck(
                job=job, epoch=ready.epoch, step=ready.step, committed=committed, refusal=refusal, retry=retry
            )

        if self._behind(job, epoch):
            return None
        owner = self._world.newest("ownership", job)
        if owner is None or owner.record.node != stream.node:
            return ack(False, f"{job} is not owned by {stream.node}")
        if owner.record.epoch != epoch:  # before it is verified: nothing mends this one
            return ack(False, f"{job} is owned at epoch {owner.record.epoch}")
        head = self._world.newest("heads", job)
        if head and head.record.step == ready.step and head.record.digest == ready.digest:
            return ack(True)
        try:
            manifest = await self._checkpoints.verify(job, ready.step, ready.digest)
        except CheckpointError as error:
            return ack(False, str(error), retry=True)  # the object store may be away, or have lost what the host has
        tainted = suspicion(self._local.kind("findings"), owner.record.devices)
        if tainted:
            log.warning("checkpoint %s step %d is suspect: %s", job, ready.step, tainted.sentence)
        world = global_state(self._world)
        outcome = commit_head(
            job=job,
            epoch=epoch,
            step=ready.step,
            digest=ready.digest,
            size_bytes=manifest.size_bytes,
            region=self._region,
            world=world,
            ledger_ms=ledger_ms(),
            suspect=tainted is not None,
        )
        if isinstance(outcome, Refusal):
            return ack(False, outcome.sentence, retry=KEYS.head(job) in world.suspect_keys)
        try:
            revision = await self._writer.apply(outcome)
        except (Conflict, StoreError) as error:
            log.info("checkpoint %s step %d is not committed yet: %s", job, ready.step, error)
            await self._clock.sleep(RETRY_MS)
            return None
        await self._writer.caught_up(revision)
        return ack(True)
