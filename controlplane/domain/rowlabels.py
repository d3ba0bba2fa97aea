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


class RowLabels:
    """``columns``: labels that expressions name; ``selectors``: of rules. Nothing is kept that nobody asks for. Rows of
    a device that the inventory does not know have no labels: they are unknown, neither selected nor left out."""

    def __init__(self, columns: Iterable[str] = (), selectors: Iterable[Selector] = ()) -> None:
        self._names = tuple(sorted(columns))
        self._selectors = tuple(selectors)
        self._columns: dict[str, pl.Series] = {}
        self._masks: dict[Selector, tuple[Mask, Mask]] = {}

    @property
    def needed(self) -> bool:
        return bool(self._names or self._selectors)

    def refresh(self, table: FleetTable, inventory: Inventory) -> None:
        """Look at every row anew; only when rows or records have changed, and only if ``needed``."""
        texts: dict[str, list[str | None]] = {name: [None] * table.rows for name in self._names}
        masks = {s: (np.zeros(table.rows, np.bool_), np.zeros(table.rows, np.bool_)) for s in self._selectors}
        keys = {key for selector in self._selectors for key in selector.keys} | set(self._names)
        jobs = inventory.jobs() if "job" in keys else {}
        for device, held in inventory.devices.items():
            row = table.row(device)
            if row is None:
                continue
            labels = device_labels(held.record)
            node = inventory.nodes.get(held.record.node)
            if node is not None:
                labels = {label.key: label.value for label in node.record.labels} | labels
            labels["job"] = jobs.get(device, "")
            health = inventory.health.get(device)
            labels["health"] = health.record.state.value if health else "unknown"
            for name in self._names:
                texts[name][row] = labels[name]
            for selector, (selected, outside) in masks.items():
                (selected if selector.matches(labels) else outside)[row] = True
        self._columns = {name: pl.Series(name, values, pl.String) for name, values in texts.items()}
        self._masks = masks

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
