"""Events become findings: what an agent saw, judged by the fault catalogue. Pure.

Each event is digested once, in the order in which events became durable: ``DetectorRecord.revision`` is the create
revision of the newest one, moved in the transaction that writes the findings. Repeats of a fault (same subject, code
and action) while its finding is active join that finding, so 800,000 lines of which 29 are distinct are 29 findings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from controlplane.domain.evidence import (
    HANG,
    LOST,
    MISSING,
    OVERFLOW,
    SEVERITY_RANK,
    is_level,
    merged,
)
from controlplane.domain.words import clock_time, listed, made_id
from gridkeeper.catalogue import nvidia
from gridkeeper.decision import Decision, Draft, Now, Versioned
from gridkeeper.ids import DeviceId, FindingId, RegionId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import DetectorRecord, FindingRecord, IncidentRecord, IncidentState
from gridkeeper.records.fleet import DeviceRecord, EventKind, EventRecord
from gridkeeper.snapshot import RegionState, Settings

FOLLOW_MS = 60_000
"""An XID 45 (or the text of a 154) belongs to another XID of the device up to this far from it."""

BATCH = 20
"""Events per decision; all events of one store transaction (at most 64) stay together."""

MAX_CLEARED, MAX_WRITES = 24, 90
CLEAN_UP, RECOVERY, SMOOTHING_ON, SMOOTHING_OFF = 45, 154, 162, 163


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one event means."""

    code: str
    fault_class: str
    scope: Scope
    severity: Severity
    action: Action
    meaning: str


def classify(
    event: EventRecord, device: DeviceRecord | None, recent: Iterable[EventRecord], region: RegionId
) -> FindingRecord | None:
    """The finding of one event; None for an event that convicts nobody (a boot, a device that is back).

    ``device`` None: the event is about the node, or its device is not in the inventory. ``recent``: other events of
    the same device, any order.
    """
    verdict = verdict_of(event, tuple(recent))
    if verdict is None:
        return None
    subject = event.device or event.node
    scope = verdict.scope if event.device else Scope.NODE
    where = f"{subject} ({device.model})" if device and device.model else subject
    seen_by = f", seen by {' and '.join(event.sources)}" if event.sources else ""
    times = f", {event.count} times" if event.count > 1 else ""
    return FindingRecord(
        id=FindingId(made_id(subject, verdict.code, event.spool, event.sequence)),
        region=region,
        node=event.node,
        device=event.device,
        scope=scope,
        fault_class=verdict.fault_class,
        code=verdict.code,
        severity=verdict.severity,
        action=verdict.action,
        sentence=f"{verdict.meaning} on {where} at {clock_time(event.observed_ms)}{seen_by}{times}",
        evidence=(event.id,),
        observed_ms=event.observed_ms,
        rule=nvidia.RULE if event.kind is EventKind.XID else f"event-{event.kind.value}",
        rule_version=nvidia.RULE_VERSION,
        active=True,
        trace=event.trace,
    )


def verdict_of(event: EventRecord, recent: tuple[EventRecord, ...]) -> Verdict | None:
    """The judgement of the catalogue, and of the chain that the event stands in."""
    match event.kind:
        case EventKind.BOOT | EventKind.DEVICE_FOUND:
            return None
        case EventKind.XID:
            return _xid(event, recent)
        case EventKind.SXID:
            fatal = "fatal" in event.message.lower() and "non-fatal" not in event.message.lower()
            severity = Severity.ERROR if fatal else Severity.WARNING
            meaning = f"SXID {event.code} of an NVSwitch"
            return Verdict(f"sxid-{event.code}", "fabric", Scope.LINK, severity, Action.WATCH, meaning)
        case EventKind.DEVICE_MISSING:
            # Only the driver's own word "lost" convicts; a device that merely is not listed is unknown.
            if "is lost" in event.message.lower():
                meaning = "the driver says that the GPU is lost"
                return Verdict(LOST, "bus", Scope.NODE, Severity.FATAL, Action.REBOOT_NODE, meaning)
            meaning = "the device is missing from the inventory"
            return Verdict(MISSING, "bus", Scope.DEVICE, Severity.ERROR, Action.WATCH, meaning)
        case EventKind.DRIVER_HANG:
            meaning = "a driver call does not come back"
            return Verdict(HANG, "driver", Scope.DEVICE, Severity.ERROR, Action.WATCH, meaning)
        case EventKind.OVERFLOW:
            meaning = "events were dropped, so what happened meanwhile is unknown"
            return Verdict(OVERFLOW, "telemetry", Scope.NODE, Severity.WARNING, Action.WATCH, meaning)
        case EventKind.HOST:
            meaning = f"host fault {event.code} ({event.message[:120]})"
            return Verdict(f"host-{event.code}", "host", Scope.NODE, Severity.ERROR, Action.WATCH, meaning)
        case EventKind.REPLAY:
            meaning = f"replayed event {event.code} ({event.message[:120]})"
            return Verdict(f"replay-{event.code}", "replay", Scope.DEVICE, Severity.WARNING, Action.WATCH, meaning)
        case EventKind.AMD | EventKind.ASCEND | EventKind.CAMBRICON | EventKind.PPU | EventKind.SELF_TEST:
            code = f"{event.kind.value}-{event.code}"
            meaning = f"{code} ({event.message[:120]})"
            return Verdict(code, "device", Scope.DEVICE, Severity.WARNING, Action.WATCH, meaning)


