"""Whether a host that a batch system owns is to be closed to new work there. Pure.

A batch system hands out hosts, not our devices: one device that is out of service closes its host as a whole. What is
unknown neither closes nor opens one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.records.fleet import CordonRecord, HealthRecord, HealthState

IN_SERVICE = frozenset({HealthState.HEALTHY, HealthState.SUSPECT})


def why_closed(
    node: NodeId,
    devices: Iterable[DeviceId],
    cordons: Mapping[str, Versioned[CordonRecord]],
    health: Mapping[DeviceId, Versioned[HealthRecord]],
    drained: Collection[DeviceId],
) -> str | None:
    """Why the host is to be closed; "" if it is to be open; None: nobody can tell, so it stays as it is. ``drained``:
    devices that a drain keeps new work off."""
    known = True
    if node in cordons:
        return _cordoned(node, cordons[node].record)
    for device in sorted(devices):
        if device in cordons:
            return _cordoned(device, cordons[device].record)
        if device in drained:
            return f"{device} is being taken out of service"
        held = health.get(device)
        if held is None or held.record.state is HealthState.UNKNOWN:
            known = False
        elif held.record.state not in IN_SERVICE:
            return f"{device} is {held.record.state.value}"
    return "" if known else None


def _cordoned(target: str, record: CordonRecord) -> str:
    reasons = "; ".join(f"{reason.owner}: {reason.reason}" for reason in record.reasons)
    return f"{target} is cordoned ({reasons[:200]})"
