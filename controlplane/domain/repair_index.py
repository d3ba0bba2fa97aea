"""Where to find repairs, and what they may be needed for, without looking through a region: indexes that are made once
per change of what they are made of (``Memo``). Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.records.care import RepairKind, RepairRecord, RepairState
from gridkeeper.records.faults import DrainRecord
from gridkeeper.records.fleet import DeviceRecord, HealthRecord, HealthState
from gridkeeper.snapshot import RegionState

Repair = Versioned[RepairRecord]
Health = Versioned[HealthRecord]

BEFORE_END = frozenset({RepairState.PROPOSED, RepairState.APPROVED, RepairState.RUNNING})
WITH_EFFECT = frozenset(
    {
        (RepairKind.SELF_TEST, RepairState.DONE),
        (RepairKind.SELF_TEST, RepairState.FAILED),
        (RepairKind.RESET_DEVICE, RepairState.DONE),
    }
)
"""Ends from which something follows: findings that are over or new, a device that was tested."""


@dataclass(frozen=True, slots=True)
class Repairs:
    """``by_node``: in the order of their newest stage. ``open``: under way, or their effect may still be due, by id.
    ``over``: all others, in the order of their ends."""

    by_node: Mapping[NodeId, list[Repair]]
    open: tuple[Repair, ...]
    over: tuple[Repair, ...]


def latest_ms(record: RepairRecord) -> int:
    """When it came into its state."""
    return record.stages[-1].at_ms


def repairs(state: RegionState) -> Repairs:
    return state.memo.once(_repairs, state.repairs)


def _repairs(every: Mapping[str, Repair]) -> Repairs:
    by_node: dict[NodeId, list[Repair]] = defaultdict(list)
    for repair in sorted(every.values(), key=lambda r: (latest_ms(r.record), r.record.id)):
        by_node[repair.record.node].append(repair)
    open_ones = tuple(repair for _, repair in sorted(every.items()) if _is_open(repair.record))
    over = sorted((r for r in every.values() if not _is_open(r.record)), key=lambda r: latest_ms(r.record))
    return Repairs(by_node, open_ones, tuple(over))


def _is_open(record: RepairRecord) -> bool:
    return record.state in BEFORE_END or ((record.kind, record.state) in WITH_EFFECT and not record.settled)


def out_of_service(state: RegionState) -> tuple[tuple[DeviceId, Health], ...]:
    """Devices that are drained or on probation: all that may need a repair or a test."""
    return state.memo.once(_out, state.health)


def _out(health: Mapping[DeviceId, Health]) -> tuple[tuple[DeviceId, Health], ...]:
    wanted = (HealthState.DRAINED, HealthState.PROBATION)
    return tuple(sorted((pair for pair in health.items() if pair[1].record.state in wanted), key=lambda pair: pair[0]))


def devices_of(state: RegionState, record: RepairRecord) -> tuple[DeviceId, ...]:
    """The device of the repair, or all of its node."""
    if record.device:
        return (record.device,)
    return state.memo.once(_by_node, state.devices).get(record.node, ())


def _by_node(devices: Mapping[DeviceId, Versioned[DeviceRecord]]) -> dict[NodeId, tuple[DeviceId, ...]]:
    found: dict[NodeId, list[DeviceId]] = defaultdict(list)
    for name, device in sorted(devices.items()):
        found[device.record.node].append(name)
    return {node: tuple(names) for node, names in found.items()}


def drains_of(state: RegionState, device: DeviceId) -> list[Versioned[DrainRecord]]:
    """All that there are of the device, in any order."""
    return state.memo.once(_by_device, state.drains).get(device, [])


def _by_device(drains: Mapping[str, Versioned[DrainRecord]]) -> dict[DeviceId, list[Versioned[DrainRecord]]]:
    found: dict[DeviceId, list[Versioned[DrainRecord]]] = defaultdict(list)
    for drain in drains.values():
        found[drain.record.device].append(drain)
    return dict(found)
