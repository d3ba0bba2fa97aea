"""What a ``QueuedExecutor`` remembers across restarts of the agent: one JSON file, replaced whole."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from failover.executors.guardian_state import fsync_directory
from failover.executors.protocol import BadMessage, epoch_number
from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.jobs import ExecutorError

FILE = "queue.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One (job, epoch). ``attempt``: of asking for room, from 0. ``submitted``: the batch system has taken it.
    ``asked``: its guardian was, or is about to be, told to start it."""

    job: str
    epoch: str
    attempt: int = 0
    submitted: bool = False
    asked: bool = False

    @property
    def key(self) -> tuple[JobId, Epoch]:
        return (JobId(self.job), Epoch.parse(self.epoch))


@dataclass(slots=True)
class Queue:
    """``tag``: random, tells these books' tickets from those of books that were lost. ``highest``: epoch ever taken
    per job; lower ones are refused, for ever."""

    tag: str
    highest: dict[JobId, Epoch] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()


def load(directory: Path) -> Queue:
    """Empty if there was never one. Raises ``ExecutorError``: guessing could start an epoch twice."""
    path = directory / FILE
    try:
        values = json.loads(path.read_bytes())
        if values["version"] != VERSION:
            raise ExecutorError(f"{path}: version {values['version']!r} is not {VERSION}; use the agent that wrote it")
        entries = tuple(Entry(**row) for row in values["entries"])
        for entry in entries:
            epoch_number(entry.epoch)
        return Queue(
            str(values["tag"]), {JobId(job): Epoch.parse(epoch) for job, epoch in values["highest"].items()}, entries
        )
    except FileNotFoundError:
        return Queue(os.urandom(4).hex())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BadMessage) as error:
        raise ExecutorError(f"{path}: {error!r}; move it away only when no job of this host runs any more") from error


def save(directory: Path, queue: Queue) -> None:
    """Durable on return. Raises ``ExecutorError``."""
    path = directory / FILE
    values = {
        "version": VERSION,
        "tag": queue.tag,
        "highest": {job: str(epoch) for job, epoch in queue.highest.items()},
        "entries": [asdict(entry) for entry in queue.entries],
    }
    try:
        scratch = path.with_name(FILE + ".new")
        with open(scratch, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        fsync_directory(str(directory))
    except OSError as error:
        raise ExecutorError(f"{path}: {error}; nothing new is started until it can be written") from error
