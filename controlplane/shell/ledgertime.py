"""Ledger time: wall time at election, advanced on the boot-time clock, so that it never runs back."""

from __future__ import annotations

from controlplane.shell.states import Records
from gridkeeper.decision import Now
from gridkeeper.ports.clock import Clock


def latest_written(region: Records) -> int:
    """The latest ledger time in a region's accounts, breakers and budgets; 0: there is none. A leader that began before
    it would not count what is wanted until then, since a breaker counts from its last change on."""
    times = [held.record.since_ms for held in region.kind("accounts").values()]
    times += (held.record.since_ms for held in region.kind("breakers").values())
    times += (at for held in region.kind("breakers").values() for at in held.record.passed_ms)
    times += (at for held in region.kind("budgets").values() for at in held.record.begun_ms)
    return max(times, default=0)


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