def _xid(event: EventRecord, recent: tuple[EventRecord, ...]) -> Verdict:
    entry = nvidia.lookup_xid(event.code)
    code = f"xid-{event.code}"
    meaning = f"XID {event.code} ({entry.description if entry.known else 'unknown code'})"
    cause = _cause(event, recent)
    if event.code == CLEAN_UP and cause is not None:
        follows = nvidia.lookup_xid(cause.code)
        meaning += f" that follows XID {cause.code}"
        return Verdict(code, follows.fault_class, Scope.PROCESS, Severity.INFO, Action.IGNORE, meaning)
    if event.code == RECOVERY:
        action = nvidia.recovery_action(event.message)
        fault_class = nvidia.lookup_xid(cause.code).fault_class if cause else entry.fault_class
        if action is Action.IGNORE:
            return Verdict(code, fault_class, entry.scope, Severity.INFO, action, meaning + ": none is needed any more")
        if action is not None:
            said = "reboot of the node" if action is Action.REBOOT_NODE else "reset of the GPU"
            return Verdict(code, fault_class, entry.scope, Severity.FATAL, action, f"{meaning} to a {said}")
        return Verdict(code, fault_class, entry.scope, entry.severity, entry.action, meaning)
    return Verdict(code, entry.fault_class, entry.scope, entry.severity, entry.action, meaning)


def _cause(event: EventRecord, recent: tuple[EventRecord, ...]) -> EventRecord | None:
    """The gravest other XID of the device within ``FOLLOW_MS``."""
    near = [
        other
        for other in recent
        if other.kind is EventKind.XID
        and other.device == event.device
        and other.code not in (CLEAN_UP, RECOVERY)
        and abs(other.observed_ms - event.observed_ms) <= FOLLOW_MS
    ]
    return max(near, key=lambda o: (SEVERITY_RANK[nvidia.lookup_xid(o.code).severity], o.id), default=None)


def clears(event: EventRecord, finding: FindingRecord) -> bool:
    """Whether the event ends what the finding says. A boot or a device that is back resets what a reset can cure and
    what was seen before it; a worn-out card stays worn out, and level rules speak for themselves."""
    if not finding.active or is_level(finding) or finding.node != event.node:
        return False
    if event.kind is EventKind.BOOT:
        return finding.action is not Action.REPLACE and finding.observed_ms <= event.observed_ms
    if finding.device != event.device:
        return False
    if event.kind is EventKind.DEVICE_FOUND:
        return finding.code in (MISSING, LOST)
    if event.kind is not EventKind.XID:
        return False
    if event.code == RECOVERY:
        return finding.code == f"xid-{RECOVERY}" and nvidia.recovery_action(event.message) is Action.IGNORE
    return event.code == SMOOTHING_ON and finding.code == f"xid-{SMOOTHING_OFF}"


@dataclass(slots=True)
class _Digest:
    """The findings and incidents as they are after the events taken so far."""

    state: RegionState
    keys: RegionKeys
    draft: Draft = field(default_factory=Draft)
    active: dict[tuple[str, str, Action], FindingRecord] = field(default_factory=dict)
    bumped: dict[str, IncidentRecord] = field(default_factory=dict)
    new: list[FindingRecord] = field(default_factory=list)
    cleared: int = 0
    repeats: int = 0

    def put(self, finding: FindingRecord) -> None:
        self.draft.put(self.keys.finding(finding.id), finding, self.state.findings.get(finding.id))
        key = (finding.device or finding.node, finding.code, finding.action)
        if finding.active:
            self.active[key] = finding
        elif key in self.active and self.active[key].id == finding.id:
            del self.active[key]


