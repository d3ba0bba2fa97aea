"""Which nodes are alive: alive, unreachable or failed, each with its witnesses. Nothing is ever drained here. Pure.

A node is *heard* while its session is open and the replica that holds it still has its (leased) key
(``gridkeeper.hearing``). A node that is not heard is judged by all there is to know (``witnesses``):

- A witness says that it lives: it stays *alive*. Only after R is it called unreachable all the same: by then its agent
  has certainly ended its jobs for want of renewals (architecture 4.1), and they must be able to go on elsewhere.
- What ran there is certainly gone (a panic, another boot): *failed*, at once.
- Peers got no answer either, and its link does not explain the silence: *unreachable*.
- Nobody can say: *unreachable* after the full limit on this process's own clock, from when it first saw the silence.

All timers run on this process's clock, so a new leader waits them out in full and asks for itself, and from when this
process last kept its own time (``Now.steady_ms``): one that was held up convicts nobody.

*The observer may be what is broken*: while more than ``freeze_fraction`` of all nodes (and at least two) are not heard,
no node is newly judged. And no silence counts from before the moment since which most nodes have had their present
session: when a cut heals, every timer starts anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from controlplane.domain.grouping import decide_groups, pattern_of, silent_groups
from controlplane.domain.suspicion import FLOOR_BEATS
from controlplane.domain.witnesses import Court, Testimony
from controlplane.domain.words import duration
from gridkeeper.decision import ABSENT, Decision, Guard, Now, Put, Versioned
from gridkeeper.hearing import freeze_fraction, heard
from gridkeeper.ids import NodeId, RegionId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.faults import ReplicaRecord
from gridkeeper.records.fleet import LivenessRecord, NodeRecord, NodeState, SessionRecord
from gridkeeper.snapshot import GlobalState, RegionState, Settings

BATCH = 40
"""Nodes per decision when many are judged alive for the first time."""

GONE = "its replica is gone"
WITNESSED = "; but there are witnesses that it lives"
"""Not which: others are asked in each round, and a judgement is written only when it changes."""


def settled_since(state: RegionState, settings: Settings) -> int | None:
    """When (this process's clock) so many nodes had the sessions that they have now that the region was not in doubt;
    None: they do not have them."""
    standing = state.memo.once(_standing, state.nodes, state.sessions, state.replicas)
    need = len(state.nodes) - max(1, int(freeze_fraction(settings) * len(state.nodes)))
    if len(standing) < need:
        return None
    return standing[need - 1] if need > 0 else 0


def _standing(
    nodes: Mapping[NodeId, Versioned[NodeRecord]],
    sessions: Mapping[NodeId, Versioned[SessionRecord]],
    replicas: Mapping[str, Versioned[ReplicaRecord]],
) -> list[int]:
    """When the present sessions of nodes that are heard were first seen, in order."""
    state = RegionState(RegionId(""), sessions=sessions, replicas=replicas)
    return sorted(sessions[node].seen_ms for node in nodes if heard(state, node))


@dataclass(frozen=True, slots=True)
class _Scene:
    """What all nodes of one round share. ``since``: see ``settled_since``; ``patterns``: what is silent together."""

    state: RegionState
    settings: Settings
    now: Now
    keys: RegionKeys
    court: Court
    since: int | None
    patterns: dict[NodeId, str]


def decide_liveness(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """First judgements in batches, changes one decision per node; questions to peers; incidents of groups."""
    keys = RegionKeys(state.region)
    court = Court(state, world, settings, now)
    groups = silent_groups(state, world, settings, now)
    scene = _Scene(state, settings, now, keys, court, settled_since(state, settings), pattern_of(groups))
    first: list[Put] = []
    changes: list[Decision] = []
    for node in sorted(state.nodes):
        suspect = state.suspect_keys
        if suspect and (keys.liveness(node) in suspect or keys.session(node) in suspect):
            continue
        old = state.liveness.get(node)
        record = _judge(scene, node, old)
        if record is None:
            continue
        put = Put(keys.liveness(node), record, old.revision if old else ABSENT)
        if old is None and record.state is NodeState.ALIVE:
            first.append(put)
        else:
            changes.append(_change(scene, node, old, record, put))
    return (*_first(first), *changes, *court.decisions, *decide_groups(state, groups, settings, now))


def _judge(scene: _Scene, node: NodeId, old: Versioned[LivenessRecord] | None) -> LivenessRecord | None:
    """The new judgement; None: the old one stands."""
    session, listening = scene.state.sessions.get(node), heard(scene.state, node)
    if session is None or listening is None:
        return None
    if listening:
        if node in scene.state.probes:
            scene.court.forget(node)
        return _heard(scene, node, old, session.record)
    return _silent(scene, node, old, session)


def _heard(
    scene: _Scene, node: NodeId, old: Versioned[LivenessRecord] | None, session: SessionRecord
) -> LivenessRecord | None:
    before, boot = old.record if old else None, scene.state.nodes[node].record.boot_id
    reason, witnesses = f"heard by {session.replica}", (f"{session.replica} hears its agent",)
    if before is not None and before.state is NodeState.ALIVE and before.boot_id in ("", boot):
        if before.reason.partition(";")[0] == reason:
            return None  # nearly all nodes nearly always
        return replace(before, reason=reason, heard_ms=0, witnesses=witnesses, pattern="", boot_id=boot)
    anew = LivenessRecord(node, NodeState.ALIVE, scene.now.ledger_ms, reason, witnesses=witnesses, boot_id=boot)
    if before is None:
        return anew
    if before.boot_id and before.boot_id != boot:
        words = (*witnesses, f"its boot id is {boot}, before: {before.boot_id}")
        return replace(anew, reason=f"{reason}; it has booted anew, so it had failed", witnesses=words)
    return anew


def _silent(
    scene: _Scene, node: NodeId, old: Versioned[LivenessRecord] | None, session: Versioned[SessionRecord]
) -> LivenessRecord | None:
    before, now, pattern = old.record if old else None, scene.now, scene.patterns.get(node, "")
    if before is not None and before.state is not NodeState.ALIVE:
        grown = pattern and not before.pattern
        return replace(before, pattern=pattern) if grown else None
    why = _why_silent(session.record)
    if old is None or before is None:
        # Nobody has judged it yet: it was alive when it said hello, and its silence is timed like any other.
        noted_ms = now.ledger_ms if session.record.open else 0
        return LivenessRecord(node, NodeState.ALIVE, now.ledger_ms, f"silent: {why}", noted_ms)
    if session.record.open and not before.reason.startswith(f"silent: {why}"):
        # The session did not change when its replica went: the note itself starts the timer.
        return replace(before, reason=f"silent: {why}", heard_ms=now.ledger_ms, witnesses=(), pattern=pattern)
    if scene.since is None:
        return None  # in doubt
    began = old.seen_ms if session.record.open else session.seen_ms
    started = max(began, scene.since, now.steady_ms)
    told = scene.court.hear(node, session.record, started)
    waited = now.mono_ms - started
    verdict = _verdict(scene.settings, told, waited, waited + session.record.silent_ms)
    if verdict is NodeState.ALIVE:
        scene.court.ask(node, session, started, told)
        return _noted(before, why, told, pattern)
    heard_ms = _last_heard(session, before, now)
    reason = f"not heard for {duration(now.ledger_ms - heard_ms)}: {why}{_because(told)}"
    return LivenessRecord(node, verdict, now.ledger_ms, reason, heard_ms, told.words, pattern, before.boot_id)


def _verdict(settings: Settings, told: Testimony, waited_ms: int, silent_ms: int) -> NodeState:
    """``waited_ms``: on this process's clock; ``silent_ms``: with what the replica had measured before. ALIVE: not
    convicted, as yet."""
    timings = settings.timings
    if told.gone:
        return NodeState.FAILED
    if waited_ms >= max(timings.takeover_ms, timings.unreachable_ms):
        return NodeState.UNREACHABLE
    if told.alive or told.pending:
        return NodeState.ALIVE
    least = max(FLOOR_BEATS * timings.heartbeat_ms, timings.unreachable_ms // 3)
    if told.corroborated and silent_ms >= least:
        return NodeState.UNREACHABLE
    return NodeState.UNREACHABLE if waited_ms >= timings.unreachable_ms else NodeState.ALIVE


def _because(told: Testimony) -> str:
    if told.gone:
        return f"; {told.gone[0]}"
    if told.alive:
        return f"; {told.alive[0]}, but it cannot have renewed its jobs for so long"
    if told.unanswered:
        return f"; {told.unanswered} of {told.asked} peers got no answer either"
    return "; its host answers, its agent does not" if told.refused else ""


def _noted(before: LivenessRecord, why: str, told: Testimony, pattern: str) -> LivenessRecord | None:
    """That witnesses hold it for alive, or no longer do, once; None: nothing new."""
    spoken = f"silent: {why}" + (WITNESSED if told.alive else "")
    if told.pending or not (told.alive or WITNESSED in before.reason) or before.reason == spoken:
        return None
    return replace(before, reason=spoken, witnesses=told.words, pattern=pattern)


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


def _change(
    scene: _Scene, node: NodeId, old: Versioned[LivenessRecord] | None, record: LivenessRecord, put: Put
) -> Decision:
    turned = old is None or old.record.state is not record.state
    sentence = f"{node} is {record.state.value}: {record.reason}"
    session = scene.state.sessions[node]
    # Nobody is convicted who has just been heard again.
    silent = record.state is not NodeState.ALIVE
    guards = (Guard(scene.keys.session(node), session.revision),) if silent else ()
    return Decision("health.step", sentence, (put,), guards, f"node/{node}", audit=turned)


def _first(puts: list[Put]) -> Iterable[Decision]:
    for start in range(0, len(puts), BATCH):
        chunk = puts[start : start + BATCH]
        nodes = ", ".join(put.record.node for put in chunk)
        yield Decision("health.step", f"alive: {nodes}", tuple(chunk), subject=f"node/{nodes}"[:200], audit=False)
