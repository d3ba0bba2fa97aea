"""Where a job's epochs live on this host: checkpoints, working directory, output and progress under ``jobs/``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

from failover.executors.guardian_client import plain_environment
from failover.executors.progress import ProgressFile
from failover.executors.protocol import RunState, Start
from gridkeeper.ids import Epoch, JobId, checked_name, slot_of
from gridkeeper.ports.jobs import ExecutorError, Launch, Process

LOG_LIMIT = 16 << 20
LOG_KEPT = 4 << 20
"""Output beyond the limit is cut: its end is kept beside it as ``output.log.1``."""
MAX_TAIL = 65_536


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
        **rendezvous(launch),
    }


def rendezvous(launch: Launch) -> dict[str, str]:
    """How the members of a gang find each other, as ``torchrun`` reads it: its options' defaults come from ``PET_…``.
    The id differs from epoch to epoch, so that a straggler of an older one can be turned away (docs/gangs.md)."""
    if launch.spec.members == 1:
        return {}
    address, _, port = launch.rendezvous.rpartition(":")
    found = {
        "NNODES": str(launch.spec.members),
        "NODE_RANK": str(launch.rank),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }
    run_id = f"{launch.job}-{launch.epoch}"
    torchrun = {"NPROC_PER_NODE": str(len(launch.devices)), "RDZV_ID": run_id, "MAX_RESTARTS": "0"}
    return {
        **found,
        "GRIDKEEPER_RENDEZVOUS": run_id,
        **{f"PET_{name}": value for name, value in (found | torchrun).items()},
    }


def _tail(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read(size)


class Workspace:
    """``state_dir`` is the agent's; everything of an epoch lies under ``jobs/<job>/<epoch>/`` in it."""

    def __init__(self, state_dir: Path) -> None:
        self._jobs = state_dir / "jobs"
        self._progress: dict[tuple[JobId, Epoch], ProgressFile] = {}

    def directory(self, job: JobId, epoch: Epoch) -> Path:
        return self._jobs / job / str(epoch)

    def checkpoint_dir(self, job: JobId, epoch: Epoch) -> Path:
        return self.directory(job, epoch) / "checkpoints"

    def start_request(self, launch: Launch, deadline_ms: int, term_before_ms: int, kill_before_ms: int) -> Start:
        """What to ask a guardian for. The epoch's directories are there on return. Raises ``ExecutorError``."""
        directory = self.directory(launch.job, launch.epoch)
        work = Path(launch.spec.workdir) if launch.spec.workdir else directory / "work"
        try:
            (directory / "checkpoints").mkdir(parents=True, exist_ok=True, mode=0o700)
            if not launch.spec.workdir:
                work.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise ExecutorError(f"job {launch.job} epoch {launch.epoch}: {error}; check the state directory") from error
        return Start(
            launch.job,
            str(launch.epoch),
            launch.spec.command,
            tuple(sorted(job_environment(launch, directory).items())),
            str(work),
            str(directory / "output.log"),
            deadline_ms,
            term_before_ms,
            kill_before_ms,
        )

    def process(self, run: RunState, now_ms: int) -> Process:
        """``run`` with what its progress file says; the output of one that is alive is kept within its bounds."""
        job, epoch = JobId(run.job), Epoch.parse(run.epoch)
        directory = self.directory(job, epoch)
        file = self._progress.get((job, epoch))
        if file is None:
            file = self._progress[job, epoch] = ProgressFile(directory / "progress.jsonl")
        if run.alive:
            _bound_log(directory / "output.log")
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
            progress=file.look(now_ms),
            pids=run.pids,
            reason=run.reason,
        )

    async def forget(self, job: JobId, epoch: Epoch) -> None:
        """Remove what the epoch wrote but for its output; that of the last few epochs stays readable."""
        self._progress.pop((job, epoch), None)
        directory = self.directory(job, epoch)
        for name in ("checkpoints", "work"):
            await asyncio.to_thread(shutil.rmtree, directory / name, True)
        self._keep_newest_outputs(directory.parent)

    def _keep_newest_outputs(self, directory: Path, keep: int = 3) -> None:
        with contextlib.suppress(OSError, ValueError):
            epochs = sorted(Epoch.parse(entry.name) for entry in directory.iterdir())
            for epoch in epochs[:-keep]:
                if not (directory / str(epoch) / "checkpoints").exists():
                    shutil.rmtree(directory / str(epoch), ignore_errors=True)

    async def log_tail(self, job: JobId, tail_bytes: int) -> bytes:
        """The end of the newest epoch's output. Raises ``ExecutorError``."""
        try:
            checked_name("job", job)
            epochs = sorted(Epoch.parse(entry.name) for entry in (self._jobs / job).iterdir())
            return _tail(self.directory(job, epochs[-1]) / "output.log", min(max(0, tail_bytes), MAX_TAIL))
        except (OSError, ValueError, IndexError) as error:
            raise ExecutorError(f"job {job[:80]} has no output on this node: {error}") from error


def _bound_log(path: Path) -> None:
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
