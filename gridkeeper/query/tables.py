"""The tables that a query sees, with their columns. Metrics and labels are called as in rules (docs/policy.md)."""

from __future__ import annotations

from gridkeeper.policy.columns import AGE, COLUMNS, Column, Type

T, N, B = Type.TEXT, Type.NUMBER, Type.TRUTH

DEVICES: tuple[Column, ...] = (
    *(column for column in COLUMNS.values() if not column.metric and column is not AGE),
    Column("cordoned", B, "nothing new is placed on it, or on its node"),
    Column("present", B, "false: the inventory has it, and it is missing"),
    Column("uuid", T, "the driver's id"),
    Column("serial", T, "serial number"),
    Column("pci_bus_id", T, "where it sits"),
    Column("driver_version", T, "of its driver"),
    Column("health_reason", T, "why it is in this state"),
    Column("health_since_ms", N, "since when, ms since 1970"),
    AGE,
    *(column for column in COLUMNS.values() if column.metric),
)

NODES: tuple[Column, ...] = (
    Column("node", T, "its name"),
    Column("region", T, ""),
    Column("zone", T, ""),
    Column("rack", T, ""),
    Column("state", T, "alive, unreachable, failed, unknown"),
    Column("state_reason", T, "why"),
    Column("cordoned", B, "nothing new is placed on it"),
    Column("devices", N, "devices of its inventory"),
    Column("agent_version", T, ""),
)

INCIDENTS: tuple[Column, ...] = (
    Column("incident", T, "its id"),
    Column("region", T, ""),
    Column("subject", T, "device or node"),
    Column("fault_class", T, ""),
    Column("state", T, "open, acknowledged, resolved"),
    Column("severity", T, "info, warning, error, fatal"),
    Column("title", T, ""),
    Column("opened_ms", N, "ms since 1970"),
    Column("resolved_ms", N, "0: not resolved"),
    Column("count", N, "sightings"),
    Column("drain", T, "its drain; '' if none"),
)

DRAINS: tuple[Column, ...] = (
    Column("drain", T, "its id"),
    Column("region", T, ""),
    Column("node", T, ""),
    Column("device", T, ""),
    Column("incident", T, ""),
    Column("state", T, "planned, admitted, evacuating, drained, refused, …"),
    Column("reason", T, ""),
    Column("rule", T, "that it rests on"),
    Column("policy_version", N, "in force when it was decided"),
    Column("requested_by", T, "machine, or who"),
    Column("planned_ms", N, "ms since 1970"),
    Column("deadline_ms", N, "ms since 1970"),
)

JOBS: tuple[Column, ...] = (
    Column("job", T, "its name"),
    Column("state", T, "pending, starting, running, …"),
    Column("region", T, "that owns it; '' if none"),
    Column("node", T, "that it runs on; '' if none"),
    Column("devices", N, "that it wants"),
    Column("restarts", N, ""),
    Column("submitted_by", T, ""),
    Column("submitted_ms", N, "ms since 1970"),
)

TABLES: dict[str, dict[str, Column]] = {
    name: {column.name: column for column in columns}
    for name, columns in (
        ("devices", DEVICES),
        ("nodes", NODES),
        ("incidents", INCIDENTS),
        ("drains", DRAINS),
        ("jobs", JOBS),
    )
}

KEY: dict[str, str] = {"devices": "device", "nodes": "node", "incidents": "incident", "drains": "drain", "jobs": "job"}
"""What tells a table's rows apart: the same row from two replicas counts once."""
