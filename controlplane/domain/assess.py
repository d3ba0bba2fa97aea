"""From findings to health records and incidents, device by device. Pure.

One decision per device that has something to say: its health record and its incidents, in one transaction. Changes
without incidents (new devices, a node that went silent with all its devices) go together, per node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from controlplane.domain import health, incidents
from controlplane.domain.budget import Book
from controlplane.domain.evidence import (
    BLINDING,
    Finding,
    bearing_on,
    by_subject,
    calls_out,
    is_level,
    job_of,
    unreadable,
    worst,
)
from controlplane.domain.repeats import is_sticky
from controlplane.domain.scopes import by_node
from controlplane.domain.unwell import odd
from controlplane.domain.words import device_reference, listed
from gridkeeper.catalogue.own import HANG, MISSING, OVERFLOW
from gridkeeper.decision import Decision, Draft, Now, Put, Versioned
from gridkeeper.ids import DeviceId, IncidentId, NodeId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.care import RepairState
from gridkeeper.records.fleet import DeviceRecord, HealthRecord, HealthState, NodeState
from gridkeeper.snapshot import RegionState, Settings

BATCH = 40
CLEAR_BATCH = 40


@dataclass(frozen=True, slots=True)
class _Scene:
    """What all devices of one call share."""

    state: RegionState
    settings: Settings
    now: Now
    keys: RegionKeys
    findings: Mapping[str, list[Finding]]
    standing: Mapping[str, Mapping[str, incidents.Incident]]
    doubts: Mapping[str, str]
    busy: frozenset[str]  # devices with a repair or a self-test under way


def decide_health(state: RegionState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """All devices, and the incidents of nodes and jobs."""
    scene = _Scene(
        state, settings, now, RegionKeys(state.region), state.memo.once(by_subject, state.findings),
        state.memo.once(incidents.open_by_subject, state.incidents), unreadable(state), _busy(state),
    )  # fmt: skip
    plain: dict[NodeId, list[tuple[Put, HealthRecord | None]]] = {}
    decisions: list[Decision] = []
    for name in _loud(scene):
        if state.suspect_keys and scene.keys.health(name) in state.suspect_keys:
            continue  # unknown: without a health record nothing is placed on it and nothing drains it
        decision = _ended(scene, name) or _device(scene, name, plain)
        if decision is not None:
            decisions.append(decision)
    told_of = {*scene.findings, *scene.standing}
    for node in sorted(NodeId(subject) for subject in told_of if subject in state.nodes):
        decision = _ended(scene, node) or _incidents_only(scene, node, f"node/{node}")
        if decision is not None:
            decisions.append(decision)
    for subject in sorted(told_of):
        if (job := job_of(subject)) is not None:
            decision = _ended(scene, subject) or _incidents_only(scene, subject, f"job/{job}")
            if decision is not None:
                decisions.append(decision)
    return (*_together(plain), *decisions)


def _busy(state: RegionState) -> frozenset[str]:
    running = (r.record for r in state.repairs.values() if r.record.state is RepairState.RUNNING)
    return frozenset(str(repair.device) for repair in running)


def _loud(scene: _Scene) -> list[DeviceId]:
    """Sorted, without the devices of which there is nothing to say: healthy, on a node that is heard, and nothing was
    ever found on either. Nearly all are, nearly always."""
    state, findings, standing = scene.state, scene.findings, scene.standing
    calm = {
        node
        for node, liveness in state.liveness.items()
        if liveness.record.state is NodeState.ALIVE and node not in findings and node not in scene.doubts
    }
    loud = set(odd(state))
    for node, devices in by_node(state).items():
        if node not in calm:
            loud.update(devices)
    for subjects in (findings, standing, scene.doubts):
        loud.update(DeviceId(subject) for subject in subjects if subject in state.devices)
    return sorted(loud)


# -- findings that have run out ---------------------------------------------------------------------------------------


def _ended(scene: _Scene, subject: str) -> Decision | None:
    """Clear event findings that nothing has renewed for long enough. Level rules and faults that need a reset are not
    ended by time."""
    every = scene.findings.get(subject)
    if not every:
        return None
    over = [f for f in every if f.record.active and _over(scene, f)][:CLEAR_BATCH]
    if not over:
        return None
    draft = Draft()
    for finding in over:
        draft.put(scene.keys.finding(finding.record.id), replace(finding.record, active=False), finding)
    sentence = f"findings on {subject} have run out: {listed([f.record.code for f in over])} did not come again"
    job = job_of(subject)
    reference = f"job/{job}" if job else f"{'device' if '/' in subject else 'node'}/{subject}"
    ids = tuple(f.record.id for f in over)
    return Decision("detect.clear", sentence, draft.writes(), (), reference, ids, over[0].record.trace)


def _over(scene: _Scene, finding: Finding) -> bool:
    record, policy = finding.record, scene.settings.policy
    if is_level(record) or calls_out(record):
        return False
    if is_sticky(scene.state.repeats, record, scene.now.ledger_ms):
        return False
    age = scene.now.mono_ms - finding.seen_ms
    node = scene.state.nodes.get(record.node)
    if record.code == MISSING:
        # Its agent has said hello since, with the device; were it still missing, it would say so again.
        device = scene.state.devices.get(record.device)
        back = node is not None and device is not None and device.record.present and node.revision > finding.revision
        return back and age >= policy.repair_hold_ms
    if record.code in (HANG, OVERFLOW):
        return age >= policy.repair_hold_ms and _alive(scene.state, record.node)
    return age >= policy.probation_ms


def _alive(state: RegionState, node: NodeId) -> bool:
    liveness = state.liveness.get(node)
    return liveness is not None and liveness.record.state is NodeState.ALIVE


# -- devices ----------------------------------------------------------------------------------------------------------


def _device(
    scene: _Scene, name: DeviceId, plain: dict[NodeId, list[tuple[Put, HealthRecord | None]]]
) -> Decision | None:
    state, now = scene.state, scene.now
    device, old = state.devices[name], state.health.get(name)
    if old is None and device.record.node not in state.liveness:
        return None  # its node is judged first
    every = [f for f in bearing_on(scene.findings, name) if not f.record.shadow]  # those are looked at by drains alone
    active = [f for f in every if f.record.active]
    standing = scene.standing.get(name, {})
    distrust = _distrust(scene, device.record, active)
    before = old.record if old else None
    quiet = before is not None and before.state is HealthState.HEALTHY and not (active or standing or distrust)
    if quiet and before and not health.swapped(device.record, before):
        return None  # nearly all devices nearly always
    situation = _situation(scene, device, old, every, active, distrust)
    stepped = health.step(situation, scene.settings.policy, now.ledger_ms)
    after = stepped or before
    if after is None:
        return None
    swapped = before is not None and after.uuid != before.uuid
    if swapped:
        active = [f for f in active if is_level(f.record)]
    well = after.state in health.IN_SERVICE
    folded = incidents.fold(state, name, [f for f in active if f.record.device], standing, well, now)
    main = folded.main or _incident_of_node(scene, active)
    if after.incident != main and (not swapped or main):
        after = replace(after, incident=main)
    draft = Draft()
    if after != before:
        draft.put(scene.keys.health(name), after, old)
    for incident, was in folded.writes:
        draft.put(scene.keys.incident(incident.id), incident, was)
    if swapped:
        _forget_old_card(scene, every, draft)
    if before and before.state is HealthState.PROBATION and after.state is HealthState.HEALTHY:
        Book.of(state, scene.settings, now).release(name, draft)
    if not draft.puts:
        return None
    if not folded.writes and not swapped and len(draft.puts) == 1 and (before is None or _by_trust(before, after)):
        put = next(iter(draft.puts.values()))
        assert isinstance(put, Put), "a health record is never deleted here"
        plain.setdefault(device.record.node, []).append((put, before))
        return None
    sentence = _sentence(name, before, after, folded)
    evidence = tuple(f.record.id for f in active)
    trace = after.trace or next((i.trace for i, _ in folded.writes), "")
    return Decision("health.step", sentence, draft.writes(), (), device_reference(name), evidence, trace)


def _incident_of_node(scene: _Scene, active: Iterable[Finding]) -> IncidentId:
    """The incident of the node that its devices are taken out for: one for all of them."""
    gravest = worst(f.record for f in active if not f.record.device)
    standing = scene.standing.get(gravest.node, {}).get(gravest.fault_class) if gravest else None
    return standing.record.id if standing else IncidentId("")


def _by_trust(before: HealthRecord, after: HealthRecord) -> bool:
    return HealthState.UNKNOWN in (before.state, after.state)


def _situation(
    scene: _Scene,
    device: Versioned[DeviceRecord],
    old: Versioned[HealthRecord] | None,
    every: list[Finding],
    active: list[Finding],
    distrust: str,
) -> health.Situation:
    mono = scene.now.mono_ms
    drain = scene.state.drains.get(old.record.drain) if old and old.record.drain else None
    return health.Situation(
        device=device.record,
        old=old.record if old else None,
        findings=tuple(f.record for f in active),
        held_ms=mono - old.seen_ms if old else 0,
        quiet_ms=min((mono - f.seen_ms for f in every), default=mono - old.seen_ms if old else 0),
        distrust=distrust,
        drain=drain.record if drain else None,
        busy=device.record.id in scene.busy,
    )


def _distrust(scene: _Scene, device: DeviceRecord, active: Iterable[Finding]) -> str:
    """Why nothing is known of the device now; "" if it can be judged."""
    liveness = scene.state.liveness.get(device.node)
    if liveness is None:
        return f"node {device.node} has not been judged yet"
    if liveness.record.state is not NodeState.ALIVE:
        return f"node {device.node} is {liveness.record.state.value}: {liveness.record.reason}"
    if doubt := scene.doubts.get(device.id) or scene.doubts.get(device.node):
        return doubt
    records = [f.record for f in active]
    if any(calls_out(f) for f in records):
        return ""  # convicted by positive evidence; that telemetry is missing too changes nothing
    of_node = [f.record for f in scene.findings.get(device.node, ()) if f.record.active and not f.record.shadow]
    blinding = next((f for f in (*records, *of_node) if f.code in BLINDING), None)
    if blinding is not None:
        return blinding.sentence
    return "" if device.present else "its agent does not list it any more"


def _forget_old_card(scene: _Scene, every: list[Finding], draft: Draft) -> None:
    """What was found on the card that is gone says nothing about the new one."""
    for finding in [f for f in every if f.record.active and f.record.device and not is_level(f.record)][:CLEAR_BATCH]:
        draft.put(scene.keys.finding(finding.record.id), replace(finding.record, active=False), finding)


def _sentence(name: DeviceId, before: HealthRecord | None, after: HealthRecord, folded: incidents.Folded) -> str:
    parts: list[str] = []
    if before is None or before.state is not after.state:
        was = f" (was {before.state.value})" if before else ""
        parts.append(f"{name} is {after.state.value}{was}: {after.reason}")
    for incident, old in folded.writes:
        verb = "opened" if old is None else ("resolved" if incident.resolved_ms else "extended")
        parts.append(f"incident {incident.id} {verb}: {incident.title}")
    return "; ".join(parts) or f"{name} stays {after.state.value}, on newer evidence: {after.reason}"


def _together(plain: dict[NodeId, list[tuple[Put, HealthRecord | None]]]) -> Iterator[Decision]:
    """Changes that need no word of their own, per node; new devices are bookkeeping."""
    for node, changes in plain.items():
        for start in range(0, len(changes), BATCH):
            chunk = changes[start : start + BATCH]
            puts = tuple(put for put, _ in chunk)
            names = listed([f"{put.record.device} {put.record.state.value}" for put in puts])
            told = any(before is not None for _, before in chunk)
            sentence = f"{names}: {puts[0].record.reason}"
            yield Decision("health.step", sentence, puts, subject=f"node/{node}", audit=told)


# -- nodes and jobs ---------------------------------------------------------------------------------------------------


def _incidents_only(scene: _Scene, subject: str, reference: str) -> Decision | None:
    """Incidents of findings that are about a node and none of its devices, or about a job."""
    active = [f for f in scene.findings.get(subject, ()) if f.record.active and not f.record.shadow]
    standing = scene.standing.get(subject, {})
    if not active and not standing:
        return None
    folded = incidents.fold(scene.state, subject, active, standing, True, scene.now)
    if not folded.writes:
        return None
    draft = Draft()
    for incident, was in folded.writes:
        draft.put(scene.keys.incident(incident.id), incident, was)
    told = ", ".join(
        f"incident {i.id} {'opened' if was is None else 'resolved' if i.resolved_ms else 'extended'}: {i.title}"
        for i, was in folded.writes
    )
    ids = tuple(f.record.id for f in active)
    trace = folded.writes[0][0].trace
    return Decision("incident.open", told, draft.writes(), (), reference, ids, trace)
