"""Events become findings: what an agent saw, judged by the fault catalogue. Pure.

Each event is digested once, in the order in which events became durable: ``DetectorRecord.revision`` is the create
revision of the newest one, moved in the transaction that writes the findings. Repeats of a fault (same subject, code,
action and severity) while its finding is active join it: 800,000 lines of which 29 are distinct are 29 findings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from controlplane.domain.causes import adopted, as_consequence, cause_of, clears
from controlplane.domain.evidence import is_level, merged, subject_of
from controlplane.domain.repeats import (
    Counts,
    booted,
    count,
    drains_due,
    forget,
    is_sticky,
    matching,
    raised,
    remediated,
    restated,
)
from controlplane.domain.repeats import Sighting as RepeatSighting
from controlplane.domain.words import clock_time, listed, made_id
from gridkeeper.catalogue import Verdict, judge, rehearsed
from gridkeeper.decision import Decision, Draft, Now, Versioned
from gridkeeper.ids import DeviceId, FindingId, NodeId, RegionId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import Policy
from gridkeeper.records.common import Action, Severity
from gridkeeper.records.faults import DetectorRecord, FindingRecord, IncidentRecord, IncidentState
from gridkeeper.records.fleet import DeviceRecord, EventKind, EventRecord
from gridkeeper.snapshot import RegionState, Settings

SHADOW = "shadow"
"""Ends the id of a finding of a rule on trial, beside the one that counts."""
BATCH = 20
"""Events per decision; all events of one store transaction (at most 64) stay together."""

MAX_CLEARED, MAX_WRITES = 24, 90
"""Of one decision; an event adds at most two findings (one of a rule on trial), an incident, and two records per repeat
rule that counts it."""


def classify(
    event: EventRecord, device: DeviceRecord | None, recent: Iterable[EventRecord], region: RegionId, policy: Policy
) -> FindingRecord | None:
    """The finding of one event; None for an event that convicts nobody (a boot, a device that is back).

    ``device`` None: the event is about the node, or its device is not in the inventory. ``recent``: other events of
    the same device, any order.
    """
    verdict = verdict_on(event, device, recent, policy)
    return finding_of(event, device, verdict, region) if verdict else None


def verdict_on(
    event: EventRecord, device: DeviceRecord | None, recent: Iterable[EventRecord], policy: Policy
) -> Verdict | None:
    """The catalogue's judgement of the event in the chain that it stands in."""
    verdict = judge(event, device, policy)
    return as_consequence(event, verdict, cause_of(event, recent)) if verdict else None


def finding_of(event: EventRecord, device: DeviceRecord | None, verdict: Verdict, region: RegionId) -> FindingRecord:
    subject = event.device or event.node
    where = f"{subject} ({device.model})" if device and device.model else subject
    seen_by = f", seen by {' and '.join(event.sources)}" if event.sources else ""
    times = f", {event.count} times" if event.count > 1 else ""
    return FindingRecord(
        id=FindingId(made_id(subject, verdict.code, event.spool, event.sequence)),
        region=region,
        node=event.node,
        device=event.device,
        scope=verdict.scope,
        fault_class=verdict.fault_class,
        code=verdict.code,
        severity=verdict.severity,
        action=verdict.action,
        sentence=f"{verdict.meaning} on {where} at {clock_time(event.observed_ms)}{seen_by}{times}",
        evidence=(event.id,),
        observed_ms=event.observed_ms,
        rule=verdict.rule,
        rule_version=verdict.rule_version,
        active=True,
        trace=event.trace,
        source=verdict.source,
        confidence=verdict.confidence,
        shadow=verdict.shadow,
        count=event.count,
    )


_Key = tuple[str, str, Action, Severity, bool]


def _key(finding: FindingRecord) -> _Key:
    """Findings with the same key are one. A graver sub-code, or one that is to be acted on, is another."""
    return subject_of(finding), finding.code, finding.action, finding.severity, finding.shadow


