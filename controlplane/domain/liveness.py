"""Which nodes are alive. Silence makes a node unreachable; it never makes anything failed, and drains nothing. Pure.

A node is heard while its session is open and the replica that holds it still has its (leased) key. All timers run on
this process's clock from when it first saw a record, so a new leader waits them out in full.

*The observer may be what is broken*: while more than ``freeze_fraction`` of all nodes (and at least two) are not heard,
no node is newly judged. And no silence counts from before the moment since which most nodes have had their present
session: when a cut heals, every timer starts anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

from controlplane.domain.words import duration
from gridkeeper.decision import ABSENT, Decision, Now, Put, Versioned
from gridkeeper.ids import NodeId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.fleet import LivenessRecord, NodeState, SessionRecord
from gridkeeper.snapshot import RegionState, Settings

BATCH = 40
"""Nodes per decision when many are judged alive for the first time."""

GONE = "its replica is gone"


def heard(state: RegionState, node: NodeId) -> bool | None:
    """Whether the node is heard now; None: its session record is missing or does not decode."""
    session = state.sessions.get(node)
    if session is None:
        return None
    return session.record.open and session.record.replica in state.replicas


def in_doubt(state: RegionState, settings: Settings, now: Now) -> bool:
    """So much is silent at once that the observer is to be doubted, not the nodes."""
    silent = sum(heard(state, node) is False for node in state.nodes)
    return silent >= 2 and silent > _fraction(settings) * len(state.nodes)


def _fraction(settings: Settings) -> Fraction:
    return Fraction(str(settings.policy.freeze_fraction))


def settled_since(state: RegionState, settings: Settings) -> int | None:
    """When (this process's clock) so many nodes had the sessions that they have now that the region was not in doubt;
    None: they do not have them."""
    standing = sorted(state.sessions[node].seen_ms for node in state.nodes if heard(state, node))
    need = len(state.nodes) - max(1, int(_fraction(settings) * len(state.nodes)))
    if len(standing) < need:
        return None
    return standing[need - 1] if need > 0 else 0


def decide_liveness(state: RegionState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """First judgements in batches, changes one decision per node."""
    keys = RegionKeys(state.region)
    since = settled_since(state, settings)
    first: list[Put] = []
    changes: list[Decision] = []
    for node in sorted(state.nodes):
        if keys.liveness(node) in state.suspect_keys or keys.session(node) in state.suspect_keys:
            continue
        old = state.liveness.get(node)
        record = _judge(state, settings, now, node, old, since)
        if record is None:
            continue
        put = Put(keys.liveness(node), record, old.revision if old else ABSENT)
        if old is None and record.state is NodeState.ALIVE:
            first.append(put)
        else:
            changes.append(_change(node, old, record, put))
    return (*_first(first), *changes)


def _judge(
    state: RegionState,
    settings: Settings,
    now: Now,
    node: NodeId,
    old: Versioned[LivenessRecord] | None,
    since: int | None,
) -> LivenessRecord | None:
    """The new judgement; None: the old one stands."""
    session, listening = state.sessions.get(node), heard(state, node)
    if session is None or listening is None:
        return None
    before = old.record if old else None
    if listening:
        reason = f"heard by {session.record.replica}"
        if before is None or before.state is not NodeState.ALIVE:
            return LivenessRecord(node, NodeState.ALIVE, now.ledger_ms, reason)
        return None if before.reason == reason else replace(before, reason=reason)
    if before is not None and before.state is not NodeState.ALIVE:
        return None
    why = _why_silent(session.record)
    if old is None or before is None:
        # Nobody has judged it yet: it was alive when it said hello, and its silence is timed like any other.
        return LivenessRecord(node, NodeState.ALIVE, now.ledger_ms, f"silent: {why}")
    if before.reason != f"silent: {why}" and session.record.open:
        # The session did not change when its replica went: the note itself starts the timer.
        return replace(before, reason=f"silent: {why}")
    if since is None:
        return None  # in doubt
    started = old.seen_ms if session.record.open else session.seen_ms
    waited = now.mono_ms - max(started, since)
    if waited < settings.timings.unreachable_ms:
        return None
    reason = f"not heard for {duration(waited)}: {why}"
    return LivenessRecord(node, NodeState.UNREACHABLE, now.ledger_ms, reason)


def _why_silent(session: SessionRecord) -> str:
    if session.open:
        return f"{GONE} ({session.replica})"
    return f"its session with {session.replica} has ended"


def _change(node: NodeId, old: Versioned[LivenessRecord] | None, record: LivenessRecord, put: Put) -> Decision:
    turned = old is None or old.record.state is not record.state
    sentence = f"{node} is {record.state.value}: {record.reason}"
    return Decision("health.step", sentence, (put,), subject=f"node/{node}", audit=turned)


def _first(puts: list[Put]) -> Iterable[Decision]:
    for start in range(0, len(puts), BATCH):
        chunk = puts[start : start + BATCH]
        nodes = ", ".join(put.record.node for put in chunk)
        yield Decision("health.step", f"alive: {nodes}", tuple(chunk), subject=f"node/{nodes}"[:200], audit=False)
