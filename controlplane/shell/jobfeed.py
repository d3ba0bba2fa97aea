"""The jobs' half of a stream: renewals are answered, commands sent, reports and checkpoints made durable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from controlplane.domain.taint import suspicion
from controlplane.shell.apply import Applier, Conflict
from controlplane.shell.commands import Commands, run_name
from controlplane.shell.mirror import Mirror
from controlplane.shell.nodefindings import NodeFindings
from controlplane.shell.ownerview import OwnerView
from controlplane.shell.parts import Parts, Refused
from controlplane.shell.runs import epoch_of, gang_record, progressed, said_of, says_more, step_every_ms
from controlplane.shell.session import AgentStream, Noted
from controlplane.shell.writer import GroupWriter
from failover.domain.fencing import Refusal, commit_head, may_acknowledge
from failover.domain.gang import member_on, nodes_of, rank_on
from gridkeeper.decision import ABSENT, Decision, Put, Versioned
from gridkeeper.ids import Epoch, JobId, RegionId, ReplicaId
from gridkeeper.keys import KEYS
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import CheckpointStore
from gridkeeper.ports.store import StoreError
from gridkeeper.records.jobs import RunRecord
from gridkeeper.snapshot import GlobalState
from gridkeeper.timings import Timings
from gridkeeper.v1.agent_pb2 import (
    CheckpointAck,
    CheckpointReady,
    ControlFrame,
    Renewal,
    RenewalAck,
    Workload,
    WorkloadReport,
)

log = logging.getLogger("gridkeeper.jobfeed")

RETRY_MS = 250
AGAIN_MS = 50
NEVER_MS = -(1 << 40)


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
        self._parts = Parts(world, self._writer, checkpoints, clock)
        self._commands = Commands(world, clock)
        self._findings = NodeFindings(local)
        self.streams: Callable[[], int] = lambda: 0
        """How many the replica holds."""

    def _run(self, job: JobId, epoch: Epoch) -> Versioned[RunRecord] | None:
        return self._world.newest("runs", run_name(job, epoch))

    def renew(self, stream: AgentStream, renewal: Renewal) -> ControlFrame:
        """Acknowledge those epochs that may go on; silence is the answer to the rest."""
        grant = self._view.grant
        held = grant is not None and grant.region == self._region and not grant.revoked
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
        return ControlFrame(renewal_ack=RenewalAck(id=renewal.id, granted=granted))

    def due(self, stream: AgentStream) -> list[ControlFrame]:
        """What the node is to be told again now."""
        return self._commands.due(stream)

    async def command(self, stream: AgentStream) -> None:
        """Send what should run on this node, at once on every change, for ever."""
        with self._commands.orders.waiting(stream.node, stream.orders):
            while True:
                stream.orders.clear()
                await stream.send(self._commands.changed(stream))
                await stream.orders.wait()

    def take(self, stream: AgentStream, report: WorkloadReport) -> None:
        """A report arrived. Most say what the one before did, and are done with here."""
        running = tuple([(w.job, w.epoch.generation, w.epoch.number, w.phase) for w in report.workloads])
        if running != stream.running or stream.report is None:
            stream.running, stream.repeat_ms = running, 0  # the answer is in the next message
            named = {(JobId(w.job), epoch_of(w.epoch)) for w in report.workloads}
            stream.noted = {run: noted for run, noted in stream.noted.items() if run in named}
            stream.written_ms = {run: at for run, at in stream.written_ms.items() if run in named}
        stream.report = report
        if any(self._is_news(stream, workload) for workload in report.workloads):
            stream.reported.set()

    def _is_news(self, stream: AgentStream, workload: Workload) -> bool:
        """Whether the run's record may have to be written."""
        name = (JobId(workload.job), epoch_of(workload.epoch))
        run, noted = self._run(*name), stream.noted.get(name)
        if run is None or noted is None or noted.revision != run.revision or noted.said != said_of(workload):
            return True
        return workload.last_step != run.record.last_step and self._due(stream, name)

    def _due(self, stream: AgentStream, run: tuple[JobId, Epoch]) -> bool:
        """Whether progress alone is worth writing again."""
        ago_ms = self._clock.mono_ms() - stream.written_ms.get(run, NEVER_MS)
        return ago_ms >= step_every_ms(self.streams())

    async def record(self, stream: AgentStream) -> None:
        """Make the newest report durable, as often as it changes something, for ever."""
        while True:
            await stream.reported.wait()
            stream.reported.clear()
            report, at_ms = stream.report, stream.report_ms
            for workload in report.workloads if report else ():
                try:
                    await self._record(stream, workload, at_ms)
                except Conflict:  # another member's agent has reported, or a leader has decided
                    log.info("run of %s changed meanwhile; it is looked at again", workload.job)
                    await self._clock.sleep(AGAIN_MS)
                    stream.reported.set()
                except StoreError as error:
                    log.warning("run of %s waits for the global store: %s", workload.job, error)

    async def _record(self, stream: AgentStream, workload: Workload, at_ms: int) -> None:
        job, epoch = JobId(workload.job), epoch_of(workload.epoch)
        old = self._run(job, epoch)
        owner = self._world.newest("ownership", job)
        mine = rank_on(old.record, stream.node) >= 0 if old else False
        owns = owner is not None and owner.record.epoch == epoch and member_on(owner.record, stream.node) is not None
        if not mine and not owns:
            # A node reports only for itself: nothing is written about an epoch that was never given to it.
            log.warning("%s reports %s epoch %s, which is not its own: ignored", stream.node, job, epoch)
            return
        given = owner.record if owner and owns else None
        new = gang_record(workload, old.record if old else None, given, self._region, stream.node, at_ms)
        key = KEYS.run(job, epoch.generation, epoch.number)
        if old and not says_more(old.record, new):
            stream.noted[job, epoch] = Noted(said_of(workload), old.revision)
            if not (progressed(old.record, new) and self._due(stream, (job, epoch))):
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
        stream.written_ms[job, epoch] = self._clock.mono_ms()
        await self._writer.caught_up(revision)

    def _about(self, job: JobId, step: int) -> GlobalState:
        """As much of the global store as a commit of that checkpoint rests on."""
        newest = self._world.newest

        def one(kind: str, name: str) -> dict[Any, Versioned[Any]]:
            held = newest(kind, name)
            return {} if held is None else {name: held}

        return GlobalState(
            revision=self._world.revision,
            fresh=self._world.fresh,
            ownership=one("ownership", job),
            heads=one("heads", job),
            checkpoints=one("checkpoints", KEYS.checkpoint_name(job, step)),
            suspect_keys=self._world.suspect,
        )

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

        if self._commands.behind(job, epoch):
            return None
        owner = self._world.newest("ownership", job)
        if owner is None or member_on(owner.record, stream.node) is None:
            return ack(False, f"{job} is not owned by {stream.node}")
        if owner.record.epoch != epoch:  # before it is verified: nothing mends this one
            return ack(False, f"{job} is owned at epoch {owner.record.epoch}")
        head = self._world.newest("heads", job)
        if head and head.record.step == ready.step and head.record.digest == ready.digest:
            return ack(True)
        written = self._world.newest("checkpoints", KEYS.checkpoint_name(job, ready.step))
        if written and (written.record.epoch, written.record.digest) == (epoch, ready.digest):
            return ack(True)  # as suspect, so it is no head; the answer was late, and the agent asks again
        gang = owner.record.spec.members > 1
        joined = [of.record for of in (head, written) if of is not None]
        if gang and any((of.step, of.epoch) == (ready.step, epoch) for of in joined):
            return ack(True)  # by whoever saw its last part

        def suspect() -> bool:
            """By evidence against any member: what one of them computes wrongly is in the parts of all."""
            found = (suspicion(self._findings.of(node), owner.record.devices) for node in nodes_of(owner.record))
            tainted = next((finding for finding in found if finding), None)
            if tainted:
                log.warning("checkpoint %s step %d is suspect: %s", job, ready.step, tainted.sentence)
            return tainted is not None

        whole = await self._parts.take(stream.node, ready, gang, suspect)
        if whole is None:
            return None
        if isinstance(whole, Refused):
            return ack(False, whole.reason, whole.retry)
        world = self._about(job, ready.step)
        outcome = commit_head(
            job=job,
            epoch=epoch,
            step=ready.step,
            digest=whole.digest,
            size_bytes=whole.size_bytes,
            region=self._region,
            world=world,
            ledger_ms=ledger_ms(),
            suspect=whole.suspect,
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
        await self._parts.clear(whole, job, ready.step)
        return ack(True)
