"""Who is heard now, before anybody has judged it. Pure; shared by the judgement of nodes and by placement.

A node is heard while its session is open and the replica that holds it still has its (leased) key.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from gridkeeper.decision import Versioned
from gridkeeper.ids import NodeId, RegionId
from gridkeeper.records.faults import ReplicaRecord
from gridkeeper.records.fleet import NodeRecord, SessionRecord
from gridkeeper.snapshot import RegionState, Settings


def heard(state: RegionState, node: NodeId) -> bool | None:
    """Whether the node is heard now; None: its session record is missing or does not decode."""
    session = state.sessions.get(node)
    if session is None:
        return None
    return session.record.open and session.record.replica in state.replicas


def freeze_fraction(settings: Settings) -> Fraction:
    """As it is written in decimal: 0.29 of 100 nodes is 29, not 28.999…"""
    return Fraction(str(settings.policy.freeze_fraction))


def in_doubt(state: RegionState, settings: Settings) -> bool:
    """So much is silent at once that the observer is to be doubted, not the nodes."""
    silent = state.memo.once(_silent, state.nodes, state.sessions, state.replicas)
    return silent >= 2 and silent > freeze_fraction(settings) * len(state.nodes)


def _silent(
    nodes: Mapping[NodeId, Versioned[NodeRecord]],
    sessions: Mapping[NodeId, Versioned[SessionRecord]],
    replicas: Mapping[str, Versioned[ReplicaRecord]],
) -> int:
    """How many of the nodes are not heard."""
    state = RegionState(RegionId(""), sessions=sessions, replicas=replicas)
    return sum(heard(state, node) is False for node in nodes)
