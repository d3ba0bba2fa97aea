"""The rows that a query needs of what this replica holds. No SQL is run here: the client gathers rows from all replicas
of all regions and runs the query over all of them, in a process of its own with limits.

Telemetry of a node is with the replica that holds its stream, so each replica answers for the devices of its nodes; for
those that nobody hears, the replica with the lowest name does.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import polars as pl

from controlplane.rpc import partial
from controlplane.rpc.listing import scene_of
from controlplane.rpc.refusal import Refusal, invalid
from controlplane.rpc.rows import Scene
from controlplane.rpc.sources import Newest, Views
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.policy.columns import AGE, Type
from gridkeeper.query.sql import BadQuery, checked
from gridkeeper.query.tables import TABLES
from gridkeeper.v1 import api_pb2

AT_ONCE = 2
"""Queries that one replica answers at the same time; another one is refused, not queued."""
MOST_BYTES = 64 * 1024 * 1024
STALE_MS = 15_000
"""As for rules: an older sample is not known."""

POLARS: dict[Type, Any] = {Type.TEXT: pl.String, Type.NUMBER: pl.Float64, Type.TRUTH: pl.Boolean}

KINDS: dict[str, int] = {
    "devices": api_pb2.KIND_DEVICE,
    "nodes": api_pb2.KIND_NODE,
    "incidents": api_pb2.KIND_INCIDENT,
    "drains": api_pb2.KIND_DRAIN,
    "jobs": api_pb2.KIND_JOB,
}


class QueryDesk:
    """Answers ``Query``. Rows are put together in a thread: the event loop goes on."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._running = 0

    async def rows(self, request: api_pb2.QueryRequest) -> api_pb2.QueryResponse:
        """Raises ``Refusal``."""
        try:
            query = checked(request.sql)
        except BadQuery as error:
            raise invalid(str(error)) from error
        if self._running >= AT_ONCE:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"this replica answers {AT_ONCE} queries already; ask again in a moment",
            )
        self._running += 1
        work = asyncio.ensure_future(self._rows(query.columns))
        work.add_done_callback(self._ended)
        # Who hangs up stops no thread: its place is free when the rows are put together, and not before.
        return await asyncio.shield(work)

    def _ended(self, work: asyncio.Future[api_pb2.QueryResponse]) -> None:
        self._running -= 1
        if not work.cancelled():
            work.exception()  # told to whoever waits; nobody may

    async def _rows(self, wanted: Mapping[str, tuple[str, ...]]) -> api_pb2.QueryResponse:
        scene, info = scene_of(self._views), self._views.info()
        devices: tuple[DeviceId, ...] = ()
        samples: Newest | None = None
        if "devices" in wanted:
            devices = await asyncio.to_thread(answered_for, scene, info.replica)
            metrics = tuple(m for name in wanted["devices"] if (m := TABLES["devices"][name].metric))
            samples = self._views.newest(metrics, devices) if metrics or AGE.name in wanted["devices"] else None
        tables = await asyncio.to_thread(_tables, wanted, scene, devices, samples)
        size = sum(len(table.rows) for table in tables)
        if size > MOST_BYTES:
            raise invalid(
                f"sql: the columns that it reads take {size} bytes here, and at most {MOST_BYTES} are sent; name the "
                "columns that you need instead of *"
            )
        kinds = tuple(KINDS[name] for name in wanted)
        return api_pb2.QueryResponse(
            tables=tables, partial=partial.sentences(kinds, scene, info), as_of_wall_ms=info.wall_ms
        )


def answered_for(scene: Scene, replica: str) -> tuple[DeviceId, ...]:
    """The devices whose rows this replica gives, in order of their names."""
    region = scene.region
    first = min(region.replicas, default=replica)
    mine: set[NodeId] = set()
    for node in {device.record.node for device in region.devices.values()}:
        session = region.sessions.get(node)
        holder = session.record.replica if session and session.record.open else ""
        if (holder if holder in region.replicas else first) == replica:
            mine.add(node)
    return tuple(sorted(name for name, device in region.devices.items() if device.record.node in mine))


def _tables(
    wanted: Mapping[str, tuple[str, ...]], scene: Scene, devices: tuple[DeviceId, ...], samples: Newest | None
) -> list[api_pb2.QueryTable]:
    found = []
    for table, columns in wanted.items():
        if table == "devices":
            frame = _devices(columns, scene, devices, samples)
        else:
            frame = _frame(table, columns, ROWS[table](scene))
        buffer = io.BytesIO()
        frame.write_ipc_stream(buffer, compression="zstd")
        found.append(api_pb2.QueryTable(name=table, rows=buffer.getvalue()))
    return found