def decide_detection(state: RegionState, settings: Settings, now: Now) -> Decision | None:
    """Digest the oldest events that are not digested yet. None: there are none."""
    keys = RegionKeys(state.region)
    if keys.detector in state.suspect_keys:
        return None  # where detection stands is unknown; deciding would conflict for ever, and the mirror says why
    digested = state.detector.record.revision if state.detector else 0
    waiting = sorted((v for v in state.events.values() if v.created > digested), key=lambda v: (v.created, v.record.id))
    if not waiting:
        return None
    batch = _whole_transactions(waiting)
    digest = _Digest(state, keys)
    for finding in state.findings.values():
        record = finding.record
        if record.active and not is_level(record):
            digest.active[(record.device or record.node, record.code, record.action)] = record
    recent = _recent(state, {v.record.device for v in batch})
    for event in batch:
        if not _take(digest, event.record, recent):
            # It does not fit into one transaction: what is done is found done next time, and the rest follows.
            return _decision(digest, _sentence(digest, len(batch)), event.record)
    detector = DetectorRecord(batch[-1].created)
    digest.draft.put(keys.detector, detector, state.detector)
    return _decision(digest, _sentence(digest, len(batch)), batch[0].record)


def _whole_transactions(waiting: list[Versioned[EventRecord]]) -> list[Versioned[EventRecord]]:
    end = 0
    while end < len(waiting):
        stop = end
        while stop < len(waiting) and waiting[stop].created == waiting[end].created:
            stop += 1
        if end and stop > BATCH:
            break
        end = stop
    return waiting[:end]


def _recent(state: RegionState, devices: set[DeviceId]) -> dict[DeviceId, list[EventRecord]]:
    found: dict[DeviceId, list[EventRecord]] = {}
    for event in state.events.values():
        if event.record.device and event.record.device in devices:
            found.setdefault(event.record.device, []).append(event.record)
    return found


def _take(digest: _Digest, event: EventRecord, recent: dict[DeviceId, list[EventRecord]]) -> bool:
    """Fold one event in. False: the transaction is full."""
    if len(digest.draft.puts) >= MAX_WRITES:
        return False
    for ended in [f for f in digest.active.values() if clears(event, f)]:
        if digest.cleared >= MAX_CLEARED:
            return False
        digest.put(replace(ended, active=False))
        digest.cleared += 1
    device = digest.state.devices.get(event.device) if event.device else None
    others = (other for other in recent.get(event.device, ()) if other.id != event.id)
    finding = classify(event, device.record if device else None, others, digest.state.region)
    if finding is None or finding.id in digest.state.findings:
        return True
    same = digest.active.get((finding.device or finding.node, finding.code, finding.action))
    if same is None:
        digest.put(finding)
        digest.new.append(finding)
        return True
    if event.id in same.evidence:
        return True  # taken by an earlier decision that was full before it reached the end of the batch
    digest.repeats += 1
    digest.put(replace(same, evidence=merged(same.evidence, finding.evidence)))
    _count(digest, same, event)
    return True


def _count(digest: _Digest, finding: FindingRecord, event: EventRecord) -> None:
    """A repeat counts in the incident that its finding belongs to."""
    for name, incident in digest.state.incidents.items():
        record = digest.bumped.get(name, incident.record)
        if record.state is IncidentState.RESOLVED or finding.id not in record.findings:
            continue
        counted = replace(record, count=record.count + event.count, last_ms=max(record.last_ms, event.observed_ms))
        digest.bumped[name] = counted
        digest.draft.put(digest.keys.incident(name), counted, incident)
        return


def _sentence(digest: _Digest, events: int) -> str:
    what = listed([finding.sentence for finding in digest.new], 3) if digest.new else "nothing new"
    more = [f"{digest.repeats} repeats"] if digest.repeats else []
    more += [f"{digest.cleared} findings cleared"] if digest.cleared else []
    return "; ".join([f"{events} events digested: {what}", *more])


def _decision(digest: _Digest, sentence: str, first: EventRecord) -> Decision:
    shown = digest.new[0] if digest.new else None
    subject = (shown.device if shown else first.device) or first.node
    kind = "device" if "/" in subject else "node"
    return Decision(
        "detect.classify",
        sentence,
        digest.draft.writes(),
        subject=f"{kind}/{subject}",
        evidence=tuple(dict.fromkeys(e for f in digest.new for e in f.evidence)) or (first.id,),
        trace=shown.trace if shown else first.trace,
        audit=bool(digest.new or digest.cleared),
    )