@dataclass(slots=True)
class _Digest:
    """The findings and incidents as they are after the events taken so far."""

    state: RegionState
    policy: Policy
    keys: RegionKeys
    draft: Draft = field(default_factory=Draft)
    active: dict[NodeId, dict[_Key, FindingRecord]] = field(default_factory=dict)
    bumped: dict[str, IncidentRecord] = field(default_factory=dict)
    new: list[FindingRecord] = field(default_factory=list)
    cleared: int = 0
    repeats: int = 0
    incidents: dict[FindingId, str] | None = None
    counts: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.counts = Counts(self.state, self.policy, self.keys, self.draft)

    def put(self, finding: FindingRecord) -> None:
        self.draft.put(self.keys.finding(finding.id), finding, self.state.findings.get(finding.id))
        self.keep(finding)

    def keep(self, finding: FindingRecord) -> None:
        """Remember it as active, or forget the active one that it was."""
        of_node, key = self.active.setdefault(finding.node, {}), _key(finding)
        if finding.active:
            of_node[key] = finding
        elif key in of_node and of_node[key].id == finding.id:
            del of_node[key]

    def like(self, finding: FindingRecord) -> FindingRecord | None:
        """The active finding that another one like this joins."""
        return self.active.get(finding.node, {}).get(_key(finding))

    def off_trial(self, finding: FindingRecord) -> FindingRecord | None:
        """The active one that was raised on trial and is not any more, as it is now."""
        of_node = self.active.get(finding.node, {})
        tried = None if finding.shadow else of_node.pop(_key(replace(finding, shadow=True)), None)
        return replace(tried, shadow=False) if tried else None

    def incident_of(self, finding: FindingId) -> str | None:
        """The unresolved incident that a finding belongs to."""
        if self.incidents is None:
            held = ((name, v.record) for name, v in self.state.incidents.items())
            open_ones = ((name, record) for name, record in held if record.state is not IncidentState.RESOLVED)
            self.incidents = {finding: name for name, record in open_ones for finding in record.findings}
        return self.incidents.get(finding)


def decide_detection(state: RegionState, settings: Settings, now: Now) -> Decision | None:
    """Digest the oldest events that are not digested yet. None: there are none."""
    keys = RegionKeys(state.region)
    if keys.detector in state.suspect_keys:
        return None  # where detection stands is unknown; deciding would conflict for ever, and the mirror says why
    if renewed := state.memo.once(restated, state.findings, settings.policy):
        return _restatement(renewed[:BATCH], state, settings.policy, keys)
    digested = state.detector.record.revision if state.detector else 0
    waiting = sorted((v for v in state.events.values() if v.created > digested), key=lambda v: (v.created, v.record.id))
    if not waiting:
        return _remediations(state, settings, keys)
    batch = _whole_transactions(waiting)
    digest = _Digest(state, settings.policy, keys)
    for finding in state.findings.values():
        record = finding.record
        if record.active and not is_level(record):
            digest.keep(record)
    recent = _recent(state, {v.record.device for v in batch})
    for event in batch:
        if not _take(digest, event.record, recent):
            # It does not fit into one transaction: what is done is found done next time, and the rest follows.
            _raise(digest)
            return _decision(digest, _sentence(digest, len(batch)), event.record)
    _raise(digest)
    if len(digest.draft.puts) < MAX_WRITES:
        forget(digest.counts, now)
    detector = DetectorRecord(batch[-1].created)
    digest.draft.put(keys.detector, detector, state.detector)
    return _decision(digest, _sentence(digest, len(batch)), batch[0].record)


def _restatement(findings: tuple[FindingRecord, ...], state: RegionState, policy: Policy, keys: RegionKeys) -> Decision:
    """What stands is judged by the policy in force."""
    draft = Draft()
    for finding in findings:
        draft.put(keys.finding(finding.id), finding, state.findings[finding.id])
    said = listed([f"{f.code} on {subject_of(f)} is {f.severity.value}, {f.action.value}" for f in findings])
    evidence = tuple(finding.id for finding in findings)
    subject = f"node/{findings[0].node}"
    sentence = f"by policy v{policy.version} {said}"
    return Decision("detect.classify", sentence, draft.writes(), (), subject, evidence, findings[0].trace)


