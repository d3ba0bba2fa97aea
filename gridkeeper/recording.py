"""The shape of a recording: a directory with one folder of Parquet files per table, written by ``gridkeeper record``
and replayed by ``gridkeeper backtest``.

Times are wall ms of the ledger or of the replica that received the thing; never a sender's. Every table but telemetry
holds *changes*: a row is what an object was from ``at_ms`` on, so that the last row of an id up to a moment is what was
known then. Files are complete or absent: written under another name, fsynced, renamed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gridkeeper.ids import DeviceId, JobId, NodeId, RegionId
from gridkeeper.records.common import Label
from gridkeeper.records.faults import DrainRecord, FindingRecord, IncidentRecord
from gridkeeper.records.fleet import DeviceRecord, EventRecord, HealthRecord
from gridkeeper.records.jobs import OwnershipRecord
from gridkeeper.telemetry import METRICS

VERSION = 1
"""Of the layout. Columns are only ever appended: a reader fills those that an older file lacks with null (a metric:
unknown) and leaves out those that it does not know."""

Cell = str | int | float | bool | list[str] | None
Row = tuple[Cell, ...]


class BadRecording(ValueError):
    """A directory or file that is no recording; the message names it, what is wrong and the remedy."""


@dataclass(frozen=True, slots=True)
class Table:
    """``key``: the columns that name an object; a row of changes differs from the one before of the same key.
    ``changes``: False for samples."""

    name: str
    schema: Mapping[str, pl.DataType]
    key: tuple[str, ...]
    meaning: str
    changes: bool = True


T, I, F, B, L = pl.String(), pl.Int64(), pl.Float32(), pl.Boolean(), pl.List(pl.String())  # noqa: E741

INVENTORY = Table(
    "inventory",
    {
        "at_ms": I, "device": T, "node": T, "region": T, "zone": T, "rack": T, "vendor": T, "model": T,
        "architecture": T, "uuid": T, "serial": T, "memory_mib": I, "driver_version": T, "present": B, "labels": L,
    },
    ("device",),
    "what is there; `labels` are the node's own, as key=value",
)  # fmt: skip
EVENTS = Table(
    "events",
    {
        "at_ms": I, "id": T, "region": T, "node": T, "device": T, "kind": T, "code": I, "message": T, "sources": L,
        "count": I, "pid": I, "job": T, "age_ms": I, "trace": T,
    },
    ("id",),
    "what agents saw; `at_ms`: when (receiver's clock less the age that the sender gave); device \"\": the node",
)  # fmt: skip
TELEMETRY = Table(
    "telemetry",
    {"at_ms": I, "device": T, **{metric.name: F for metric in METRICS}},
    ("device", "at_ms"),
    "samples: one column per metric of gridkeeper.telemetry; NaN: not known",
    changes=False,
)
OWNERSHIP = Table(
    "ownership",
    {"at_ms": I, "job": T, "epoch": T, "region": T, "node": T, "devices": L},
    ("job",),
    "which devices a job has; none: it has left them",
)
FINDINGS = Table(
    "findings",
    {
        "at_ms": I, "id": T, "region": T, "node": T, "device": T, "scope": T, "fault_class": T, "code": T,
        "severity": T, "action": T, "sentence": T, "evidence": L, "observed_ms": I, "rule": T, "rule_version": I,
        "active": B, "source": T, "confidence": T, "shadow": B, "count": I,
    },
    ("id",),
    "what detection concluded, and when it cleared",
)  # fmt: skip
HEALTH = Table(
    "health",
    {"at_ms": I, "device": T, "node": T, "state": T, "reason": T, "rule": T, "rule_version": I, "drain": T},
    ("device",),
    "states of devices",
)
INCIDENTS = Table(
    "incidents",
    {
        "at_ms": I, "id": T, "region": T, "subject": T, "fault_class": T, "state": T, "severity": T, "title": T,
        "opened_ms": I, "findings": L, "drain": T,
    },
    ("id",),
    "what people were told",
)  # fmt: skip
DRAINS = Table(
    "drains",
    {
        "at_ms": I, "id": T, "region": T, "node": T, "device": T, "state": T, "reason": T, "evidence": L, "rule": T,
        "rule_version": I, "policy_version": I, "requested_by": T, "planned_ms": I, "jobs": L, "incident": T,
    },
    ("id",),
    "decisions to take devices out, each step of them",
)  # fmt: skip

TABLES: dict[str, Table] = {
    table.name: table for table in (INVENTORY, EVENTS, TELEMETRY, OWNERSHIP, FINDINGS, HEALTH, INCIDENTS, DRAINS)
}


# -- rows: the columns of a table, in its order ------------------------------------------------------------------------


def inventory_row(device: DeviceRecord, labels: Iterable[Label], at_ms: int) -> Row:
    return (
        at_ms, device.id, device.node, device.region, device.zone, device.rack, device.vendor, device.model,
        device.architecture, device.uuid, device.serial, device.memory_mib, device.driver_version, device.present,
        [f"{label.key}={label.value}" for label in labels],
    )  # fmt: skip


def event_row(event: EventRecord, region: RegionId) -> Row:
    return (
        event.observed_ms, event.id, region, event.node, event.device, event.kind.value, event.code, event.message,
        list(event.sources), event.count, event.pid, event.job, event.age_ms, event.trace,
    )  # fmt: skip


def ownership_row(owner: OwnershipRecord, at_ms: int) -> Row:
    return (at_ms, owner.job, str(owner.epoch), owner.region, owner.node, list(owner.devices))


def left_row(job: JobId, epoch: str, at_ms: int) -> Row:
    """The job has left its devices."""
    return (at_ms, job, epoch, "", "", [])


def finding_row(finding: FindingRecord, at_ms: int) -> Row:
    """``at_ms``: when it was raised or cleared."""
    return (
        at_ms, finding.id, finding.region, finding.node, finding.device, finding.scope.value, finding.fault_class,
        finding.code, finding.severity.value, finding.action.value, finding.sentence, list(finding.evidence),
        finding.observed_ms, finding.rule, finding.rule_version, finding.active, finding.source,
        finding.confidence.value, finding.shadow, finding.count,
    )  # fmt: skip


def health_row(health: HealthRecord) -> Row:
    return (
        health.since_ms, health.device, health.node, health.state.value, health.reason, health.rule,
        health.rule_version, health.drain,
    )  # fmt: skip


def incident_row(incident: IncidentRecord) -> Row:
    return (
        max(incident.opened_ms, incident.last_ms, incident.resolved_ms), incident.id, incident.region,
        incident.subject, incident.fault_class, incident.state.value, incident.severity.value, incident.title,
        incident.opened_ms, list(incident.findings), incident.drain,
    )  # fmt: skip


def drain_row(drain: DrainRecord) -> Row:
    at_ms = max((stage.at_ms for stage in drain.stages), default=drain.planned_ms)
    return (
        at_ms, drain.id, drain.region, drain.node, drain.device, drain.state.value, drain.reason,
        list(drain.evidence), drain.rule, drain.rule_version, drain.policy_version, drain.requested_by,
        drain.planned_ms, list(drain.jobs), drain.incident,
    )  # fmt: skip


def frame(table: Table, rows: Sequence[Row]) -> pl.DataFrame:
    """Rows as a frame of the table's schema."""
    return pl.DataFrame(rows, schema=dict(table.schema), orient="row")