def _frame(table: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    held = list(rows)
    return pl.DataFrame(
        [pl.Series(name, [row[name] for row in held], POLARS[TABLES[table][name].type]) for name in columns]
    )


def _devices(
    columns: Sequence[str], scene: Scene, devices: tuple[DeviceId, ...], samples: Newest | None
) -> pl.DataFrame:
    region, jobs, specs = scene.region, scene.device_jobs, TABLES["devices"]
    fields: dict[str, Callable[[DeviceId], Any]] = {
        "device": lambda d: d,
        "job": lambda d: jobs.get(d, ""),
        "health": lambda d: h.record.state.value if (h := region.health.get(d)) else "unknown",
        "health_reason": lambda d: h.record.reason if (h := region.health.get(d)) else "",
        "health_since_ms": lambda d: h.record.since_ms if (h := region.health.get(d)) else None,
        "cordoned": lambda d: d in region.cordons or region.devices[d].record.node in region.cordons,
    }
    found: list[pl.Series] = []
    ages = samples.age_ms if samples else np.zeros(0, np.int64)
    for name in columns:
        metric = specs[name].metric
        if metric and samples:
            values = samples.values[metric].copy()
            values[(ages < 0) | (ages > STALE_MS)] = np.nan
            found.append(pl.Series(name, values, nan_to_null=True))
        elif name == AGE.name:
            found.append(pl.Series(name, [int(age) if age >= 0 else None for age in ages], pl.Int64))
        elif name in fields:
            read = fields[name]
            found.append(pl.Series(name, [read(device) for device in devices], POLARS[specs[name].type]))
        else:
            texts = [getattr(region.devices[device].record, name) for device in devices]
            found.append(pl.Series(name, texts, POLARS[specs[name].type]))
    return pl.DataFrame(found)


def _nodes(scene: Scene) -> Iterable[Mapping[str, Any]]:
    region = scene.region
    for name, node in region.nodes.items():
        liveness = region.liveness.get(name)
        yield {
            "node": name,
            "region": region.region,
            "zone": node.record.zone,
            "rack": node.record.rack,
            "state": liveness.record.state.value if liveness else "unknown",
            "state_reason": liveness.record.reason if liveness else "",
            "cordoned": name in region.cordons,
            "devices": len(node.record.devices),
            "agent_version": node.record.agent_version,
        }


def _incidents(scene: Scene) -> Iterable[Mapping[str, Any]]:
    for held in scene.region.incidents.values():
        r = held.record
        yield {
            "incident": r.id,
            "region": r.region,
            "subject": r.subject,
            "fault_class": r.fault_class,
            "state": r.state.value,
            "severity": r.severity.value,
            "title": r.title,
            "opened_ms": r.opened_ms,
            "resolved_ms": r.resolved_ms,
            "count": r.count,
            "drain": r.drain,
        }


def _drains(scene: Scene) -> Iterable[Mapping[str, Any]]:
    for held in scene.region.drains.values():
        r = held.record
        yield {
            "drain": r.id,
            "region": r.region,
            "node": r.node,
            "device": r.device,
            "incident": r.incident,
            "state": r.state.value,
            "reason": r.reason,
            "rule": r.rule,
            "policy_version": r.policy_version,
            "requested_by": r.requested_by,
            "planned_ms": r.planned_ms,
            "deadline_ms": r.deadline_ms,
        }


def _jobs(scene: Scene) -> Iterable[Mapping[str, Any]]:
    for name, held in scene.world.jobs.items():
        owner = scene.world.ownership.get(name)
        yield {
            "job": name,
            "state": held.record.state.value,
            "region": owner.record.region if owner else "",
            "node": owner.record.node if owner else "",
            "devices": held.record.spec.all_devices,
            "restarts": held.record.restarts,
            "submitted_by": held.record.submitted_by,
            "submitted_ms": held.record.submitted_ms,
        }


ROWS: dict[str, Callable[[Scene], Iterable[Mapping[str, Any]]]] = {
    "nodes": _nodes,
    "incidents": _incidents,
    "drains": _drains,
    "jobs": _jobs,
}
