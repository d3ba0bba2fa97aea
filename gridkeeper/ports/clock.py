"""Time and chance."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """The only source of time."""

    def mono_ms(self) -> int:
        """Boot-time clock in ms: goes on during suspend, never steps. Durations are measured on it."""
        ...

    def wall_ms(self) -> int:
        """Wall clock, ms since the Unix epoch. May step. Shown, and the base of ledger time; never compared across
        hosts."""
        ...

    async def sleep(self, ms: int) -> None:
        """Wait ``ms`` (0: let others run)."""
        ...


class Rng(Protocol):
    """The only source of chance."""

    def token(self, nbytes: int = 8) -> str:
        """A fresh lower-case hex id of ``nbytes`` random bytes."""
        ...

    def uniform(self, low: float, high: float) -> float: ...
