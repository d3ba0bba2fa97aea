"""Which nodes are alive. Silence makes a node unreachable; it never makes anything failed, and drains nothing. Pure.

A node is heard while its session is open and the replica that holds it still has its (leased) key
(``gridkeeper.hearing``). All timers run on this process's clock from when it first saw a record, so a new leader waits
them out in full.

*The observer may be what is broken*: while more than ``freeze_fraction`` of all nodes (and at least two) are not heard,
no node is newly judged. And no silence counts from before the moment since which most nodes have had their present
session: when a cut heals, every timer starts anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from controlplane.domain.words import duration
from gridkeeper.decision import ABSENT, Decision, Now, Put, Versioned
from gridkeeper.hearing import freeze_fraction, heard
from gridkeeper.ids import NodeId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.fleet import LivenessRecord, NodeState, SessionRecord
from gridkeeper.snapshot import RegionState, Settings

BATCH = 40
"""Nodes per decision when many are judged alive for the first time."""

GONE = "its replica is gone"


def settled_since(state: RegionState, settings: Settings) -> int | None:
    """When (this process's clock) so many nodes had the sessions that they have now that the region was not in doubt;
    None: they do not have them."""
    standing = sorted(state.sessions[node].seen_ms for node in state.nodes if heard(state, node))
    need = len(state.nodes) - max(1, int(freeze_fraction(settings) * len(state.nodes)))
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
        suspect = state.suspect_keys
        if suspect and (keys.liveness(node) in suspect or keys.session(node) in suspect):
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
        return None if before.reason == reason else replace(before, reason=reason, heard_ms=0)
    if before is not None and before.state is not NodeState.ALIVE:
        return None
    why = _why_silent(session.record)
    if old is None or before is None:
        # Nobody has judged it yet: it was alive when it said hello, and its silence is timed like any other.
        noted_ms = now.ledger_ms if session.record.open else 0
        return LivenessRecord(node, NodeState.ALIVE, now.ledger_ms, f"silent: {why}", noted_ms)
    if before.reason != f"silent: {why}" and session.record.open:
        # The session did not change when its replica went: the note itself starts the timer.
        return replace(before, reason=f"silent: {why}", heard_ms=now.ledger_ms)
    if since is None:
        return None  # in doubt
    started = old.seen_ms if session.record.open else session.seen_ms
    waited = now.mono_ms - max(started, since)
    if waited < settings.timings.unreachable_ms:
        return None
    heard_ms = _last_heard(session, before, now)
    reason = f"not heard for {duration(now.ledger_ms - heard_ms)}: {why}"
    return LivenessRecord(node, NodeState.UNREACHABLE, now.ledger_ms, reason, heard_ms)


def _last_heard(session: Versioned[SessionRecord], before: LivenessRecord, now: Now) -> int:
    """Ledger time at which a silent node was last heard, best known.

    Its session was closed by the replica that held it, which knew for how long it had heard nothing; that is dated as
    events are, by the replica's wall clock, but never later than this process can tell by its own, and never before
    the node was judged alive. Of a node whose replica went, nobody knows more than when that was noted.
    """
    record = session.record
    if record.open:
        return before.heard_ms or before.since_ms
    seen_ms = now.ledger_ms - (now.mono_ms - session.seen_ms) - record.silent_ms
    return max(before.since_ms, min(seen_ms, record.at_wall_ms - record.silent_ms))


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
