"""A gang's checkpoint comes together: each member's part is noted in the run record, and all of one step are joined."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from controlplane.shell.apply import Conflict
from controlplane.shell.mirror import Mirror
from controlplane.shell.runs import epoch_of
from controlplane.shell.writer import GroupWriter
from failover.domain.gang import folded, never_complete, parts_complete, rank_on, settled_step
from gridkeeper.decision import Decision, Put, Versioned
from gridkeeper.ids import JobId
from gridkeeper.keys import KEYS
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import CheckpointDamaged, CheckpointError, CheckpointStore
from gridkeeper.ports.store import StoreError
from gridkeeper.records.jobs import RunPhase, RunRecord
from gridkeeper.v1.agent_pb2 import CheckpointReady

log = logging.getLogger("gridkeeper.parts")

ATTEMPTS = 20
AGAIN_MS = 50
"""Members report at the same moment, and one record takes one write at a time. Who comes too late is asked again."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A checkpoint that may become the head. ``parts``: digests of what it was joined of."""

    digest: str
    size_bytes: int
    suspect: bool
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """See ``CheckpointAck``."""

    reason: str
    retry: bool = False


def settled_in(world: Mirror, run: RunRecord) -> int:
    """``settled_step`` of a gang's run, by the heads and checkpoints of the mirror of the global store."""

    def committed(step: int) -> bool:
        held = world.newest("checkpoints", KEYS.checkpoint_name(run.job, step))
        return held is not None and bool(held.record.epoch == run.epoch)

    head = world.newest("heads", run.job)
    return settled_step(run, head.record.step if head else -1, committed)


class Parts:
    """One per replica. ``world``: the mirror of the global store."""

    def __init__(self, world: Mirror, writer: GroupWriter, checkpoints: CheckpointStore, clock: Clock) -> None:
        self._world = world
        self._writer = writer
        self._checkpoints = checkpoints
        self._clock = clock

    async def take(
        self, node: str, ready: CheckpointReady, gang: bool, suspect: Callable[[], bool]
    ) -> Whole | Refused | None:
        """What an announced checkpoint makes whole: of a job on one node, what was announced; of a gang, the join of
        all parts, once every member has stored its own. None: not yet (the agent repeats its announcement).

        ``suspect``: whether evidence speaks against what this node writes; asked once the bytes were verified."""
        job, run = JobId(ready.job), self._run(ready)
        members = run.record.members if run and gang else ()
        told = any(member.node == node and member.part_digest == ready.digest for member in members)
        if not told:
            try:
                manifest = await self._checkpoints.verify(job, ready.step, ready.digest)
            except CheckpointError as error:
                return Refused(str(error), retry=True)  # the store may be away, or have lost what the host has
            if not gang:
                return Whole(ready.digest, manifest.size_bytes, suspect())
            record = await self._noted(node, ready, manifest.size_bytes, suspect())
        else:
            record = run.record if run else None
        if record is None:
            return None
        hopeless = never_complete(record, settled_in(self._world, record))
        if hopeless:
            return Refused(hopeless)
        if not parts_complete(record, ready.step):
            return None
        return await self._joined(record, rank_on(record, node), ready.step)

    def _run(self, ready: CheckpointReady) -> Versioned[RunRecord] | None:
        epoch = epoch_of(ready.epoch)
        return self._world.newest("runs", KEYS.run_name(JobId(ready.job), epoch.generation, epoch.number))

    async def _joined(self, run: RunRecord, rank: int, step: int) -> Whole | Refused | None:
        digests = tuple(member.part_digest for member in run.members)
        try:
            digest, manifest = await self._checkpoints.join(run.job, step, run.epoch, digests)
        except CheckpointDamaged:
            try:
                await self._checkpoints.verify(run.job, step, digests[rank])
            except CheckpointError as error:
                return Refused(str(error), retry=True)
            return None  # another member's part is gone, and its own node is told so
        except CheckpointError as error:
            return Refused(str(error))
        return Whole(digest, manifest.size_bytes, any(member.part_suspect for member in run.members), digests)

    async def _noted(self, node: str, ready: CheckpointReady, size_bytes: int, suspect: bool) -> RunRecord | None:
        """Make the part durable that this node's member has stored and that was verified. The record as it is then;
        None: not yet (the agent repeats its announcement)."""
        job, epoch = JobId(ready.job), epoch_of(ready.epoch)
        key = KEYS.run(job, epoch.generation, epoch.number)
        for _ in range(ATTEMPTS):
            held = self._run(ready)
            rank = rank_on(held.record, node) if held else -1
            if held is None or rank < 0 or not held.record.members or held.record.phase is RunPhase.EXITED:
                return None  # its first report is still to be written down, or its last one was
            run: RunRecord = held.record
            member = replace(
                run.members[rank],
                part_step=ready.step,
                part_digest=ready.digest,
                part_bytes=size_bytes,
                part_suspect=suspect,
            )
            if member == run.members[rank]:
                return run
            new = folded(run, (*run.members[:rank], member, *run.members[rank + 1 :]))
            sentence = f"rank {rank} of {job} epoch {epoch} has stored its part of step {ready.step}"
            put = Put(key, new, held.revision)
            try:
                revision = await self._writer.apply(
                    Decision("executor.report", sentence, (put,), subject=f"job/{job}", audit=False)
                )
            except Conflict:
                await self._clock.sleep(AGAIN_MS)
                continue
            except StoreError as error:
                log.warning("a part of %s step %d waits for the global store: %s", job, ready.step, error)
                return None
            await self._writer.caught_up(revision)
        return None

    async def clear(self, whole: Whole, job: JobId, step: int) -> None:
        """It is committed: the parts' own manifests would only keep its chunks beyond its life. One that stays goes
        with a sweep once the epoch is over."""
        for digest in sorted({*whole.parts} - {whole.digest}):
            try:
                await self._checkpoints.remove(job, step, digest)
            except CheckpointError as error:
                log.info("part %s of %s step %d stays for now: %s", digest[:12], job, step, error)
