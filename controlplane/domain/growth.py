"""How much counters grew within a window, per row of the fleet table. Pure but for its memory of copies."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import numpy as np
import polars as pl
from numpy.typing import NDArray

from controlplane.domain.fleet import FleetTable
from gridkeeper.policy.terms import Growth

COPIES = 12
"""Copies of a counter's column that span its window: growth is told over at least eleven twelfths of it, never over
more."""


class _Counter:
    """One counter over one window. A counter that fell (the driver was loaded anew) starts again, and so does one that
    was not known: nobody can say within which time it grew."""

    def __init__(self, growth: Growth) -> None:
        self._growth = growth
        self._copies: deque[tuple[int, NDArray[np.float32]]] = deque()

    def hand_over(self, handed: NDArray[np.int64], rows: int) -> None:
        grown = deque[tuple[int, NDArray[np.float32]]]()
        for at_ms, copy in self._copies:
            copy = np.concatenate([copy, np.full(rows - len(copy), np.nan, np.float32)])
            copy[handed] = np.nan
            grown.append((at_ms, copy))
        self._copies = grown

    def take(self, table: FleetTable, known: NDArray[np.bool_], now_ms: int) -> None:
        """Keep a copy when it is time for one."""
        window = self._growth.window_ms
        if not self._copies or now_ms - self._copies[-1][0] >= window // COPIES:
            copy = np.where(known, table.column(self._growth.metric), np.float32(np.nan))
            self._copies.append((now_ms, copy))
        while len(self._copies) > 1 and now_ms - self._copies[0][0] > window:
            self._copies.popleft()

    def series(self, table: FleetTable, known: NDArray[np.bool_]) -> pl.Series:
        column = table.column(self._growth.metric)
        oldest = self._copies[0][1]
        growth = column - oldest
        odd = np.flatnonzero(~(growth >= 0))  # fell, or one of the two is not known
        if odd.size:
            odd = odd[known[odd] & ~np.isnan(column[odd])]
            for _, copy in self._copies:
                copy[odd] = column[odd]
            growth[odd] = 0
        return pl.Series(self._growth.column, growth, nan_to_null=True)


class Growths:
    """Every counter and window that some rule asks for."""

    def __init__(self) -> None:
        self._counters: dict[Growth, _Counter] = {}

    def adopt(self, wanted: Collection[Growth]) -> None:
        """Keep these from now on; what was kept already goes on."""
        self._counters = {growth: self._counters.get(growth) or _Counter(growth) for growth in sorted(wanted)}

    def hand_over(self, handed: NDArray[np.int64], rows: int) -> None:
        """The table has so many rows now, and these are others' than before: nothing is known of their counters."""
        for counter in self._counters.values():
            counter.hand_over(handed, rows)

    def take(self, table: FleetTable, known: NDArray[np.bool_], now_ms: int) -> list[pl.Series]:
        """The growth of each, null where it is not known. ``known``: rows whose newest sample counts."""
        for counter in self._counters.values():
            counter.take(table, known, now_ms)
        return [counter.series(table, known) for counter in self._counters.values()]
