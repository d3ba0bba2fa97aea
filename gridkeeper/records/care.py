"""What is done to hosts and devices besides draining: repairs, self-tests, announced maintenance, probes by peers.
Region store; written by the region's leader, answers by the replica that holds the agent's stream."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gridkeeper.ids import DeviceId, DrainId, IncidentId, NodeId, RegionId
from gridkeeper.records.common import Stamp


class RepairKind(enum.StrEnum):
    """What is to be done once the device is drained."""

    SELF_TEST = "self_test"
    RESET_DEVICE = "reset_device"
    REBOOT_NODE = "reboot_node"
    TICKET = "ticket"


class RepairState(enum.StrEnum):
    """``proposed`` waits for a human; ``approved`` is sent to the agent (or the webhook); ``lost``: nobody knows
    whether it was done (the agent restarted meanwhile)."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"
    EXPIRED = "expired"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class RepairRecord:
    """repairs/<id>: one attempt at one repair."""

    id: str
    region: RegionId
    node: NodeId
    device: DeviceId  # "" for a repair of the node
    uuid: str
    kind: RepairKind
    state: RepairState
    reason: str
    incident: IncidentId
    drain: DrainId
    command: str  # of a self-test; URL of a ticket
    attempt: int
    proposed_ms: int
    decided_by: str  # who approved or rejected it: "policy" or a human's identity
    deadline_ms: int
    result: str
    stages: tuple[Stamp, ...]
    trace: str
    settled: bool = False  # over, and nothing follows from it any more


class MaintenanceState(enum.StrEnum):
    PLANNED = "planned"
    ACTIVE = "active"
    ENDED = "ended"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class MaintenanceRecord:
    """maintenance/<id>: an announced window on a node or device. Its drain is planned so that it is done by
    ``from_ms``; within the window the target is cordoned, and the ledger excludes it."""

    id: str
    region: RegionId
    target: str
    from_ms: int
    until_ms: int
    lead_ms: int  # the drain begins this long before
    announced_by: str
    announced_ms: int
    reason: str
    state: MaintenanceState
    trace: str


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """probes/<node>: the leader asks peers whether they can reach a silent node."""

    node: NodeId
    address: str
    peers: tuple[NodeId, ...]
    asked_ms: int
    round: int


@dataclass(frozen=True, slots=True)
class WitnessRecord:
    """witnesses/<node>/<peer>: what one peer saw in the newest round. ``rtt_us`` -1: not reached. ``refused``: the host
    answered, but not as that node's agent. ``boot_id``: as the reached agent says."""

    node: NodeId
    peer: NodeId
    round: int
    reached: bool
    rtt_us: int
    detail: str
    at_ms: int
    refused: bool = False
    boot_id: str = ""
