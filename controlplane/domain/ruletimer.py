"""How long a condition has been seen to hold, per row of the fleet table. Pure but for its memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Row numbers, ascending, each once."""
Mask = NDArray[np.bool_]

NO_ROWS: Rows = np.zeros(0, np.int64)
LONGEST_MS = 1 << 30
"""Twelve days: longer than any rule may ask for, and no overflow of what is added up."""


class Timer:
    """Counts from sample to sample: time in which nothing was sampled, or the condition was not known, does not count,
    and does not reset what had been counted. One sample alone has held for no time."""

    def __init__(self, for_ms: int) -> None:
        self.for_ms = for_ms
        self.running: Rows = NO_ROWS
        self._held: NDArray[np.int32] = np.zeros(0, np.int32)
        self._sure: Mask = np.zeros(0, np.bool_)  # it held at the row's last sample

    def begin(self, rows: int) -> None:
        """Forget everything; the table has so many rows."""
        if self.for_ms:
            self.running = NO_ROWS
            self._held = np.full(rows, -1, np.int32)
            self._sure = np.zeros(rows, np.bool_)

    def hand_over(self, handed: Rows, rows: int) -> None:
        """The table has so many rows now, and these are others' than before: what was counted there is forgotten."""
        if not self.for_ms:
            return
        more = rows - len(self._held)
        self._held = np.concatenate([self._held, np.full(more, -1, np.int32)])
        self._sure = np.concatenate([self._sure, np.zeros(more, np.bool_)])
        self._held[handed], self._sure[handed] = -1, False
        self.running = np.setdiff1d(self.running, handed, assume_unique=True)

    def advance(
        self,
        yes: Rows,
        no: Callable[[Rows], Mask],
        seen_ms: NDArray[np.int64],
        before_ms: NDArray[np.int64],
        gap_ms: int,
    ) -> Rows:
        """Where it has held for ``for_ms``. ``yes``: where it is known to hold now; ``no``: where (of some rows) it is
        known not to. ``seen_ms``, ``before_ms``: of each row, the newest sample now and at the last call; a step longer
        than ``gap_ms`` was not observed."""
        if not self.for_ms:
            return yes
        waiting = np.setdiff1d(self.running, yes, assume_unique=True)
        if waiting.size:
            ended = waiting[no(waiting)]
            self._held[ended] = -1
            self._sure[waiting] = False
            waiting = waiting[self._held[waiting] >= 0]
        if yes.size:
            step = seen_ms[yes] - before_ms[yes]
            counts = self._sure[yes] & (step > 0) & (step <= gap_ms)
            held = np.maximum(self._held[yes], 0) + np.where(counts, step, 0)
            self._held[yes] = np.minimum(held, LONGEST_MS)
            self._sure[yes] = True
        self.running = np.union1d(yes, waiting) if waiting.size else yes
        return yes[self._held[yes] >= self.for_ms]
