"""Failure domains of nodes: what they share, and what went wrong there lately. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from failover.domain.evidence import of_hardware
from failover.domain.scoring import FULL
from gridkeeper.decision import Now, Versioned
from gridkeeper.ids import NodeId
from gridkeeper.records.faults import FindingRecord, IncidentRecord
from gridkeeper.records.fleet import NodeRecord
from gridkeeper.snapshot import RegionState

NVLINK_LABEL = "nvlink-domain"
"""A node's own label: nodes with the same value are joined by NVLink (an NVL72 rack, say)."""

LEVELS = ("nvlink", "rack", "zone", "region")
"""From the smallest domain to the largest."""

NEARNESS = {"nvlink": FULL, "rack": 700, "zone": 400, "region": 100}
"""Points for a gang whose smallest common domain is this."""

MOST_OWN = 3
"""More incidents of a node count no more."""

RACK_STEPS = 8
"""Racks are compared by the eighths of their nodes that had incidents, so that one node of a large rack weighs
nothing, and a rack is not rated anew with each of its nodes."""

LOOK_MS = 60_000
"""How exactly it is known that an incident is too old to count."""


def domain_of(record: NodeRecord, level: str) -> str:
    """The node's domain of a level; "": it has none."""
    match level:
        case "nvlink":
            return next((label.value for label in record.labels if label.key == NVLINK_LABEL), "")
        case "rack":
            return record.rack
        case "zone":
            return record.zone
        case _:
            return str(record.region)


def incident_points(state: RegionState, within_ms: int, now: Now) -> Mapping[NodeId, int]:
    """Points of nodes where grave incidents were seen lately, on the node itself or elsewhere in its rack, whether they
    are resolved or not; nodes that are left out have ``FULL``."""
    since = (now.ledger_ms // LOOK_MS) * LOOK_MS - within_ms
    return state.memo.once(_incident_points, state.incidents, state.findings, state.nodes, since)


def _incident_points(
    incidents: Mapping[str, Versioned[IncidentRecord]],
    findings: Mapping[str, Versioned[FindingRecord]],
    nodes: Mapping[NodeId, Versioned[NodeRecord]],
    since_ms: int,
) -> dict[NodeId, int]:
    own: dict[NodeId, int] = {}
    for incident in incidents.values():
        record = incident.record
        node = NodeId(record.subject.partition("/")[0])
        if record.last_ms >= since_ms and node in nodes and of_hardware(findings, record):
            own[node] = own.get(node, 0) + 1
    if not own:
        return {}
    racks: dict[str, list[NodeId]] = {}
    for name, node_record in nodes.items():
        racks.setdefault(node_record.record.rack, []).append(name)
    found: dict[NodeId, int] = {}
    for members in racks.values():
        hit = sum(1 for node in members if node in own)
        step = RACK_STEPS * hit // len(members)
        for node in members if step else [n for n in members if n in own]:
            points = FULL * (RACK_STEPS - step // 2) // RACK_STEPS
            found[node] = points // (1 + min(own.get(node, 0), MOST_OWN))
    return found
