"""Jobs as processes of this host: the ``Executor`` port, through the guardian."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from failover.executors.guardian_client import GuardianClient
from failover.executors.protocol import (
    Checkpoint,
    Extend,
    Forget,
    ListRuns,
    Ping,
    Reply,
    Request,
    Stop,
)
from failover.executors.workspace import Workspace
from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import ExecutorError, ExecutorUnavailable, Launch, Process
from gridkeeper.timings import Timings

SILENT_MS = 5_000


def guardian_command(state_dir: Path) -> tuple[str, ...]:
    """How this installation starts a guardian. ``-P``: nothing is imported from the current directory."""
    return (sys.executable, "-P", "-m", "nodeagent.guardian", "--state-dir", str(state_dir), "--detach")


class ProcessExecutor:
    """``state_dir`` is the agent's; its guardian keeps its books and its socket there."""

    def __init__(self, state_dir: Path, clock: Clock, command: Sequence[str] | None = None) -> None:
        self._state_dir = state_dir.resolve()
        self._clock = clock
        self._client = GuardianClient(self._state_dir, command or guardian_command(self._state_dir), clock)
        self._workspace = Workspace(self._state_dir)
        self._deadlines: dict[tuple[JobId, Epoch], int] = {}
        self._listed = False
        self._unanswered_ms = 0  # since when the guardian has not answered; 0: it does
        self.margins(Timings().term_before_ms, Timings().kill_before_ms)

    def margins(self, term_before_ms: int, kill_before_ms: int) -> None:
        self._term_before_ms = term_before_ms
        self._kill_before_ms = kill_before_ms

    def checkpoint_dir(self, job: JobId, epoch: Epoch) -> Path:
        return self._workspace.checkpoint_dir(job, epoch)

    async def _ask(self, request: Request) -> Reply:
        try:
            reply = await self._client.ask(request)
        except ExecutorUnavailable:
            self._end_frozen(self._clock.mono_ms())
            raise
        self._unanswered_ms = 0
        if reply.error:
            raise ExecutorError(reply.error)
        return reply

    def _end_frozen(self, now: int) -> None:
        """A guardian that does not answer is ended once a deadline has passed that it should have enforced; if no
        deadline is known (this agent has just started), once it has been silent for long."""
        self._unanswered_ms = self._unanswered_ms or now
        silent = not self._listed and now - self._unanswered_ms >= SILENT_MS
        if silent or any(now >= deadline - self._kill_before_ms for deadline in self._deadlines.values()):
            self._client.end_frozen()

    async def start(self, launch: Launch, deadline_ms: int) -> None:
        request = self._workspace.start_request(launch, deadline_ms, self._term_before_ms, self._kill_before_ms)
        self._deadlines[launch.job, launch.epoch] = deadline_ms
        await self._ask(request)

    async def extend(self, deadlines: dict[tuple[JobId, Epoch], int]) -> None:
        refusals: list[str] = []
        for (job, epoch), deadline_ms in deadlines.items():
            try:
                await self._ask(Extend(job, str(epoch), deadline_ms, self._term_before_ms, self._kill_before_ms))
            except ExecutorUnavailable:
                raise
            except ExecutorError as error:  # the others must not wait for it
                refusals.append(str(error))
                continue
            self._deadlines[job, epoch] = max(deadline_ms, self._deadlines.get((job, epoch), 0))
        if refusals:
            raise ExecutorError("; ".join(refusals))

    async def request_checkpoint(self, job: JobId, epoch: Epoch) -> None:
        await self._ask(Checkpoint(job, str(epoch)))

    async def stop(self, job: JobId, epoch: Epoch, grace_ms: int) -> None:
        await self._ask(Stop(job, str(epoch), grace_ms))

    async def ping(self) -> None:
        """Start the guardian if need be."""
        await self._ask(Ping())

    async def list(self) -> tuple[Process, ...]:
        reply = await self._ask(ListRuns())
        self._listed = True
        self._deadlines = {
            (JobId(run.job), Epoch.parse(run.epoch)): run.deadline_ms for run in reply.runs if not run.tree_gone
        }
        now = self._clock.mono_ms()
        return tuple(self._workspace.process(run, now) for run in reply.runs)

    async def forget(self, job: JobId, epoch: Epoch) -> None:
        """Also removes the epoch's directory but for its output."""
        await self._ask(Forget(job, str(epoch)))
        self._deadlines.pop((job, epoch), None)
        await self._workspace.forget(job, epoch)

    async def log_tail(self, job: JobId, tail_bytes: int) -> bytes:
        return await self._workspace.log_tail(job, tail_bytes)

    def close(self) -> None:
        self._client.close()
