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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from controlplane.domain.drain_progress import UNDER_WAY
from controlplane.domain.evacuation import jobs_on
from controlplane.domain.evidence import Finding, bearing_on, by_subject, calls_out, worst
from controlplane.domain.health import MACHINE, needs_test
from controlplane.domain.repair_effects import cured, forgotten, not_cured, test_failed
from controlplane.domain.repair_index import (
    BEFORE_END,
    Repair,
    Repairs,
    devices_of,
    drains_of,
    latest_ms,
    out_of_service,
    repairs,
)
from controlplane.domain.words import duration, listed, made_id
from gridkeeper.decision import Decision, Draft, Guard, Now, Versioned
from gridkeeper.ids import DeviceId, DrainId, IncidentId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import Consent, Mode, RepairPolicy
from gridkeeper.records.care import RepairKind, RepairRecord, RepairState
from gridkeeper.records.common import Action, Stamp
from gridkeeper.records.faults import DrainMode, DrainRecord, DrainRequestRecord, FindingRecord
from gridkeeper.records.fleet import HealthRecord, HealthState, NodeState
from gridkeeper.snapshot import GlobalState, RegionState, Settings

TRIED = frozenset({RepairState.DONE, RepairState.FAILED, RepairState.LOST})
WANTED: Mapping[Action, RepairKind] = {
    Action.RESET_DEVICE: RepairKind.RESET_DEVICE,
    Action.REBOOT_NODE: RepairKind.REBOOT_NODE,
    Action.REPLACE: RepairKind.TICKET,
    Action.DRAIN: RepairKind.TICKET,
}
BY_AGENT = frozenset({RepairKind.SELF_TEST, RepairKind.RESET_DEVICE, RepairKind.REBOOT_NODE})
OUT_FOR_GOOD = frozenset({HealthState.DRAINED, HealthState.RETIRED})
MAX_DOUBLINGS = 6


@dataclass(frozen=True, slots=True)
class _Scene:
    state: RegionState
    world: GlobalState
    settings: Settings
    now: Now
    keys: RegionKeys
    findings: Mapping[str, list[Finding]]
    repairs: Repairs

    @property
    def policy(self) -> RepairPolicy:
        return self.settings.policy.repair


def decide_repairs(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """Propose, start, time out and conclude. One decision each."""
    policy = settings.policy.repair
    off = {policy.reset_device, policy.reboot_node, policy.ticket} == {Consent.OFF} and not policy.self_test
    if off and not state.repairs:
        return ()
    findings, index = state.memo.once(by_subject, state.findings), repairs(state)
    scene = _Scene(state, world, settings, now, RegionKeys(state.region), findings, index)
    decisions = [d for repair in index.open for d in _advance(scene, repair)]
    decisions.extend(forgotten(scene.keys, index.over, now))
    for device, held in out_of_service(state):
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
    main = worst(f.record for f in bearing_on(scene.findings, device) if f.record.active and calls_out(f.record))
    kind = WANTED.get(main.action) if main else None
    if main is None or kind is None or (kind is RepairKind.RESET_DEVICE and not main.device):
        return  # no reset of a device ends what is wrong with its node
    consent = _consent(scene, kind)
    if consent is Consent.OFF:
        return
    alike = [r.record for r in scene.repairs.by_node.get(held.record.node, ()) if r.record.kind is kind]
    if any(r.state in BEFORE_END and _is_for(r, device) for r in alike):
        return
    known = [r for r in alike if _counts(r, drain.record, held.record)]
    if any(r.state is RepairState.REJECTED for r in known):
        return
    tried = [r for r in known if r.state in TRIED]
    if tried and kind is RepairKind.TICKET:
        return  # it is somebody's business by now, or the desk would not have it
    if tried and scene.now.ledger_ms - latest_ms(tried[-1]) < scene.settings.policy.repair_hold_ms:
        return  # what it changed may still show
    if len(tried) >= scene.policy.attempts:
        yield from not_cured(scene.state, device, drain.record, kind, tried, scene.now)
        return
    yield _proposed(scene, held, drain.record, kind, main, len(tried) + 1, consent)


def _counts(repair: RepairRecord, drain: DrainRecord, held: HealthRecord) -> bool:
    """It was tried, or rejected, for this drain: one of the whole node for each device that was drained by then."""
    return repair.drain == drain.id or (not repair.device and latest_ms(repair) >= held.since_ms)


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
    of_node = kind is RepairKind.REBOOT_NODE or not main.device
    subject = held.record.node if of_node else held.record.device
    command = scene.policy.ticket_url if kind is RepairKind.TICKET else ""
    what = f"{kind.value} of {subject}, attempt {attempt} of {scene.policy.attempts}: {main.sentence}"
    record = _record(
        scene, held.record, drain.id, drain.incident, kind, attempt, what, consent, command, drain.trace, of_node
    )
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
    of_node: bool,
) -> RepairRecord:
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
        for r in scene.repairs.by_node.get(held.record.node, ())
        if r.record.kind is RepairKind.SELF_TEST and r.record.device == device
    ]
    if any(test.state in BEFORE_END for test in tests):
        return
    tried = [test for test in tests if test.proposed_ms >= held.record.since_ms and test.state in TRIED]
    if tried:
        pause = scene.settings.policy.repair_hold_ms << min(len(tried) - 1, MAX_DOUBLINGS)
        if scene.now.ledger_ms - latest_ms(tried[-1]) < pause:
            return
    attempt = len(tried) + 1
    reason = f"self_test of {device} before service, attempt {attempt}"
    record = _record(
        scene, held.record, held.record.drain, held.record.incident, RepairKind.SELF_TEST, attempt, reason,
        Consent.AUTO, scene.policy.self_test, held.record.trace, False,
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
            yield from _settled(scene, repair, cured(scene.state, scene.findings, repair, scene.now))
        case RepairState.FAILED:
            yield from _settled(scene, repair, test_failed(scene.state, record, scene.now))
        case _:
            pass


def _settled(scene: _Scene, repair: Repair, effects: Iterator[Decision]) -> Iterator[Decision]:
    """What follows from its end, also for events from before it that become durable only now. Once what it changed
    would have shown, nothing does any more."""
    record = repair.record
    due = tuple(effects)
    yield from due
    if not due and scene.now.ledger_ms - latest_ms(record) >= scene.settings.policy.repair_hold_ms:
        draft = Draft()
        draft.put(scene.keys.repair(record.id), replace(record, settled=True), repair)
        sentence = f"all that follows from repair {record.id} being {record.state.value} has been decided"
        yield Decision("repair.settle", sentence, draft.writes(), (), f"repair/{record.id}", audit=False)


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
    devices = devices_of(state, record)
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


def _not_yet(scene: _Scene, record: RepairRecord, devices: tuple[DeviceId, ...]) -> str:
    """Why it must not begin now; "" if it may. What cannot be known forbids it."""
    state = scene.state
    liveness = state.liveness.get(record.node)
    if liveness is None or liveness.record.state is not NodeState.ALIVE:
        return f"{record.node} is not heard"
    for other in scene.repairs.by_node.get(record.node, ()):
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
    wanted: list[str] = []
    for device in devices:
        held = state.health.get(device)
        if held is None or held.record.state in OUT_FOR_GOOD:
            continue
        if any(d.record.maintenance == record.id or d.record.state in UNDER_WAY for d in drains_of(state, device)):
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
