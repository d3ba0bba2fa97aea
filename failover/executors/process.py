"""Jobs as processes of this host: the ``Executor`` port, through the guardian."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from failover.executors.guardian_client import GuardianClient, plain_environment
from failover.executors.progress import ProgressFile
from failover.executors.protocol import (
    Checkpoint,
    Extend,
    Forget,
    ListRuns,
    Ping,
    Reply,
    Request,
    RunState,
    Start,
    Stop,
)
from gridkeeper.ids import Epoch, JobId, checked_name, slot_of
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import ExecutorError, ExecutorUnavailable, Launch, Process
from gridkeeper.timings import Timings

LOG_LIMIT = 16 << 20
LOG_KEPT = 4 << 20
"""Output beyond the limit is cut: its end is kept beside it as ``output.log.1``."""
MAX_TAIL = 65_536
SILENT_MS = 5_000


def guardian_command(state_dir: Path) -> tuple[str, ...]:
    """How this installation starts a guardian. ``-P``: nothing is imported from the current directory."""
    return (sys.executable, "-P", "-m", "nodeagent.guardian", "--state-dir", str(state_dir), "--detach")


def job_environment(launch: Launch, directory: Path) -> dict[str, str]:
    """The contract with a job (architecture §6). The spec's own variables cannot override ours."""
    return {
        **plain_environment(),
        **{label.key: label.value for label in launch.spec.env},
        "GRIDKEEPER_JOB": launch.job,
        "GRIDKEEPER_EPOCH": str(launch.epoch),
        "GRIDKEEPER_DEVICES": ",".join(slot_of(device) for device in launch.devices),
        "GRIDKEEPER_CHECKPOINT_DIR": str(directory / "checkpoints"),
        "GRIDKEEPER_RESUME_FROM": launch.resume_from,
        "GRIDKEEPER_PROGRESS": str(directory / "progress.jsonl"),
    }


def _tail(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read(size)


class ProcessExecutor:
    """``state_dir`` is the agent's; everything of a job lies under ``jobs/<job>/<epoch>/`` in it."""

    def __init__(self, state_dir: Path, clock: Clock, command: Sequence[str] | None = None) -> None:
        self._state_dir = state_dir.resolve()
        self._clock = clock
        self._client = GuardianClient(self._state_dir, command or guardian_command(self._state_dir), clock)
        self._progress: dict[tuple[JobId, Epoch], ProgressFile] = {}
        self._deadlines: dict[tuple[JobId, Epoch], int] = {}
        self._listed = False
        self._unanswered_ms = 0  # since when the guardian has not answered; 0: it does
        self.margins(Timings().term_before_ms, Timings().kill_before_ms)

    def margins(self, term_before_ms: int, kill_before_ms: int) -> None:
        self._term_before_ms = term_before_ms
        self._kill_before_ms = kill_before_ms

    def directory(self, job: JobId, epoch: Epoch) -> Path:
        return self._state_dir / "jobs" / job / str(epoch)

    def checkpoint_dir(self, job: JobId, epoch: Epoch) -> Path:
        return self.directory(job, epoch) / "checkpoints"

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
        directory = self.directory(launch.job, launch.epoch)
        work = Path(launch.spec.workdir) if launch.spec.workdir else directory / "work"
        try:
            (directory / "checkpoints").mkdir(parents=True, exist_ok=True, mode=0o700)
            if not launch.spec.workdir:
                work.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise ExecutorError(f"job {launch.job} epoch {launch.epoch}: {error}; check the state directory") from error
        request = Start(
            launch.job,
            str(launch.epoch),
            launch.spec.command,
            tuple(sorted(job_environment(launch, directory).items())),
            str(work),
            str(directory / "output.log"),
            deadline_ms,
            self._term_before_ms,
            self._kill_before_ms,
        )
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
        found = tuple(self._process(run) for run in reply.runs)
        self._deadlines = {
            (JobId(run.job), Epoch.parse(run.epoch)): run.deadline_ms for run in reply.runs if not run.tree_gone
        }
        for process in found:
            if process.alive:
                self._bound_log(self.directory(process.job, process.epoch) / "output.log")
        return found

    def _process(self, run: RunState) -> Process:
        job, epoch = JobId(run.job), Epoch.parse(run.epoch)
        file = self._progress.get((job, epoch))
        if file is None:
            file = self._progress[job, epoch] = ProgressFile(self.directory(job, epoch) / "progress.jsonl")
        return Process(
            job=job,
            epoch=epoch,
            alive=run.alive,
            exit_code=run.exit_code,
            exit_signal=run.exit_signal,
            tree_gone=run.tree_gone,
            fenced=run.fenced,
            stop_asked=run.stop_asked,
            started_ms=run.started_ms,
            ended_ms=run.ended_ms,
            progress=file.look(self._clock.mono_ms()),
            pids=run.pids,
            reason=run.reason,
        )

    async def forget(self, job: JobId, epoch: Epoch) -> None:
        """Also removes the epoch's directory but for its output."""
        await self._ask(Forget(job, str(epoch)))
        self._progress.pop((job, epoch), None)
        self._deadlines.pop((job, epoch), None)
        directory = self.directory(job, epoch)
        for name in ("checkpoints", "work"):
            await asyncio.to_thread(shutil.rmtree, directory / name, True)
        self._keep_newest_outputs(directory.parent)

    def _keep_newest_outputs(self, directory: Path, keep: int = 3) -> None:
        """Output of the last few epochs stays readable after they were forgotten."""
        with contextlib.suppress(OSError, ValueError):
            epochs = sorted(Epoch.parse(entry.name) for entry in directory.iterdir())
            for epoch in epochs[:-keep]:
                if not (directory / str(epoch) / "checkpoints").exists():
                    shutil.rmtree(directory / str(epoch), ignore_errors=True)

    async def log_tail(self, job: JobId, tail_bytes: int) -> bytes:
        try:
            checked_name("job", job)
            epochs = sorted(Epoch.parse(entry.name) for entry in (self._state_dir / "jobs" / job).iterdir())
            return _tail(self.directory(job, epochs[-1]) / "output.log", min(max(0, tail_bytes), MAX_TAIL))
        except (OSError, ValueError, IndexError) as error:
            raise ExecutorError(f"job {job[:80]} has no output on this node: {error}") from error

    def _bound_log(self, path: Path) -> None:
        try:
            size = path.stat().st_size
            if size <= LOG_LIMIT:
                return
            with open(path, "rb+") as file:  # the job appends (O_APPEND), so cutting to 0 starts it anew
                file.seek(size - LOG_KEPT)
                path.with_name("output.log.1").write_bytes(file.read(LOG_KEPT))
                file.truncate(0)
        except OSError:
            return  # the next look tries again

    def close(self) -> None:
        self._client.close()
