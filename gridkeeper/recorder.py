"""Turns what the grid tells into rows of a recording. Memory: the newest row of each object that there is, and what is
not written yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from gridkeeper import codec
from gridkeeper import recording as rec
from gridkeeper.client.changes import Change, Gone, Put, Synced
from gridkeeper.ids import DeviceId, JobId, RegionId
from gridkeeper.recording import Cell, Row, Table
from gridkeeper.records.common import Label
from gridkeeper.records.faults import DrainRecord, FindingRecord, IncidentRecord
from gridkeeper.records.fleet import DeviceRecord, EventRecord, HealthRecord, NodeRecord
from gridkeeper.records.jobs import OwnershipRecord
from gridkeeper.telemetry import COLUMN, METRICS
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object, SampleBlock

KINDS = (
    api_pb2.KIND_NODE,
    api_pb2.KIND_DEVICE,
    api_pb2.KIND_EVENT,
    api_pb2.KIND_FINDING,
    api_pb2.KIND_INCIDENT,
    api_pb2.KIND_DRAIN,
    api_pb2.KIND_JOB,
)
"""What a recorder watches. Nodes come first, so that a device finds its node's labels."""

ENDING = {
    int(api_pb2.KIND_EVENT): rec.EVENTS.name,
    int(api_pb2.KIND_FINDING): rec.FINDINGS.name,
    int(api_pb2.KIND_INCIDENT): rec.INCIDENTS.name,
    int(api_pb2.KIND_DRAIN): rec.DRAINS.name,
}
"""Kinds whose objects end, with ids that never come again, and their tables."""

MAX_ROWS = 200_000
"""Rows of telemetry that wait at most before they are due: about 30 MB."""


class Recorder:
    """``take`` and ``sample`` what comes; ``write`` now and then. Going on in a directory that holds a recording, it
    tells again nothing that is in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._last: dict[str, dict[tuple[Cell, ...], Row]] = {
            table.name: rec.newest(directory, table) for table in rec.TABLES.values() if table.changes
        }
        self._rows: dict[str, list[Row]] = {name: [] for name in self._last}
        self._seen: dict[str, set[tuple[Cell, ...]]] = {name: set() for name in self._last}
        self._synced = False
        self._samples: list[pl.DataFrame] = []
        self._labels: dict[str, tuple[Label, ...]] = {}
        self.waiting = 0
        """Rows of telemetry that are not written yet."""

    def take(self, change: Change, now_ms: int) -> None:
        """``now_ms``: wall time, where the change itself does not say when."""
        if isinstance(change, Put):
            for table, row in self._told(change.object, change.as_of_wall_ms or now_ms):
                self._keep(table, row)
        elif isinstance(change, Synced) and not self._synced:  # what was recorded and is not told has ended meanwhile
            for name in ENDING.values():
                self._last[name] = {key: row for key, row in self._last[name].items() if key in self._seen[name]}
            self._seen = {name: set() for name in self._last}
            self._synced = True
        elif isinstance(change, Gone) and change.kind in ENDING:
            self._last[ENDING[change.kind]].pop((change.name,), None)
        elif isinstance(change, Gone) and change.kind == api_pb2.KIND_JOB:
            last = self._last[rec.OWNERSHIP.name].get((change.name,))
            if last is not None:
                self._keep(rec.OWNERSHIP, rec.left_row(JobId(change.name), str(last[2]), now_ms))

    def _told(self, item: Object, at_ms: int) -> list[tuple[Table, Row]]:
        view = item.WhichOneof("view")
        builder = _BUILDERS.get(view or "")
        if view == "node":
            self._labels[item.name] = codec.from_message(NodeRecord, item.node.record).labels
        elif view == "device":
            return self._device(item.device, at_ms)
        elif view == "job":
            return _job(item.job, at_ms)
        elif builder is not None:
            return builder(item, at_ms)
        return []

    def _device(self, view: api_pb2.DeviceView, at_ms: int) -> list[tuple[Table, Row]]:
        record = codec.from_message(DeviceRecord, view.record)
        rows = [(rec.INVENTORY, rec.inventory_row(record, self._labels.get(record.node, ()), at_ms))]
        if view.HasField("health"):
            rows.append((rec.HEALTH, rec.health_row(codec.from_message(HealthRecord, view.health))))
        return rows

    def _keep(self, table: Table, row: Row) -> None:
        places = [list(table.schema).index(column) for column in table.key]
        key = tuple(row[place] for place in places)
        if not self._synced:
            self._seen[table.name].add(key)
        last = self._last[table.name].get(key)
        if last is not None and last[1:] == row[1:]:  # at_ms comes first: the same thing told again
            return
        self._last[table.name][key] = row
        self._rows[table.name].append(row)

    def sample(self, block: SampleBlock) -> None:
        """Rows of telemetry; metrics that this version does not know are left out."""
        rows = len(block.devices)
        told = np.frombuffer(block.values, "<f4").reshape(rows, len(block.metrics))
        values = np.full((rows, len(METRICS)), np.nan, np.float32)
        for place, metric in enumerate(block.metrics):
            if metric in COLUMN:
                values[:, COLUMN[metric]] = told[:, place]
        devices = [DeviceId(device) for device in block.devices]
        self._samples.append(rec.telemetry_frame(devices, np.array(block.at_ms, np.int64), values))
        self.waiting += rows

    def write(self) -> int:
        """Everything that waits, one file per table; the number of rows. Raises ``OSError``; then what could not be
        written still waits."""
        written = 0
        for name, rows in self._rows.items():
            if rows:
                rec.write(self._directory, rec.TABLES[name], rec.frame(rec.TABLES[name], rows))
                written += len(rows)
                rows.clear()
        if self._samples:
            rec.write(self._directory, rec.TELEMETRY, pl.concat(self._samples))
            written += self.waiting
            self._samples, self.waiting = [], 0
        return written


def _job(view: api_pb2.JobView, at_ms: int) -> list[tuple[Table, Row]]:
    """Devices are a job's while its run is not over."""
    if not view.HasField("ownership"):
        return []
    owner = codec.from_message(OwnershipRecord, view.ownership)
    over = view.HasField("run") and view.run.ended_ms > 0
    row = rec.left_row(owner.job, str(owner.epoch), view.run.ended_ms) if over else rec.ownership_row(owner, at_ms)
    return [(rec.OWNERSHIP, row)]


def _finding(item: Object, at_ms: int) -> list[tuple[Table, Row]]:
    finding = codec.from_message(FindingRecord, item.finding)
    return [(rec.FINDINGS, rec.finding_row(finding, finding.observed_ms if finding.active else at_ms))]


_BUILDERS: dict[str, Callable[[Object, int], list[tuple[Table, Row]]]] = {
    "event": lambda item, at_ms: [
        (rec.EVENTS, rec.event_row(codec.from_message(EventRecord, item.event), RegionId(item.region)))
    ],
    "finding": _finding,
    "incident": lambda item, at_ms: [
        (rec.INCIDENTS, rec.incident_row(codec.from_message(IncidentRecord, item.incident)))
    ],
    "drain": lambda item, at_ms: [(rec.DRAINS, rec.drain_row(codec.from_message(DrainRecord, item.drain)))],
}
