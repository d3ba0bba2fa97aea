"""Events and cards for tests of the catalogue."""

from __future__ import annotations

from gridkeeper.ids import DeviceId, NodeId, RegionId, SpoolId
from gridkeeper.keys import event_id
from gridkeeper.records.fleet import DeviceRecord, EventKind, EventRecord

DEVICE = "n1/gpu0"


def event(
    kind: EventKind,
    code: int = 0,
    message: str = "",
    device: str = DEVICE,
    sequence: int = 1,
    at: int = 0,
    job: str = "",
) -> EventRecord:
    """``device`` "": about node n1."""
    node, spool = NodeId(device.partition("/")[0] or "n1"), SpoolId("s")
    return EventRecord(
        event_id(node, spool, sequence), node, spool, sequence, DeviceId(device), kind, code, message, ("kmsg",), 1, 0,
        job, 0, at, "",
    )  # fmt: skip


def card(architecture: str, model: str, device: str = DEVICE, vendor: str = "nvidia") -> DeviceRecord:
    node, _, slot = device.partition("/")
    return DeviceRecord(
        DeviceId(device), NodeId(node), slot, "GPU-1", vendor, model, architecture, "", "", 0, "", "r1",
        RegionId("east"), True,
    )  # fmt: skip
