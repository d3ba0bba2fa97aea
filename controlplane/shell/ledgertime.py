"""Ledger time: wall time at election, advanced on the boot-time clock, so that it never runs back."""

from __future__ import annotations

from gridkeeper.decision import Now
from gridkeeper.ports.clock import Clock


class LedgerTime:
    """``not_before_ms``: the latest ledger time already written; a new leader whose wall clock is behind goes on from
    there."""

    def __init__(self, clock: Clock, not_before_ms: int = 0) -> None:
        self._clock = clock
        self._mono = clock.mono_ms()
        self._base = max(clock.wall_ms(), not_before_ms)

    def now(self, steady_ms: int = 0) -> Now:
        """``steady_ms``: since when this process has kept its own time."""
        mono = self._clock.mono_ms()
        return Now(mono_ms=mono, ledger_ms=self._base + mono - self._mono, steady_ms=steady_ms)
