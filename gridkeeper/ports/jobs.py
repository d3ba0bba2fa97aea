"""Running jobs and keeping their checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gridkeeper.ids import DeviceId, Epoch, JobId
from gridkeeper.records.jobs import JobSpec


class ExecutorError(Exception):
    """The job could not be started or asked; names job, epoch and cause."""


class ExecutorUnavailable(ExecutorError):
    """No answer: it may or may not have been done. Ask again, or look at ``list``."""


class ExecutorWaiting(ExecutorError):
    """Whoever owns the host (Slurm, Kubernetes) has not given room yet: nothing runs, and nothing will unless ``start``
    is asked again."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of one job."""

    job: JobId
    epoch: Epoch
    spec: JobSpec
    devices: tuple[DeviceId, ...]
    resume_from: str  # directory; "" = from scratch
    resume_step: int  # -1: from scratch
    rank: int = 0  # in the job's gang
    rendezvous: str = ""  # host:port of rank 0; "": a job on one node


@dataclass(frozen=True, slots=True)
class Progress:
    """The newest and the first progress line of an epoch. Ages in ms on this host's clock; steps -1: none yet."""

    first_step: int
    last_step: int
    first_step_at_ms: int
    last_step_at_ms: int
    last_loss: float


@dataclass(frozen=True, slots=True)
class Process:
    """What is known of one (job, epoch) on this host."""

    job: JobId
    epoch: Epoch
    alive: bool
    exit_code: int  # -1 while alive or when a signal ended it
    exit_signal: int
    tree_gone: bool  # the whole process tree has ended
    fenced: bool  # the guardian ended it at its deadline
    stop_asked: bool
    started_ms: int  # boot-time clock
    ended_ms: int  # 0 while alive
    progress: Progress
    pids: tuple[int, ...]
    reason: str = ""  # why its command could not be run


class Executor(Protocol):
    """Starts, signals and lists jobs on this host; what it starts survives the agent's restart."""

    def margins(self, term_before_ms: int, kill_before_ms: int) -> None:
        """From now on SIGTERM and SIGKILL come this long before a deadline (architecture §4.1: F − 5 s, F − 1 s)."""
        ...

    async def start(self, launch: Launch, deadline_ms: int) -> None:
        """Start it, to be stopped at ``deadline_ms`` (boot-time clock) unless extended. Idempotent per (job, epoch).
        Does not wait for the command: one that cannot be run is listed as ended, with the ``reason``.
        Refuses (``ExecutorError``) an epoch lower than the highest ever started for the job. Raises ``ExecutorWaiting``
        while there is no room for it; who does not ask again within a few seconds gives up its place."""
        ...

    async def extend(self, deadlines: dict[tuple[JobId, Epoch], int]) -> None:
        """Move deadlines (boot-time clock ms), never backwards."""
        ...

    async def request_checkpoint(self, job: JobId, epoch: Epoch) -> None:
        """SIGUSR1 to the job's leading process."""
        ...

    async def stop(self, job: JobId, epoch: Epoch, grace_ms: int) -> None:
        """SIGTERM now, SIGKILL to the whole tree after the grace period. Returns at once; see ``list``."""
        ...

    async def list(self) -> tuple[Process, ...]:
        """Everything known, ended epochs included until forgotten."""
        ...

    async def forget(self, job: JobId, epoch: Epoch) -> None:
        """Drop an ended epoch."""
        ...

    def checkpoint_dir(self, job: JobId, epoch: Epoch) -> Path:
        """Where that epoch writes ``step-<n>`` directories."""
        ...

    async def log_tail(self, job: JobId, tail_bytes: int) -> bytes:
        """The end of the newest epoch's output."""
        ...


class CheckpointError(Exception):
    """A checkpoint that is incomplete, altered or cannot be stored; names job, step, file and what differs."""


class CheckpointDamaged(CheckpointError):
    """The store was read, and bytes of the checkpoint are missing or altered there. Storing or copying it again heals
    it. A store that cannot be read, or shows nothing at all, raises ``CheckpointError``: nothing is known then."""


class Pace(Protocol):
    """A limit of bytes per second."""

    async def spend(self, size_bytes: int) -> None:
        """Returns when so many bytes may be moved."""
        ...


Told = Callable[[int, int], None]
"""Bytes that are here, of how many."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    path: str  # relative, "/" separated
    size_bytes: int
    mode: int
    chunks: tuple[str, ...]  # BLAKE3 of each chunk, in order


@dataclass(frozen=True, slots=True)
class Manifest:
    """Committed last; its own BLAKE3 is the checkpoint's digest."""

    job: JobId
    step: int
    epoch: Epoch
    files: tuple[ManifestFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep has deleted. ``bytes``: as stored."""

    manifests: int
    chunks: int
    bytes: int


class CheckpointStore(Protocol):
    """One region's object store. Blocking work runs in threads; calls are cancellable between chunks."""

    async def put(
        self, job: JobId, step: int, epoch: Epoch, directory: Path, part: bool = False
    ) -> tuple[str, Manifest]:
        """Store a finished checkpoint directory. Returns (digest, manifest). Idempotent. Inert until a head names it.
        Raises ``CheckpointError``, also for an incomplete one of a known format. ``part``: what one member of a gang
        wrote; whether the whole is complete is only to be seen when it is joined."""
        ...

    async def join(self, job: JobId, step: int, epoch: Epoch, parts: Sequence[str]) -> tuple[str, Manifest]:
        """One checkpoint of the parts with these digests, whose files lie side by side in it. Returns (digest,
        manifest). Moves no content. Idempotent, and inert until a head names it. Raises ``CheckpointDamaged`` for a
        part that is absent, ``CheckpointError`` for parts that do not fit together: a file of two contents."""
        ...

    async def manifest(self, job: JobId, step: int, digest: str) -> Manifest:
        """Raises ``CheckpointDamaged`` if absent or altered, ``CheckpointError`` if the store cannot be read."""
        ...

    async def verify(self, job: JobId, step: int, digest: str, pace: Pace | None = None) -> Manifest:
        """Every chunk present and equal to its digest, else ``CheckpointDamaged``."""
        ...

    async def fetch(self, job: JobId, step: int, digest: str, directory: Path) -> None:
        """Write the checkpoint into ``directory`` (created; fsynced; appears whole or not at all), verifying."""
        ...

    async def copy_from(
        self,
        source: CheckpointStore,
        job: JobId,
        step: int,
        digest: str,
        pace: Pace | None = None,
        told: Told | None = None,
    ) -> int:
        """Bring a checkpoint over from another region, only the chunks that are missing here, and verify it. Returns
        bytes moved. ``pace``: of what moves. ``told``: now and then, and at the end, of how much of it is here."""
        ...

    async def read_chunk(self, digest: str) -> bytes:
        """Raises ``CheckpointError``."""
        ...

    async def remove(self, job: JobId, step: int, digest: str) -> None:
        """Delete a manifest that no head names and nothing is started from. Idempotent. Its chunks go with a sweep."""
        ...

    async def sweep(self, orphan: Callable[[Manifest, str], bool]) -> Swept:
        """Delete the manifests (given with their digest) that are ``orphan``, and the chunks that none of the others
        names, beside uploads that go on. May wait for these. Raises ``CheckpointError``, also if another sweep runs."""
        ...