def telemetry_frame(devices: Sequence[DeviceId], at_ms: NDArray[np.int64], values: NDArray[np.float32]) -> pl.DataFrame:
    """``values``: one row per device, one column per metric in the order of ``METRICS``."""
    if values.shape != (len(devices), len(METRICS)):
        raise BadRecording(f"telemetry: a block of shape {values.shape} for {len(devices)} devices × {len(METRICS)}")
    columns = {metric.name: np.ascontiguousarray(values[:, i]) for i, metric in enumerate(METRICS)}
    return pl.DataFrame({"at_ms": at_ms, "device": devices, **columns}, schema=dict(TELEMETRY.schema))


# -- files -------------------------------------------------------------------------------------------------------------

_FILE = re.compile(r"^(\d{15})-(\d{6})\.parquet$")


def files_of(directory: Path, table: Table) -> tuple[Path, ...]:
    """Complete files of a table, oldest first. Leftovers of a crash are not among them."""
    folder = directory / table.name
    if not folder.is_dir():
        return ()
    return tuple(sorted(path for path in folder.iterdir() if _FILE.match(path.name)))


def write(directory: Path, table: Table, rows: pl.DataFrame) -> Path:
    """One more file, in order of ``at_ms``: complete after this returns, absent if the process dies before. Raises
    ``OSError``."""
    folder = directory / table.name
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows.sort("at_ms", maintain_order=True)
    first_ms = max(0, int(rows["at_ms"][0])) if rows.height else 0
    taken = [int(found[2]) for path in folder.iterdir() if (found := _FILE.match(path.name))]
    final = folder / f"{first_ms:015d}-{max(taken, default=-1) + 1:06d}.parquet"
    half = final.with_suffix(".half")
    with half.open("wb") as file:
        rows.write_parquet(file, compression="zstd", metadata={"gridkeeper": f"{table.name} {VERSION}"})
        file.flush()
        os.fsync(file.fileno())
    half.rename(final)
    parent = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    return final


def scan(directory: Path, table: Table) -> pl.LazyFrame:
    """All rows of a table, unordered; with none recorded, an empty frame of its schema. Raises ``BadRecording`` if the
    directory is no recording."""
    if not any((directory / name).is_dir() for name in TABLES):
        raise BadRecording(f"{directory}: no recording; name a directory that 'gridkeeper record --out' wrote")
    files = files_of(directory, table)
    if not files:
        return pl.LazyFrame(schema=dict(table.schema))
    return pl.scan_parquet(
        list(files), schema=dict(table.schema), missing_columns="insert", extra_columns="ignore", glob=False
    )


def read(directory: Path, table: Table) -> pl.DataFrame:
    """All rows of a table in order of ``at_ms`` (then as written). Raises ``BadRecording``."""
    try:
        rows = scan(directory, table).collect().sort("at_ms", maintain_order=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadRecording(f"{directory}/{table.name}: {error}; remove the file that does not read") from error
    return rows.unique("id", keep="first", maintain_order=True) if table is EVENTS else rows


def newest(directory: Path, table: Table) -> dict[tuple[Cell, ...], Row]:
    """Key -> the last row that was recorded of it: where a recorder goes on. Raises ``BadRecording``."""
    if not files_of(directory, table):
        return {}
    places = [list(table.schema).index(column) for column in table.key]
    rows = read(directory, table).rows()
    return {tuple(row[place] for place in places): row for row in rows}


def nodes_of(inventory: pl.DataFrame) -> dict[DeviceId, NodeId]:
    """Device -> its node, from rows of the inventory."""
    return {DeviceId(device): NodeId(node) for device, node in inventory.select("device", "node").iter_rows()}
