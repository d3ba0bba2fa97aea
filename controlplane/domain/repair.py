"""Repairs of what is drained, and the self-test before service. Pure.

    proposed (waits for a human) → approved → running → done | failed | lost          or rejected | expired

- A device that the machine drained gets what its gravest finding asks for: a reset of the device, a reboot of its node,
  or a ticket (``replace``, ``drain``: somebody must look). ``policy.repair`` says for each whether it may begin at
  once, once a human approves, or never.
- A repair runs only while its device (a reboot: each device of the node) is drained, certainly without a job, and its
  node is heard; the transaction that starts it compares their health records. For a reboot, the other devices are
  asked for first, within the budgets, in the name of the repair, and given back when it is over (``borrowed.py``).
- A device on probation that needs a self-test gets one by policy, without consent: it is out of service.
- An agent runs one id once. No answer by the deadline, or an agent that restarted meanwhile, is ``lost``: nobody knows.
- A reset that is done clears the findings that it cures. After ``attempts`` that did not help, the device stays drained
  on a finding that says ``replace``. A self-test that failed is a finding too, and drains the device again; one that
  was lost is neither passed nor failed, and is tried again ever more rarely.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from controlplane.domain.evacuation import jobs_on
from controlplane.domain.evidence import Finding, by_subject, calls_out, worst
from controlplane.domain.health import MACHINE, needs_test
from controlplane.domain.repair_effects import cured, not_cured, test_failed
from controlplane.domain.words import duration, listed, made_id
from gridkeeper.decision import Decision, Draft, Guard, Now, Versioned
from gridkeeper.ids import DeviceId, DrainId, IncidentId, NodeId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import Consent, Mode, RepairPolicy
from gridkeeper.records.care import RepairKind, RepairRecord, RepairState
from gridkeeper.records.common import Action, Stamp
from gridkeeper.records.faults import DrainMode, DrainRecord, DrainRequestRecord, DrainState, FindingRecord
from gridkeeper.records.fleet import HealthRecord, HealthState, NodeState
from gridkeeper.snapshot import GlobalState, RegionState, Settings

Repair = Versioned[RepairRecord]

BEFORE_END = frozenset({RepairState.PROPOSED, RepairState.APPROVED, RepairState.RUNNING})
TRIED = frozenset({RepairState.DONE, RepairState.FAILED, RepairState.LOST})
WANTED: Mapping[Action, RepairKind] = {
    Action.RESET_DEVICE: RepairKind.RESET_DEVICE,
    Action.REBOOT_NODE: RepairKind.REBOOT_NODE,
    Action.REPLACE: RepairKind.TICKET,
    Action.DRAIN: RepairKind.TICKET,
}
BY_AGENT = frozenset({RepairKind.SELF_TEST, RepairKind.RESET_DEVICE, RepairKind.REBOOT_NODE})
OUT_FOR_GOOD = frozenset({HealthState.DRAINED, HealthState.RETIRED})
KEPT_MS = 100 * 86_400_000
MAX_DOUBLINGS = 6


@dataclass(frozen=True, slots=True)
class _Scene:
    state: RegionState
    world: GlobalState
    settings: Settings
    now: Now
    keys: RegionKeys
    findings: Mapping[str, list[Finding]]
    by_node: Mapping[NodeId, list[Repair]]

    @property
    def policy(self) -> RepairPolicy:
        return self.settings.policy.repair


def decide_repairs(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """Propose, start, time out and conclude. One decision each."""
    policy = settings.policy.repair
    off = {policy.reset_device, policy.reboot_node, policy.ticket} == {Consent.OFF} and not policy.self_test
    if off and not state.repairs:
        return ()
    by_node: dict[NodeId, list[Repair]] = defaultdict(list)
    for _, repair in sorted(state.repairs.items()):
        by_node[repair.record.node].append(repair)
    scene = _Scene(state, world, settings, now, RegionKeys(state.region), by_subject(state.findings), by_node)
    decisions = [d for _, repair in sorted(state.repairs.items()) for d in _advance(scene, repair)]
    for device, held in sorted(state.health.items()):
        if device not in state.devices:
            continue
        if held.record.state is HealthState.DRAINED:
            decisions.extend(_for_drained(scene, device, held))
        elif needs_test(held.record, settings.policy):
            decisions.extend(_for_probation(scene, device, held))
    return tuple(decisions)


# -- what is wanted ---------------------------------------------------------------------------------------------------


def _for_drained(scene: _Scene, device: DeviceId, held: Versioned[HealthRecord]) -> Iterator[Decision]:
    drain = scene.state.drains.get(held.record.drain)
    if drain is None or drain.record.requested_by != MACHINE or drain.record.maintenance:
        return
    main = worst(f.record for f in scene.findings.get(device, ()) if f.record.active and calls_out(f.record))
    kind = WANTED.get(main.action) if main else None
    if main is None or kind is None:
        return
    consent = _consent(scene, kind)
    if consent is Consent.OFF:
        return
    known = [r.record for r in scene.by_node.get(held.record.node, ()) if _same(r.record, kind, drain.record)]
    every = scene.by_node.get(held.record.node, ())
    if any(r.record.kind is kind and r.record.state in BEFORE_END and _is_for(r.record, device) for r in every):
        return
    if any(r.state is RepairState.REJECTED for r in known):
        return
    tried = [r for r in known if r.state in TRIED]
    if tried and kind is RepairKind.TICKET:
        return  # it is somebody's business by now, or the desk would not have it
    if tried and scene.now.ledger_ms - tried[-1].stages[-1].at_ms < scene.settings.policy.repair_hold_ms:
        return  # what it changed may still show
    if len(tried) >= scene.policy.attempts:
        yield from not_cured(scene.state, device, drain.record, kind, tried, scene.now)
        return
    yield _proposed(scene, held, drain.record, kind, main, len(tried) + 1, consent)


def _same(repair: RepairRecord, kind: RepairKind, drain: DrainRecord) -> bool:
    return repair.kind is kind and repair.drain == drain.id


def _is_for(repair: RepairRecord, device: DeviceId) -> bool:
    return not repair.device or repair.device == device


def _consent(scene: _Scene, kind: RepairKind) -> Consent:
    """In shadow mode the machine begins nothing by itself."""
    policy = scene.policy
    consent = {
        RepairKind.RESET_DEVICE: policy.reset_device,
        RepairKind.REBOOT_NODE: policy.reboot_node,
        RepairKind.TICKET: policy.ticket if policy.ticket_url else Consent.OFF,
        RepairKind.SELF_TEST: Consent.AUTO if policy.self_test else Consent.OFF,
    }[kind]
    mode = scene.settings.policy.mode
    if mode is Mode.OFF:
        return Consent.OFF
    return Consent.CONFIRM if consent is Consent.AUTO and mode is Mode.SHADOW else consent


def _proposed(
    scene: _Scene,
    held: Versioned[HealthRecord],
    drain: DrainRecord,
    kind: RepairKind,
    main: FindingRecord,
    attempt: int,
    consent: Consent,
) -> Decision:
    of_node = kind is RepairKind.REBOOT_NODE
    subject = held.record.node if of_node else held.record.device
    command = scene.policy.ticket_url if kind is RepairKind.TICKET else ""
    what = f"{kind.value} of {subject}, attempt {attempt} of {scene.policy.attempts}: {main.sentence}"
    record = _record(scene, held.record, drain.id, drain.incident, kind, attempt, what, consent, command, drain.trace)
    draft = Draft()
    draft.put(scene.keys.repair(record.id), record, None)
    guards = (
        Guard(scene.keys.health(held.record.device), held.revision),
        Guard(scene.keys.finding(main.id), scene.state.findings[main.id].revision),
    )
    waits = "waits for a human" if record.state is RepairState.PROPOSED else f"approved by {record.decided_by}"
    sentence = f"repair {record.id} is {record.state.value}, {waits}: {what}"
    return Decision(
        "repair.propose", sentence, draft.writes(), guards, f"repair/{record.id}", (main.id, *main.evidence[:4]),
        record.trace,
    )  # fmt: skip


def _record(
    scene: _Scene,
    held: HealthRecord,
    drain: DrainId,
    incident: IncidentId,
    kind: RepairKind,
    attempt: int,
    reason: str,
    consent: Consent,
    command: str,
    trace: str,
) -> RepairRecord:
    of_node = kind is RepairKind.REBOOT_NODE
    state = RepairState.APPROVED if consent is Consent.AUTO else RepairState.PROPOSED
    return RepairRecord(
        id=made_id(held.node if of_node else held.device, kind.value, scene.state.revision),
        region=scene.state.region,
        node=held.node,
        device=DeviceId("") if of_node else held.device,
        uuid="" if of_node else held.uuid,
        kind=kind,
        state=state,
        reason=reason,
        incident=incident,
        drain=drain,
        command=command,
        attempt=attempt,
        proposed_ms=scene.now.ledger_ms,
        decided_by="policy" if state is RepairState.APPROVED else "",
        deadline_ms=0,
        result="",
        stages=(Stamp(state.value, scene.now.ledger_ms),),
        trace=trace,
    )


def _for_probation(scene: _Scene, device: DeviceId, held: Versioned[HealthRecord]) -> Iterator[Decision]:
    """A self-test, unless one is under way. One that was lost is tried again after a pause that doubles."""
    if scene.settings.policy.mode is Mode.OFF:
        return
    tests = [
        r.record
        for r in scene.by_node.get(held.record.node, ())
        if r.record.kind is RepairKind.SELF_TEST and r.record.device == device
    ]
    if any(test.state in BEFORE_END for test in tests):
        return
    tried = [test for test in tests if test.proposed_ms >= held.record.since_ms and test.state in TRIED]
    if tried:
        pause = scene.settings.policy.repair_hold_ms << min(len(tried) - 1, MAX_DOUBLINGS)
        if scene.now.ledger_ms - tried[-1].stages[-1].at_ms < pause:
            return
    attempt = len(tried) + 1
    reason = f"self_test of {device} before service, attempt {attempt}"
    record = _record(
        scene, held.record, held.record.drain, held.record.incident, RepairKind.SELF_TEST, attempt, reason,
        Consent.AUTO, scene.policy.self_test, held.record.trace,
    )  # fmt: skip
    draft = Draft()
    draft.put(scene.keys.repair(record.id), record, None)
    guard = Guard(scene.keys.health(device), held.revision)
    yield Decision(
        "repair.propose", f"repair {record.id}: {reason}", draft.writes(), (guard,), f"repair/{record.id}", (),
        record.trace,
    )  # fmt: skip


# -- how far they are -------------------------------------------------------------------------------------------------


def _advance(scene: _Scene, repair: Repair) -> Iterator[Decision]:
    record, now_ms = repair.record, scene.now.ledger_ms
    match record.state:
        case RepairState.PROPOSED | RepairState.APPROVED:
            if why := _void(scene, record):
                yield to(scene.keys, repair, RepairState.EXPIRED, f"no longer needed: {why}", now_ms)
            elif record.state is RepairState.APPROVED and record.kind in BY_AGENT:
                yield from _begin(scene, repair)
        case RepairState.RUNNING:
            if record.deadline_ms <= now_ms:
                why = f"no answer from {record.node} by its deadline, so nobody knows whether it was done"
                yield to(scene.keys, repair, RepairState.LOST, why, now_ms)
        case RepairState.DONE:
            yield from cured(scene.state, repair, scene.now)
        case RepairState.FAILED if record.kind is RepairKind.SELF_TEST:
            yield from test_failed(scene.state, record, scene.now)
        case _:
            pass
    if record.state not in BEFORE_END and now_ms - record.stages[-1].at_ms >= KEPT_MS:
        draft = Draft()
        draft.delete(scene.keys.repair(record.id), repair)
        sentence = f"repair {record.id} has been over for {duration(KEPT_MS)} and is in the audit trail alone"
        yield Decision("repair.forget", sentence, draft.writes(), (), f"repair/{record.id}", audit=False)


def to(
    keys: RegionKeys, repair: Repair, state: RepairState, result: str, at_ms: int, by: str = "", trace: str = ""
) -> Decision:
    """The repair in another state. Also for the API and for what agents report."""
    record, draft = repair.record, Draft()
    changed = replace(
        record,
        state=state,
        result=result,
        decided_by=by or record.decided_by,
        stages=(*record.stages, Stamp(state.value, at_ms)),
    )
    draft.put(keys.repair(record.id), changed, repair)
    sentence = f"repair {record.id} ({record.kind.value}) is {state.value}: {result}"
    return Decision(
        f"repair.{state.value}", sentence, draft.writes(), (), f"repair/{record.id}", (), trace or record.trace
    )  # fmt: skip


def _void(scene: _Scene, record: RepairRecord) -> str:
    """Why nobody needs it any more; ""."""
    if record.kind is RepairKind.SELF_TEST:
        held = scene.state.health.get(record.device)
        if held is None or not needs_test(held.record, scene.settings.policy):
            return f"{record.device} needs no test now"
        return "" if held.record.uuid == record.uuid else "another card is in the slot"
    drain = scene.state.drains.get(record.drain)
    if drain is None:
        return "" if scene.keys.drain(record.drain) in scene.state.suspect_keys else f"drain {record.drain} is gone"
    device = drain.record.device
    held = scene.state.health.get(device)
    if held is None or held.record.drain != record.drain or held.record.state is not HealthState.DRAINED:
        return f"{device} is not drained by {record.drain} any more"
    if record.device and held.record.uuid != record.uuid:
        return "another card is in the slot"
    return ""


def _begin(scene: _Scene, repair: Repair) -> Iterator[Decision]:
    record, state = repair.record, scene.state
    devices = _devices(state, record)
    if record.kind is RepairKind.REBOOT_NODE:
        yield from _ask_for(scene, repair, devices)
    if _not_yet(scene, record, devices):
        return
    draft = Draft()
    timeout = scene.policy.self_test_timeout_ms if record.kind is RepairKind.SELF_TEST else scene.policy.timeout_ms
    deadline_ms = scene.now.ledger_ms + timeout
    running = replace(
        record,
        state=RepairState.RUNNING,
        deadline_ms=deadline_ms,
        stages=(*record.stages, Stamp(RepairState.RUNNING.value, scene.now.ledger_ms)),
    )
    draft.put(scene.keys.repair(record.id), running, repair)
    guards = tuple(Guard(scene.keys.health(d), state.health[d].revision) for d in devices)
    empty = "is drained and no job is on it" if len(devices) == 1 else f"has its {len(devices)} devices drained, no job"
    sentence = f"repair {record.id} begins: {record.device or record.node} {empty}; within {duration(timeout)}"
    yield Decision("repair.begin", sentence, draft.writes(), guards, f"repair/{record.id}", (), record.trace)


def _devices(state: RegionState, record: RepairRecord) -> tuple[DeviceId, ...]:
    if record.device:
        return (record.device,)
    return tuple(sorted(name for name, device in state.devices.items() if device.record.node == record.node))


def _not_yet(scene: _Scene, record: RepairRecord, devices: tuple[DeviceId, ...]) -> str:
    """Why it must not begin now; "" if it may. What cannot be known forbids it."""
    state = scene.state
    liveness = state.liveness.get(record.node)
    if liveness is None or liveness.record.state is not NodeState.ALIVE:
        return f"{record.node} is not heard"
    for other in scene.by_node.get(record.node, ()):
        if other.record.state is RepairState.RUNNING:
            return f"{other.record.id} is under way on {record.node}"
    testing = record.kind is RepairKind.SELF_TEST
    good = frozenset({HealthState.PROBATION}) if testing else OUT_FOR_GOOD
    for device in devices:
        held = state.health.get(device)
        if held is None or held.record.state not in good or scene.keys.health(device) in state.suspect_keys:
            return f"{device} is {held.record.state.value if held else 'unknown'}"
        present = jobs_on(state, scene.world, device)
        if present.unknown or present.jobs:
            return present.unknown or f"{listed(sorted(present.jobs))} may be on {device}"
    return "" if devices else f"{record.node} has no devices"


def _ask_for(scene: _Scene, repair: Repair, devices: tuple[DeviceId, ...]) -> Iterator[Decision]:
    """The node's other devices, within the budgets, in the name of the repair."""
    record, state, draft = repair.record, scene.state, Draft()
    asked = {d.record.device for d in state.drains.values() if d.record.maintenance == record.id}
    under_way = {
        d.record.device
        for d in state.drains.values()
        if d.record.state in (DrainState.ADMITTED, DrainState.EVACUATING, DrainState.EXPIRED)
    }
    wanted: list[str] = []
    for device in devices:
        held = state.health.get(device)
        if held is None or held.record.state in OUT_FOR_GOOD or device in asked | under_way:
            continue
        if device in state.drain_requests or scene.keys.drain_request(device) in state.suspect_keys:
            continue
        reason = f"repair {record.id}: {record.node} is to be rebooted"
        request = DrainRequestRecord(
            device, MACHINE, reason, scene.now.ledger_ms, record.trace, DrainMode(scene.settings.policy.drain.mode),
            scene.settings.policy.drain.wait_ms, maintenance=record.id,
        )  # fmt: skip
        draft.put(scene.keys.drain_request(device), request, None)
        wanted.append(device)
    if wanted:
        guard = Guard(scene.keys.repair(record.id), repair.revision)
        sentence = f"{listed(wanted)} asked for by repair {record.id}, so that {record.node} is empty"
        yield Decision(
            "drain.request", sentence, draft.writes(), (guard,), f"repair/{record.id}", (), record.trace
        )  # fmt: skip
