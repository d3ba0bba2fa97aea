"""The ranks of simulated gangs, which step together, as collectives make real ones do.

A step is done when every rank is there for it; without one of them the others wait. Who is told to stop tells the rest
with the next step, so all of them stop after the same one.
"""

from __future__ import annotations

from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.jobs import Launch


class Ensemble:
    """Of all gangs of a simulated grid."""

    def __init__(self) -> None:
        self._at: dict[tuple[JobId, Epoch], dict[int, int]] = {}
        self._last: dict[tuple[JobId, Epoch], int] = {}

    def together(self, launch: Launch, step: int) -> bool:
        """This rank is there for ``step``; whether all are."""
        if launch.spec.members == 1:
            return True
        at = self._at.setdefault((launch.job, launch.epoch), {})
        at[launch.rank] = step
        return len(at) == launch.spec.members and min(at.values()) >= step

    def stop(self, launch: Launch, step: int) -> None:
        """This rank, which has done ``step``, was told to stop: the last step is the one that some rank waits for."""
        at = self._at.get((launch.job, launch.epoch), {})
        started = launch.spec.members > 1 and len(at) == launch.spec.members
        self._last.setdefault((launch.job, launch.epoch), max(at.values()) if started else step)

    def over(self, launch: Launch, step: int) -> bool:
        """Whether ``step`` was the last one of this epoch."""
        last = self._last.get((launch.job, launch.epoch))
        return last is not None and step >= last
