"""What is silent together: a rack, a zone, the region, everything. Many nodes that fall silent at once have one cause
(a switch, power, the observer's own network), and make one incident. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from controlplane.domain.words import duration, listed, made_id
from gridkeeper.decision import ABSENT, Decision, Now, Put
from gridkeeper.hearing import freeze_fraction, heard
from gridkeeper.ids import DrainId, IncidentId, NodeId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.common import Severity
from gridkeeper.records.faults import IncidentRecord, IncidentState
from gridkeeper.snapshot import GlobalState, RegionState, Settings

CONTACT = "contact"
"""Fault class of a group's incident."""
TOGETHER = 3
"""Nodes whose silences began within so many unreachable limits of each other fell silent together."""


@dataclass(frozen=True, slots=True)
class Group:
    """``subject``: of its incident. ``since_ms``: this process's clock when so many were silent that it became one."""

    subject: str
    pattern: str
    members: int
    silent: tuple[NodeId, ...]
    since_ms: int


def silent_since(state: RegionState, node: NodeId) -> int | None:
    """This process's clock when it first saw that the node is not heard; None: it is heard, or nothing is known."""
    if heard(state, node) is not False:
        return None
    session, liveness = state.sessions[node], state.liveness.get(node)
    # A session that its replica left open when it went says nothing of when; the note in the judgement does.
    return liveness.seen_ms if session.record.open and liveness else session.seen_ms


def silent_groups(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Group, ...]:
    """The largest groups that fell silent together, each node in at most one."""
    since = {node: at for node in state.nodes if (at := silent_since(state, node)) is not None}
    if len(since) < 2:
        return ()
    every = len(state.nodes)
    if len(since) > freeze_fraction(settings) * every:
        # Not even the other regions are heard by way of the global store: what is cut off is probably this process.
        pattern = "region" if world.fresh else "everything"
        need = int(freeze_fraction(settings) * every) + 1
        return (_group(f"region:{state.region}", pattern, every, since, tuple(sorted(since)), need),)
    fraction = Fraction(str(settings.policy.liveness.group_fraction))
    found: list[Group] = []
    for kind, places in (("zone", _places(state, "zone")), ("rack", _places(state, "rack"))):
        taken = {node for group in found for node in group.silent}
        for name, nodes in sorted(places.items()):
            silent = _together([node for node in nodes if node in since], state, since, settings, now)
            need = max(2, -(-fraction.numerator * len(nodes) // fraction.denominator))
            if len(silent) >= need and not taken.issuperset(silent):
                found.append(_group(f"{kind}:{name}", f"{kind} {name}", len(nodes), since, silent, need))
    return tuple(found)


def _group(
    subject: str, pattern: str, members: int, since: Mapping[NodeId, int], silent: tuple[NodeId, ...], need: int
) -> Group:
    return Group(subject, pattern, members, silent, sorted(since[node] for node in silent)[need - 1])


def _together(
    nodes: list[NodeId], state: RegionState, since: Mapping[NodeId, int], settings: Settings, now: Now
) -> tuple[NodeId, ...]:
    """The most of ``nodes`` that fell silent within ``TOGETHER`` unreachable limits of each other."""
    began: list[tuple[int, NodeId]] = []
    for node in nodes:
        liveness = state.liveness.get(node)
        at_ms = now.ledger_ms - (now.mono_ms - since[node])
        began.append(((liveness.record.heard_ms if liveness else 0) or at_ms, node))
    began.sort()
    window, first, best = TOGETHER * settings.timings.unreachable_ms, 0, (0, 0)
    for last in range(len(began)):
        while began[last][0] - began[first][0] > window:
            first += 1
        best = max(best, (last + 1 - first, -first))
    count, start = best[0], -best[1]
    return tuple(sorted(node for _, node in began[start : start + count]))


def _places(state: RegionState, kind: str) -> dict[str, list[NodeId]]:
    """Nodes by zone or rack. A zone of one rack is that rack."""
    found: dict[str, list[NodeId]] = {}
    for node, held in state.nodes.items():
        name = held.record.zone if kind == "zone" else held.record.rack
        if name:
            found.setdefault(name, []).append(node)
    if kind == "zone":
        racks = {name: {state.nodes[node].record.rack for node in nodes} for name, nodes in found.items()}
        return {name: nodes for name, nodes in found.items() if len(racks[name]) > 1}
    return found


def pattern_of(groups: Iterable[Group]) -> dict[NodeId, str]:
    return {node: group.pattern for group in groups for node in group.silent}


def decide_groups(state: RegionState, groups: tuple[Group, ...], settings: Settings, now: Now) -> Iterator[Decision]:
    """One incident per group that has lasted for the unreachable limit on this process's own, undisturbed time; it is
    resolved once all its members are heard again. While a region's stands, none of a part of it is opened."""
    keys = RegionKeys(state.region)
    standing = {
        held.record.subject: held
        for _, held in sorted(state.incidents.items())
        if held.record.fault_class == CONTACT and held.record.state is not IncidentState.RESOLVED
    }
    for group in groups:
        lasted = now.mono_ms - max(group.since_ms, now.steady_ms)
        if group.subject in standing or lasted < settings.timings.unreachable_ms:
            continue
        record = _opened(state, group, now, lasted)
        sentence = f"incident {record.id} opened: {record.title}"
        put = Put(keys.incident(record.id), record, ABSENT)
        yield Decision("incident.open", sentence, (put,), (), f"incident/{record.id}")
    for subject, held in standing.items():
        if any(heard(state, node) is False for node in _members(state, subject)):
            continue
        resolution = "all its nodes are heard again"
        over = replace(held.record, state=IncidentState.RESOLVED, resolved_ms=now.ledger_ms, resolution=resolution)
        put = Put(keys.incident(held.record.id), over, held.revision)
        sentence = f"incident {held.record.id} resolved: {resolution}"
        yield Decision("incident.open", sentence, (put,), (), f"incident/{held.record.id}")


def _members(state: RegionState, subject: str) -> list[NodeId]:
    kind, _, name = subject.partition(":")
    if kind == "region":
        return list(state.nodes)
    field = "zone" if kind == "zone" else "rack"
    return [node for node, held in state.nodes.items() if getattr(held.record, field) == name]


def _opened(state: RegionState, group: Group, now: Now, lasted: int) -> IncidentRecord:
    kind, _, name = group.subject.partition(":")
    what = "everything" if group.pattern == "everything" else f"{kind} {name}"
    cause = {
        "everything": "; the other regions are not heard either, so it is probably this observer that is cut off",
        "region": "; nobody is judged and no job is moved while so much is silent at once",
    }.get(group.pattern, "; one cause is likelier than as many failures")
    title = (
        f"{what} is silent: {len(group.silent)} of {group.members} nodes at once, for {duration(lasted)} "
        f"({listed(list(group.silent))}){cause}"
    )
    at_ms = now.ledger_ms - lasted
    return IncidentRecord(
        id=IncidentId(made_id(group.subject, CONTACT, state.revision)),
        region=state.region,
        subject=group.subject,
        fault_class=CONTACT,
        state=IncidentState.OPEN,
        severity=Severity.ERROR,
        title=title,
        opened_ms=now.ledger_ms,
        observed_ms=at_ms,
        last_ms=now.ledger_ms,
        count=len(group.silent),
        findings=(),
        drain=DrainId(""),
        acknowledged_by="",
        resolved_ms=0,
        resolution="",
        trace="",
    )
