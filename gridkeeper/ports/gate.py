"""Whether the batch system that owns a host may start new work on it."""

from __future__ import annotations

from typing import Protocol


class GateError(Exception):
    """The batch system refuses or does not answer; names what and why."""


class HostGate(Protocol):
    """Of one host. What somebody else has closed stays closed; what he opens is closed again while it should be."""

    @property
    def title(self) -> str:
        """What people call the batch system."""
        ...

    async def close(self, reason: str) -> str:
        """Nothing new is started there. Idempotent. Returns a sentence about what was done, "" if nothing was to be.
        Raises ``GateError``."""
        ...

    async def open(self) -> str:
        """Take back our own closing, nobody else's. Idempotent. Returns and raises as ``close``."""
        ...
