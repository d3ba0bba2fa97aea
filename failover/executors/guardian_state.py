"""What the guardian remembers: the highest epoch per job and the runs that exist: one JSON file, replaced whole."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field

from failover.executors.protocol import BadMessage, RunState, decode_run, epoch_number

FILE = "guardian.json"
VERSION = 1


class BadState(Exception):
    """The state file does not decode. Guessing could start an epoch twice, so nothing is started."""


@dataclass(slots=True)
class State:
    """``tag``: random, marks this guardian's processes. ``boot_id``: of the host when it was written."""

    tag: str
    boot_id: str
    highest: dict[str, str] = field(default_factory=dict)
    runs: list[RunState] = field(default_factory=list)


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def fsync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def load(directory: str) -> State | None:
    """None: there was never one. Raises ``BadState``."""
    path = os.path.join(directory, FILE)
    try:
        with open(path, "rb") as file:
            values = json.loads(file.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadState(f"{path}: {error}; move it away only when no job of this host runs any more") from error
    try:
        if values["version"] != VERSION:
            raise BadState(f"{path}: version {values['version']!r} is not {VERSION}; use the guardian that wrote it")
        highest = {str(job): str(epoch) for job, epoch in values["highest"].items()}
        for epoch in highest.values():
            epoch_number(epoch)
        return State(str(values["tag"]), str(values["boot_id"]), highest, [decode_run(run) for run in values["runs"]])
    except (KeyError, TypeError, AttributeError, BadMessage) as error:
        raise BadState(f"{path}: {error!r}; move it away only when no job of this host runs any more") from error


def save(directory: str, state: State) -> None:
    """Durable on return. Raises ``OSError``."""
    path = os.path.join(directory, FILE)
    values = {
        "version": VERSION,
        "tag": state.tag,
        "boot_id": state.boot_id,
        "highest": state.highest,
        "runs": [asdict(run) for run in state.runs],
    }
    with open(path + ".new", "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(values, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)
    fsync_directory(directory)
