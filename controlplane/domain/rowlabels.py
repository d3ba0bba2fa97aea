"""Labels of the devices, by row of the fleet table: what ``select`` chooses by, and what rules see as columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from controlplane.domain.fleet import FleetTable
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, JobId, NodeId
from gridkeeper.memo import differing
from gridkeeper.records.fleet import DeviceRecord, HealthRecord, NodeRecord
from gridkeeper.selector import Selector

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Inventory:
    """Where labels come from: the mirrors of both stores. ``jobs``: device -> the job that holds it, worked out from
    ``jobs_from``; asked only if some rule looks at it."""

    nodes: Mapping[NodeId, Versioned[NodeRecord]] = field(default_factory=dict)
    devices: Mapping[DeviceId, Versioned[DeviceRecord]] = field(default_factory=dict)
    health: Mapping[DeviceId, Versioned[HealthRecord]] = field(default_factory=dict)
    jobs_from: tuple[object, ...] = ()
    jobs: Callable[[], Mapping[DeviceId, JobId]] = dict

    @property
    def parts(self) -> tuple[object, ...]:
        return (self.nodes, self.devices, self.health, *self.jobs_from)


def same(before: tuple[object, ...], now: tuple[object, ...]) -> bool:
    """The very same objects: mappings of a mirror never change once handed out."""
    return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))


def device_labels(record: DeviceRecord) -> dict[str, str]:
    """What its inventory entry says. The node's own labels and what changes (job, health) come besides."""
    return {
        "device": record.id,
        "node": record.node,
        "region": record.region,
        "zone": record.zone,
        "rack": record.rack,
        "vendor": record.vendor,
        "model": record.model,
        "architecture": record.architecture,
    }


OWN = frozenset({"device", "node", "region", "zone", "rack", "vendor", "model", "architecture", "job", "health"})
"""Labels that no label of a node takes the place of."""


class RowLabels:
    """``columns``: labels that expressions name; ``selectors``: of rules. Nothing is kept that nobody asks for. Rows of
    a device that the inventory does not know have no labels: they are unknown, neither selected nor left out."""

    def __init__(self, columns: Iterable[str] = (), selectors: Iterable[Selector] = ()) -> None:
        self._names = tuple(sorted(columns))
        self._selectors = tuple(selectors)
        self._keys = {key for selector in self._selectors for key in selector.keys} | set(self._names)
        self._columns = {name: pl.Series(name, [], pl.String) for name in self._names}
        self._masks: dict[Selector, tuple[Mask, Mask]] = {}
        self._rows = 0
        self._layout = -1
        self._seen: Inventory | None = None
        self._jobs: Mapping[DeviceId, JobId] = {}

    @property
    def needed(self) -> bool:
        return bool(self._names or self._selectors)

    def refresh(self, table: FleetTable, inventory: Inventory) -> None:
        """Look anew at the rows that have changed hands and the devices whose records have changed; only if ``needed``.
        A mapping of ``inventory`` that is the same object as before holds the same."""
        handed = table.handed_after(self._layout).tolist()
        self._fit(table.rows)
        changed, self._jobs = self._changed(inventory)
        self._seen, self._layout = inventory, table.layout
        of_row: dict[int, DeviceId | None] = {}
        of_row |= {row: device for device in changed if (row := table.row(device)) is not None}
        of_row |= {row: table.device_at(row) if table.used[row] else None for row in handed}
        if of_row:
            self._look(of_row, inventory)

    def _fit(self, rows: int) -> None:
        """The table only grows."""
        more = rows - self._rows
        if more <= 0:
            return
        self._rows = rows
        nothing = np.zeros(more, np.bool_)
        for name, held in self._columns.items():
            self._columns[name] = held.extend_constant(None, more)
        for selector in self._selectors:
            before = self._masks.get(selector)
            yes, no = before if before else (nothing[:0], nothing[:0])
            self._masks[selector] = (np.concatenate([yes, nothing]), np.concatenate([no, nothing]))

    def _changed(self, inventory: Inventory) -> tuple[set[DeviceId], Mapping[DeviceId, JobId]]:
        """The devices some of whose labels may be others than at the last look, and the jobs now."""
        before, jobs = self._seen, self._jobs
        if "job" in self._keys and (before is None or not same(before.jobs_from, inventory.jobs_from)):
            jobs = inventory.jobs()
        if before is None:
            return set(inventory.devices), jobs
        changed = set(differing(before.devices, inventory.devices))
        if "health" in self._keys:
            changed |= set(differing(before.health, inventory.health))
        nodes = set(differing(before.nodes, inventory.nodes)) if self._keys - OWN else None
        if nodes:
            changed |= {device for device, held in inventory.devices.items() if held.record.node in nodes}
        if jobs is not self._jobs:
            every = jobs.keys() | self._jobs.keys()
            changed |= {device for device in every if jobs.get(device) != self._jobs.get(device)}
        return changed, jobs

    def _look(self, of_row: Mapping[int, DeviceId | None], inventory: Inventory) -> None:
        texts: dict[str, list[str | None]] = {name: [] for name in self._names}
        for row, device in of_row.items():
            labels = self._labels(device, inventory) if device else None
            for name, values in texts.items():
                values.append(labels[name] if labels else None)
            for selector, (selected, outside) in self._masks.items():
                hit = selector.matches(labels) if labels else False
                selected[row], outside[row] = hit, labels is not None and not hit
        rows = np.fromiter(of_row, np.int64, len(of_row))
        for name, values in texts.items():
            self._columns[name].scatter(rows, pl.Series(values, dtype=pl.String))

    def _labels(self, device: DeviceId, inventory: Inventory) -> dict[str, str] | None:
        held = inventory.devices.get(device)
        if held is None:
            return None
        labels = device_labels(held.record)
        node = inventory.nodes.get(held.record.node)
        if node is not None:
            labels = {label.key: label.value for label in node.record.labels} | labels
        labels["job"] = self._jobs.get(device, "")
        health = inventory.health.get(device)
        labels["health"] = health.record.state.value if health else "unknown"
        return labels

    def column(self, name: str, rows: int) -> pl.Series:
        """A label of all rows, null where it is not known."""
        held = self._columns.get(name)
        if held is not None and len(held) == rows:
            return held
        return pl.Series(name, [None], pl.String).new_from_index(0, rows)

    def selected(self, selector: Selector, rows: int) -> tuple[Mask, Mask]:
        """(the selector holds, it does not hold); both false where the labels are not known."""
        held = self._masks.get(selector)
        if held is not None and len(held[0]) == rows:
            return held
        return np.zeros(rows, np.bool_), np.zeros(rows, np.bool_)