def _remediations(state: RegionState, settings: Settings, keys: RegionKeys) -> Decision | None:
    """Nodes that are drained again and again, once per drain that is too many."""
    policy = settings.policy
    draft = Draft()
    found: list[FindingRecord] = []
    for rule, node, times in drains_due(state, policy):
        finding = remediated(rule, node, times, policy, state.region)
        if finding.id in state.findings or len(draft.puts) >= BATCH:
            continue
        draft.put(keys.finding(finding.id), finding, None)
        found.append(finding)
    if not found:
        return None
    sentence = listed([finding.sentence for finding in found], 3)
    evidence = tuple(finding.id for finding in found)
    return Decision("detect.classify", sentence, draft.writes(), subject=f"node/{found[0].node}", evidence=evidence)


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
    device = digest.state.devices.get(event.device) if event.device else None
    others = (other for other in recent.get(event.device, ()) if other.id != event.id)
    verdict = verdict_on(event, device.record if device else None, others, digest.policy)
    rules = matching(digest.policy, event, verdict) if verdict else ()
    if len(digest.draft.puts) + 2 * len(rules) >= MAX_WRITES and digest.draft.puts:
        return False
    for ended in [f for f in digest.active.get(event.node, {}).values() if clears(event, f)]:
        if is_sticky(digest.state.repeats, ended, event.observed_ms):
            continue
        if digest.cleared >= MAX_CLEARED:
            return False
        digest.put(replace(ended, active=False))
        digest.cleared += 1
    if event.kind is EventKind.BOOT:
        booted(digest.counts, event)
    if verdict is None:
        return True
    count(digest.counts, RepeatSighting(event, verdict), rules)
    card = device.record if device else None
    if (trial := rehearsed(event, card, digest.policy, verdict)) is not None:
        shadow = finding_of(event, card, trial, digest.state.region)
        _found(digest, event, replace(shadow, id=FindingId(f"{shadow.id}:{SHADOW}")))
    finding = finding_of(event, card, verdict, digest.state.region)
    if finding.id not in digest.state.findings:
        _adopt(digest, event)
        _found(digest, event, finding)
    return True


def _found(digest: _Digest, event: EventRecord, finding: FindingRecord) -> None:
    """A finding of the event is raised, or joins the one like it."""
    if finding.id in digest.state.findings:
        return
    same = digest.like(finding)
    if same is None:
        digest.put(finding)
        digest.new.append(finding)
        return
    if event.id in same.evidence:
        return  # taken by an earlier decision that was full before it reached the end of the batch
    digest.repeats += 1
    seen_ms = max(same.observed_ms, same.last_ms, finding.observed_ms)
    evidence, sightings = merged(same.evidence, finding.evidence), same.count + event.count
    digest.put(replace(same, evidence=evidence, count=sightings, last_ms=seen_ms))
    _count(digest, same, event)


def _raise(digest: _Digest) -> None:
    """Findings of repeat rules that have counted enough, and what they hold for how long."""
    for rule, record, sighting in tuple(digest.counts.due()):
        finding = raised(rule, record, sighting, digest.policy, digest.state.region)
        same = digest.like(finding)
        if same is None and record.sticky_until_ms > sighting.event.observed_ms:
            same = digest.off_trial(finding)
        if same is not None:
            evidence, seen_ms = merged(same.evidence, finding.evidence), max(same.last_ms, finding.observed_ms)
            digest.put(replace(same, evidence=evidence, count=same.count + 1, last_ms=seen_ms))
        elif sighting.event.observed_ms >= record.sticky_until_ms and finding.id not in digest.state.findings:
            digest.put(finding)
            digest.new.append(finding)
        if rule.sticky_ms:
            until = max(record.sticky_until_ms, max(record.times_ms) + rule.sticky_ms)
            digest.counts.put(replace(record, sticky_until_ms=until))


def _adopt(digest: _Digest, cause: EventRecord) -> None:
    """Consequences that came before their cause join its incident."""
    of_node = digest.active.get(cause.node, {})
    for finding in list(of_node.values()):
        if followed := adopted(finding, cause):
            del of_node[_key(finding)]
            digest.put(followed)


def _count(digest: _Digest, finding: FindingRecord, event: EventRecord) -> None:
    """A repeat counts in the incident that its finding belongs to."""
    name = digest.incident_of(finding.id)
    if name is None:
        return
    incident = digest.state.incidents[name]
    record = digest.bumped.get(name, incident.record)
    counted = replace(record, count=record.count + event.count, last_ms=max(record.last_ms, event.observed_ms))
    digest.bumped[name] = counted
    digest.draft.put(digest.keys.incident(name), counted, incident)


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
