"""Which groups a device belongs to, for budgets and breakers: fleet, region, zone, rack, vendor. Pure.

Groups are named after what they hold: ``region``, ``rack-r1``, ``vendor-nvidia``. Hosts (vendor ``host``) are no
accelerators: only their own vendor's group holds them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gridkeeper import selector
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.policy.model import BreakerPolicy, BudgetPolicy
from gridkeeper.records.fleet import DeviceRecord, NodeRecord
from gridkeeper.snapshot import RegionState

HOST_VENDOR = "host"
JOB, FLEET = "job", "fleet"

Devices = Mapping[DeviceId, Versioned[DeviceRecord]]
Nodes = Mapping[NodeId, Versioned[NodeRecord]]


def labels_of(device: DeviceRecord, node: NodeRecord | None) -> dict[str, str]:
    """What a selector of the policy sees of a device; a node's own labels never hide the device's."""
    own = {label.key: label.value for label in node.labels} if node else {}
    return own | {
        "region": device.region,
        "zone": device.zone,
        "rack": device.rack,
        "node": device.node,
        "device": device.id,
        "vendor": device.vendor,
        "model": device.model,
        "architecture": device.architecture,
    }


def devices_of(state: RegionState, target: str) -> tuple[DeviceId, ...]:
    """The devices that a cordon's target (a node or a device) covers, sorted."""
    if "/" in target:
        device = DeviceId(target)
        return (device,) if device in state.devices else ()
    return by_node(state).get(NodeId(target), ())


def by_node(state: RegionState) -> Mapping[NodeId, tuple[DeviceId, ...]]:
    """The devices of each node, sorted."""
    return state.memo.once(_by_node, state.devices)


def _by_node(devices: Devices) -> dict[NodeId, tuple[DeviceId, ...]]:
    """Of a whole region: hundreds of nodes may be cordoned at once, and each look at all devices takes a while."""
    found: dict[NodeId, list[DeviceId]] = {}
    for name in sorted(devices):
        found.setdefault(devices[name].record.node, []).append(name)
    return {node: tuple(names) for node, names in found.items()}


def safe(text: str) -> str:
    """As a part of a name."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()) or "unknown"


@dataclass(frozen=True, slots=True)
class Grouping:
    """One way to divide devices. ``suffix`` tells apart what divides alike (a window, a selector)."""

    kind: str
    select: str = ""
    suffix: str = ""

    def name_for(self, device: DeviceRecord) -> str:
        """The group of this device; "" if this grouping has none for it."""
        if device.vendor == HOST_VENDOR and self.kind != "vendor":
            return ""
        match self.kind:
            case "region" | "fleet":
                return self.kind + self.suffix
            case "zone":
                return f"zone-{safe(device.zone)}{self.suffix}"
            case "rack":
                return f"rack-{safe(device.rack)}{self.suffix}"
            case "vendor":
                return f"vendor-{safe(device.vendor)}{self.suffix}"
            case _:
                return ""


def of_budget(policy: BudgetPolicy) -> Grouping:
    """``rack``, ``rack@1h`` (drains begun within an hour), ``rack[model=H100]``."""
    suffix = f"@{_span(policy.window_ms)}" if policy.window_ms else ""
    if policy.select.strip():
        chosen = str(selector.parse(policy.select))
        suffix += f"[{re.sub(r'[^A-Za-z0-9._=!,:+-]+', '-', chosen)}]"
    return Grouping(policy.kind, policy.select, suffix)


def of_breaker(policy: BreakerPolicy) -> Grouping:
    return Grouping(policy.kind)


def _span(ms: int) -> str:
    for size, unit in ((3_600_000, "h"), (60_000, "m"), (1_000, "s")):
        if ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


@dataclass(frozen=True, slots=True)
class Coverage:
    """``names``: the groups of each device of the inventory, in the order of the groupings. ``totals``: how many
    devices each group holds. ``grouping``: which grouping (by its place) each group is of; several with equal names
    are all there."""

    names: Mapping[DeviceId, tuple[str, ...]]
    totals: Mapping[str, int]
    groupings: Mapping[str, tuple[int, ...]]


def coverage(state: RegionState, groupings: tuple[Grouping, ...]) -> Coverage:
    """The durable inventory in groups. It changes seldom, and 100,000 devices take a while: the last few are kept."""
    whole = state.whole or state
    nodes = whole.nodes if any(grouping.select.strip() for grouping in groupings) else _NOBODY
    return _covered(_Same(whole.devices), _Same(nodes), groupings)


class _Same:
    """A mapping that never changes, as a key: by identity."""

    __slots__ = ("value",)

    def __init__(self, value: Mapping[Any, Any]) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


_NOBODY: Nodes = {}


@lru_cache(maxsize=8)
def _covered(devices: _Same, nodes: _Same, groupings: tuple[Grouping, ...]) -> Coverage:
    chosen = [selector.parse(grouping.select) for grouping in groupings]
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # thousands of devices share vendor and rack
    names: dict[DeviceId, tuple[str, ...]] = {}
    totals: Counter[str] = Counter()
    by_name: dict[str, dict[int, None]] = {}
    for name, versioned in devices.value.items():
        device: DeviceRecord = versioned.record
        place: tuple[str, ...] = (device.vendor, device.rack, device.zone)
        if nodes.value is not _NOBODY:
            place += (device.region, device.node, device.model, device.architecture)
            if any("device" in one.keys for one in chosen):
                place += (device.id,)
        if place not in known:
            node = nodes.value.get(device.node)
            labels = labels_of(device, node.record if node else None)
            found: dict[str, None] = {}
            for index, (grouping, wanted) in enumerate(zip(groupings, chosen, strict=True)):
                group = grouping.name_for(device)
                # A node that cannot be read may have any label: then more budgets cover its devices, not fewer.
                if group and (wanted.matches(labels) or (node is None and not set(wanted.keys) <= labels.keys())):
                    found[group] = None
                    by_name.setdefault(group, {})[index] = None
            known[place] = tuple(found)
        groups = known[place]
        names[name] = groups
        totals.update(groups)
    return Coverage(names, totals, {group: tuple(indexes) for group, indexes in by_name.items()})
