"""Traces from a recording: what agents saw, on which devices jobs ran, and what was really drained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import polars as pl

from controlplane.backtest.trace import BadTrace, Drained, Fault, Trace
from gridkeeper import recording
from gridkeeper.ids import DeviceId, NodeId, RegionId
from gridkeeper.recording import BadRecording
from gridkeeper.records.common import Action
from gridkeeper.records.faults import DrainState
from gridkeeper.records.fleet import DeviceRecord, EventKind

ADMITTED = frozenset({DrainState.ADMITTED, DrainState.EVACUATING, DrainState.DRAINED, DrainState.EXPIRED})


def is_recording(path: Path) -> bool:
    """A directory is meant as a recording, a file as CSV."""
    return path.is_dir()


def read_recording(directory: Path, region: str = "") -> Trace:
    """The trace of one region. Raises ``BadTrace`` (also when there are several and none is chosen)."""
    try:
        inventory = recording.read(directory, recording.INVENTORY)
        events = recording.read(directory, recording.EVENTS)
        owners = recording.read(directory, recording.OWNERSHIP)
        drains = recording.read(directory, recording.DRAINS)
        health = recording.read(directory, recording.HEALTH)
        sampled = _sampled(directory)
    except BadRecording as error:
        raise BadTrace(str(error)) from error
    chosen = _region(directory, inventory, region)
    inventory = inventory.filter(pl.col("region") == chosen)
    events = events.filter(pl.col("region") == chosen)
    devices = _devices(inventory)
    faults = _faults(directory, events, devices)
    times = [t for frame in (inventory, events) for t in (frame["at_ms"].min(), frame["at_ms"].max())]
    known = [int(str(t)) for t in (*times, *sampled) if t is not None]
    if not known or not devices:
        raise BadTrace(f"{directory}: it holds no inventory of region {chosen}; record for longer")
    notes = (f"region {chosen} of the recording",)
    return Trace(
        devices, faults, min(known), max(known), notes=notes, busy=_busy(owners, chosen, max(known)),
        recorded=_drained(drains.filter(pl.col("region") == chosen), health, faults),
        telemetry=directory if sampled[0] is not None else None,
    )  # fmt: skip


def _sampled(directory: Path) -> tuple[int | None, int | None]:
    """When the first and the last sample were taken; None: there are none. Raises ``BadTrace``."""
    ends = pl.col("at_ms").min().alias("first"), pl.col("at_ms").max().alias("last")
    try:
        first, last = recording.scan(directory, recording.TELEMETRY).select(*ends).collect().row(0)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadTrace(f"{directory}/telemetry: {error}; remove the file that does not read") from error
    return first, last


def _region(directory: Path, inventory: pl.DataFrame, wanted: str) -> RegionId:
    names = sorted(set(inventory["region"].to_list()))
    if wanted:
        if wanted not in names:
            raise BadTrace(f"--region: {wanted!r} is not in {directory}; it holds {', '.join(names) or 'none'}")
        return RegionId(wanted)
    if len(names) != 1:
        raise BadTrace(f"{directory}: it holds {len(names)} regions ({', '.join(names)}); choose one with --region")
    return RegionId(names[0])


def _devices(inventory: pl.DataFrame) -> dict[DeviceId, DeviceRecord]:
    found: dict[DeviceId, DeviceRecord] = {}
    for row in inventory.iter_rows(named=True):
        device = DeviceId(row["device"])
        found[device] = DeviceRecord(
            id=device,
            node=NodeId(row["node"]),
            slot=device.partition("/")[2],
            uuid=row["uuid"] or "",
            vendor=row["vendor"] or "",
            model=row["model"] or "",
            architecture=row["architecture"] or "",
            pci_bus_id="",
            serial=row["serial"] or "",
            memory_mib=row["memory_mib"] or 0,
            driver_version=row["driver_version"] or "",
            rack=row["rack"] or "",
            region=RegionId(row["region"]),
            present=True,
            zone=row["zone"] or "",
        )
    return found


def _faults(directory: Path, events: pl.DataFrame, devices: Mapping[DeviceId, DeviceRecord]) -> tuple[Fault, ...]:
    nodes = {device.node for device in devices.values()}
    found: list[Fault] = []
    for row in events.iter_rows(named=True):
        node, device = NodeId(row["node"]), DeviceId(row["device"] or "")
        if (device and device not in devices) or node not in nodes:
            raise BadTrace(f"{directory}/events: {row['id']}: {device or node} is not in the recorded inventory")
        try:
            kind = EventKind(row["kind"])
        except ValueError:
            raise BadTrace(
                f"{directory}/events: {row['id']}: kind {row['kind']!r} is not known to this version; upgrade"
            ) from None
        sources = tuple(row["sources"] or ())
        found.append(
            Fault(
                row["at_ms"],
                node,
                device,
                kind,
                row["code"],
                row["message"] or "",
                count=row["count"] or 1,
                source="+".join(sources) or "recording",
                id=row["id"],
            )
        )
    return tuple(sorted(found, key=lambda fault: fault.at_ms))


def _busy(owners: pl.DataFrame, region: RegionId, until_ms: int) -> dict[DeviceId, tuple[tuple[int, int], ...]]:
    """When each device had a job."""
    found: dict[DeviceId, list[tuple[int, int]]] = {}
    held: dict[str, tuple[int, tuple[DeviceId, ...]]] = {}
    for row in owners.iter_rows(named=True):
        _left(found, held.pop(row["job"], None), row["at_ms"])
        if row["region"] == region and row["devices"]:
            held[row["job"]] = (row["at_ms"], tuple(DeviceId(d) for d in row["devices"]))
    for since in held.values():
        _left(found, since, until_ms + 1)
    return {device: tuple(spans) for device, spans in found.items()}


def _left(
    found: dict[DeviceId, list[tuple[int, int]]], held: tuple[int, tuple[DeviceId, ...]] | None, at_ms: int
) -> None:
    if held is not None:
        for device in held[1]:
            found.setdefault(device, []).append((held[0], at_ms))


def _drained(drains: pl.DataFrame, health: pl.DataFrame, faults: tuple[Fault, ...]) -> tuple[Drained, ...]:
    """What was really done, as the grid recorded it. Which faults a drain rests on is known by its evidence."""
    states: dict[str, list[dict[str, object]]] = {}
    for row in drains.iter_rows(named=True):
        states.setdefault(row["id"], []).append(row)
    back: dict[str, int] = {}
    for row in health.iter_rows(named=True):
        if row["state"] in ("probation", "healthy") and row["drain"] and row["drain"] not in back:
            back[row["drain"]] = row["at_ms"]
    index = {fault.id: position for position, fault in enumerate(faults)}
    found: list[Drained] = []
    for name, rows in states.items():
        cited = [str(e) for row in rows for e in cast("list[str]", row["evidence"] or [])]
        last, first = rows[-1], rows[0]
        reached = {DrainState(str(row["state"])) for row in rows}
        admitted = next((int(str(row["at_ms"])) for row in rows if DrainState(str(row["state"])) in ADMITTED), 0)
        state = "shadow" if DrainState.SHADOW in reached else "admitted" if admitted else "refused"
        found.append(
            Drained(
                name,
                DeviceId(str(last["device"])),
                state,
                int(str(first["planned_ms"])),
                admitted,
                back.get(name, 0),
                Action.DRAIN,
                str(last["rule"]),
                str(last["reason"]),
                tuple(sorted({index[e] for e in cited if e in index})),
            )
        )
    return tuple(found)
