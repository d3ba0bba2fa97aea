"""What a batch system (Slurm, Kubernetes) is asked for: to start one guardian on this host, when it has room."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gridkeeper.records.jobs import JobSpec


class BatchError(Exception):
    """The batch system refuses; the message names what and why."""


class BatchUnavailable(BatchError):
    """No answer: it may or may not have been done. Look with ``find``."""


class Standing(enum.StrEnum):
    WAITING = "waiting"  # no process of it has been started
    RUNNING = "running"  # or is being started or ended
    ENDED = "ended"  # no process of it is left, as far as the batch system knows


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a ticket stands. ``detail``: in the batch system's words."""

    standing: Standing
    detail: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request for room. ``command`` runs on this host, as this user; what it says goes to ``log``. ``spec`` and
    ``slots`` say how much room, and of what kind."""

    name: str
    command: tuple[str, ...]
    log: Path
    spec: JobSpec
    slots: tuple[str, ...]


class BatchSystem(Protocol):
    """Tickets are known by their names, so that one whose reply was lost is found again. Each call ends within its own
    time limit."""

    @property
    def title(self) -> str:
        """What people call it."""
        ...

    async def find(self, names: Sequence[str]) -> dict[str, Placed]:
        """Those of ``names`` that it knows. Raises ``BatchError``."""
        ...

    async def submit(self, ticket: Ticket) -> None:
        """Ask for room. It is never started a second time by itself. Raises ``BatchError``."""
        ...

    async def cancel(self, name: str) -> None:
        """Give the place up; what runs there is ended (SIGTERM, later SIGKILL). Idempotent. Raises ``BatchError``."""
        ...
