"""The fleet table: one float32 column per metric, one row per device, with a short ring of the past.

A block of telemetry goes in as it came over the wire, with no work per value. What has not been heard is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.telemetry import COLUMN, METRICS

RING = 60
"""Samples kept per device and metric for sparklines: a minute at one a second."""
_FIRST_ROWS = 64
_COLUMNS = len(METRICS)
NEVER_MS = -(1 << 62)


class BadTelemetry(ValueError):
    """A block that does not fit its node's inventory; the message names what differs and the remedy."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of the table: whose, when sampled, one line of values each, and the newest of these times."""

    devices: tuple[DeviceId, ...]
    seen_ms: NDArray[np.int64]
    values: NDArray[np.float32]
    newest_ms: int


class FleetTable:
    """Rows of a node are contiguous, in its inventory's order. Times are this process's boot-time clock, ms. ``ring``:
    samples kept per device."""

    def __init__(self, ring: int = RING) -> None:
        self._keeps = ring
        self._free_from = 0  # no row before this one is free
        self._values: NDArray[np.float32] = np.full((_COLUMNS, _FIRST_ROWS), np.nan, dtype=np.float32)
        self._ring: NDArray[np.float32] = np.full((_FIRST_ROWS, ring, _COLUMNS), np.nan, dtype=np.float32)
        self._taken = np.zeros(_FIRST_ROWS, dtype=np.int64)
        self._seen = np.full(_FIRST_ROWS, NEVER_MS, dtype=np.int64)
        self._used = np.zeros(_FIRST_ROWS, dtype=np.bool_)
        self._nodes: dict[NodeId, tuple[int, tuple[DeviceId, ...]]] = {}
        self._rows: dict[DeviceId, int] = {}
        self._ids: list[DeviceId] = [DeviceId("")] * _FIRST_ROWS
        self._handed = np.zeros(_FIRST_ROWS, dtype=np.int64)
        self._waiting: dict[int, tuple[int, bytes, int]] = {}  # first row -> rows, values, when sampled
        self.layout = 0
        """Grows whenever a row changes hands: state kept per row must then be looked at again."""

    def register(self, node: NodeId, devices: Sequence[DeviceId]) -> None:
        """Give a node its rows, all unknown. The same inventory again keeps its rows and their past."""
        devices = tuple(devices)
        held = self._nodes.get(node)
        if held is not None and held[1] == devices:
            return
        self.forget(node)
        start = self._room(len(devices))
        self._nodes[node] = (start, devices)
        for row, device in enumerate(devices, start):
            self._rows[device] = row
            self._ids[row] = device
        rows = slice(start, start + len(devices))
        self._used[rows] = True
        self._clear(rows)
        self.layout += 1

    def forget(self, node: NodeId) -> None:
        """Give the rows back; nothing happens for a node that has none."""
        held = self._nodes.pop(node, None)
        if held is None:
            return
        start, devices = held
        if devices:  # without any, what waits at its first row is another node's
            self._waiting.pop(start, None)
        for device in devices:
            self._rows.pop(device, None)
        rows = slice(start, start + len(devices))
        self._used[rows] = False
        self._free_from = min(self._free_from, start)
        self._clear(rows)
        self.layout += 1

    def handed_after(self, layout: int) -> NDArray[np.int64]:
        """Rows that have changed hands since ``layout`` was as it is given: what was kept of them is of another."""
        return np.flatnonzero(self._handed > layout)

    def _clear(self, rows: slice) -> None:
        self._handed[rows] = self.layout + 1
        self._values[:, rows] = np.nan
        self._ring[rows] = np.nan
        self._taken[rows] = 0
        self._seen[rows] = NEVER_MS

    def _room(self, count: int) -> int:
        """The first row of ``count`` free ones in a run; the table doubles until there is one."""
        while True:
            while self._free_from < len(self._used) and self._used[self._free_from]:
                self._free_from += 1
            free = 0
            for row in range(self._free_from, len(self._used)):
                free = 0 if self._used[row] else free + 1
                if free >= count:
                    return row - count + 1
            self._grow()

    def _grow(self) -> None:
        size = len(self._used)
        self._values = np.concatenate([self._values, np.full((_COLUMNS, size), np.nan, dtype=np.float32)], axis=1)
        self._ring = np.concatenate([self._ring, np.full((size, self._keeps, _COLUMNS), np.nan, dtype=np.float32)])
        self._taken = np.concatenate([self._taken, np.zeros(size, dtype=np.int64)])
        self._seen = np.concatenate([self._seen, np.full(size, NEVER_MS, dtype=np.int64)])
        self._used = np.concatenate([self._used, np.zeros(size, dtype=np.bool_)])
        self._handed = np.concatenate([self._handed, np.zeros(size, dtype=np.int64)])
        self._ids += [DeviceId("")] * size

    def ingest(self, node: NodeId, values: bytes, rows: int, columns: int, seen_ms: int) -> None:
        """Put a block of little-endian float32 (``rows`` × ``columns``, row by row) where it belongs.

        Raises ``BadTelemetry``; then nothing is changed.
        """
        held = self._nodes.get(node)
        if held is None:
            raise BadTelemetry(f"telemetry: node {node} has no inventory here; send hello first")
        start, devices = held
        if rows != len(devices):
            raise BadTelemetry(
                f"telemetry.rows: {rows} where {node}'s hello has {len(devices)} devices; send hello again"
            )
        if columns != _COLUMNS:
            raise BadTelemetry(f"telemetry.columns: {columns} where the schema has {_COLUMNS}; upgrade the agent")
        if len(values) != rows * columns * 4:
            raise BadTelemetry(
                f"telemetry.values: {len(values)} bytes where {rows} × {columns} float32 take {rows * columns * 4}"
            )
        if not rows:  # a node without devices has no rows: the next node's may begin there
            return
        if start in self._waiting:
            self.settle()
        self._waiting[start] = (rows, values, seen_ms)

    def settle(self) -> None:
        """Put what came since the last look where it belongs, as each look does first: at once for all nodes, because
        per node it would cost more than receiving it."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        counts = [rows for rows, _, _ in waiting.values()]
        block = np.frombuffer(b"".join(values for _, values, _ in waiting.values()), dtype="<f4").reshape(-1, _COLUMNS)
        infinite = np.isinf(block)
        if infinite.any():  # no sensor says that: not known
            block = np.where(infinite, np.float32(np.nan), block)
        first = np.repeat(np.fromiter(waiting, np.int64, len(waiting)), counts)
        ends = np.cumsum(counts)
        index = first + np.arange(len(first)) - np.repeat(ends - counts, counts)
        self._values[:, index] = block.T
        self._ring[index, self._taken[index] % self._keeps] = block
        self._taken[index] += 1
        self._seen[index] = np.repeat([seen_ms for _, _, seen_ms in waiting.values()], counts)

    # -- reading --

    @property
    def rows(self) -> int:
        """Rows in the table, free ones included: the length of every column."""
        return len(self._used)

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which rows belong to a device. A view."""
        return self._used

    @property
    def seen_ms(self) -> NDArray[np.int64]:
        """When each row's sample was taken. A view."""
        self.settle()
        return self._seen

    def column(self, metric: str) -> NDArray[np.float32]:
        """All rows of one metric. A view; raises ``KeyError``."""
        self.settle()
        column: NDArray[np.float32] = self._values[COLUMN[metric]]
        return column

    def newer(self, after_ms: int) -> Rows:
        """Copies of the rows whose sample was taken after ``after_ms``, in the table's order."""
        self.settle()
        rows = np.flatnonzero(self._used & (self._seen > after_ms))
        seen = self._seen[rows]
        newest = int(seen.max()) if len(rows) else after_ms
        return Rows(tuple(self._ids[row] for row in rows.tolist()), seen, self._values[:, rows].T.copy(), newest)

    def device_at(self, row: int) -> DeviceId:
        return self._ids[row]

    def row(self, device: DeviceId) -> int | None:
        return self._rows.get(device)

    def value(self, device: DeviceId, metric: str) -> float:
        """The newest value; NaN if not known."""
        self.settle()
        row = self._rows.get(device)
        return float("nan") if row is None else float(self._values[COLUMN[metric], row])

    def seen(self, device: DeviceId) -> int | None:
        """When the newest sample was taken; None: there is none."""
        self.settle()
        row = self._rows.get(device)
        return None if row is None or self._seen[row] == NEVER_MS else int(self._seen[row])

    def recent(self, device: DeviceId, metric: str) -> tuple[float, ...]:
        """The ring of one metric, oldest first."""
        self.settle()
        row = self._rows.get(device)
        if row is None:
            return ()
        taken = int(self._taken[row])
        count = min(taken, self._keeps)
        order = [(taken - count + i) % self._keeps for i in range(count)]
        return tuple(float(v) for v in self._ring[row, order, COLUMN[metric]])
