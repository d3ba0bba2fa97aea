"""What the repeat of a fault means more than one: counted durably, in the transaction that digests the events. Pure.

A ``RepeatRecord`` per rule and subject holds the last sightings (as many as the rule needs), so it is bounded. Nothing
is counted twice: ids of the last events and times of the sightings are kept, and both are compared. Nothing fires
early: only sightings count, never the time that has passed; a sighting that comes late takes its place by when it was
seen. Bursts are one sighting, dated by their latest.

A rule that has counted enough becomes a finding on the device (node, job) of the latest event, with the events as its
evidence; while it is sticky nothing but a human or a new card ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from controlplane.domain.evidence import MAX_EVIDENCE, SEVERITY_RANK, job_subject
from controlplane.domain.words import clock_time, duration, made_id, slug
from gridkeeper.catalogue import Verdict
from gridkeeper.decision import Draft, Now, Versioned
from gridkeeper.ids import DeviceId, FindingId, JobId, NodeId, RegionId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import Mode, Per, Policy, RepeatPolicy
from gridkeeper.records.common import Scope
from gridkeeper.records.faults import Confidence, DrainState, FindingRecord
from gridkeeper.records.fleet import EventRecord
from gridkeeper.records.limits import RepeatRecord
from gridkeeper.snapshot import RegionState

MAX_COUNT = 128
"""The largest ``count`` of a rule: so many sightings a record holds at most."""
MAX_IDS = 64
"""Ids of counted events that a record remembers: a decision that was cut short is at most a transaction of events
behind (see ``detect``)."""
MAX_BOOTS = 16
LOOK, SWEEP = 512, 8
"""Records that a decision looks at, and forgets at most, once nothing of theirs can count any more."""

DRAINS = "drain"
NOT_DRAINED = frozenset({DrainState.SHADOW, DrainState.REFUSED})
"""Wanted only: such a drain took nothing out."""
PREFIX = "repeat-"


@dataclass(frozen=True, slots=True)
class Sighting:
    """One event as repeat rules see it."""

    event: EventRecord
    verdict: Verdict


@dataclass(slots=True)
class Counts:
    """Repeat records as they are after the events taken so far, and what may have become due."""

    state: RegionState
    policy: Policy
    keys: RegionKeys
    draft: Draft
    records: dict[str, RepeatRecord] = field(default_factory=dict)
    touched: dict[str, tuple[RepeatPolicy, Sighting]] = field(default_factory=dict)
    by_node: dict[str, set[str]] | None = None

    def get(self, rule: str, subject: str) -> RepeatRecord | None:
        name = _name(rule, subject)
        held = self.state.repeats.get(name)
        return self.records.get(name) or (held.record if held else None)

    def put(self, record: RepeatRecord) -> None:
        name = _name(record.rule, record.subject)
        self.records[name] = record
        self.draft.put(self.keys.repeat(record.rule, record.subject), record, self.state.repeats.get(name))

    def asking_about_boots(self, node: NodeId) -> set[str]:
        """Names of the node's records whose rule asks whether a fault comes back after a boot."""
        asking = {rule.name for rule in self.policy.repeats if rule.reboots}
        if self.by_node is None:
            self.by_node = {}
            for name, held in self.state.repeats.items():
                if held.record.rule in asking:
                    self.by_node.setdefault(_node_of(held.record.subject), set()).add(name)
        fresh = {n for n, r in self.records.items() if r.rule in asking and _node_of(r.subject) == node}
        return self.by_node.get(node, set()) | fresh

    def due(self) -> Iterator[tuple[RepeatPolicy, RepeatRecord, Sighting]]:
        """Rules that have counted enough in this decision, and are neither raised already nor explained by another."""
        for name, (rule, sighting) in self.touched.items():
            record = self.records[name]
            if enough(rule, record) and not self._explained(rule, sighting):
                yield rule, record, sighting

    def _explained(self, rule: RepeatPolicy, sighting: Sighting) -> bool:
        other = next((r for r in self.policy.repeats if r.name == rule.unless and r.mode is not Mode.OFF), None)
        if other is None:
            return False
        subject = subject_of(other, sighting)
        record = self.get(other.name, subject) if subject else None
        return record is not None and enough(other, record)


def _node_of(subject: str) -> str:
    """``n1:gpu3:link-4`` -> ``n1``."""
    return subject.partition(":")[0]


def _name(rule: str, subject: str) -> str:
    return f"{rule}:{subject}"


def matching(policy: Policy, event: EventRecord, verdict: Verdict) -> tuple[RepeatPolicy, ...]:
    """The rules that count this event."""
    return tuple(
        rule
        for rule in policy.repeats
        if rule.mode is not Mode.OFF
        and rule.kind == event.kind.value
        and (not rule.codes or event.code in rule.codes)
        and event.code not in rule.except_codes
        and SEVERITY_RANK[verdict.severity] >= SEVERITY_RANK[rule.least]
    )


def subject_of(rule: RepeatPolicy, sighting: Sighting) -> str:
    """What the rule counts this event by; "": it does not count it."""
    event = sighting.event
    match rule.per:
        case Per.DEVICE | Per.DEVICE_JOBS:
            return slug(event.device)
        case Per.CODE:
            return f"{slug(event.device or event.node)}:{event.code}"
        case Per.PLACE:
            place = sighting.verdict.place.lower().replace(" ", "-")
            return f"{slug(event.device)}:{place}" if event.device and place else ""
        case Per.NODE:
            return event.node
        case Per.JOB | Per.JOB_DEVICES:
            return f"job={event.job}" if event.job else ""


def count(counts: Counts, sighting: Sighting, rules: Iterable[RepeatPolicy]) -> None:
    """Take one event into the records of its rules."""
    for rule in rules:
        subject = subject_of(rule, sighting)
        if not subject:
            continue
        old = counts.get(rule.name, subject)
        new = counted(rule, old or RepeatRecord(rule.name, subject, (), (), (), (), 0), sighting.event)
        if new != old:
            counts.put(new)
            counts.touched[_name(rule.name, subject)] = (rule, sighting)


def counted(rule: RepeatPolicy, record: RepeatRecord, event: EventRecord) -> RepeatRecord:
    """``record`` with one more event; unchanged if it has been counted, or is too old to matter."""
    at, of = event.observed_ms, (event.job or event.id) if rule.per is Per.DEVICE_JOBS else event.device
    if event.id in record.events or (at, of) in zip(record.times_ms, record.devices, strict=True):
        return record
    seen = sorted((*zip(record.times_ms, record.devices, strict=True), (at, of)))
    if rule.per is Per.DEVICE_JOBS:
        seen = _without_bursts(seen, rule.burst_ms)
    if rule.per in (Per.JOB_DEVICES, Per.DEVICE_JOBS):
        seen = sorted({name: (time, name) for time, name in seen}.values())  # each device or job by its latest
    else:
        seen = _without_bursts(seen, rule.burst_ms)
    newest = seen[-1][0]
    seen = [(time, device) for time, device in seen if newest - time <= rule.within_ms][-min(rule.count, MAX_COUNT) :]
    if rule.reboots or rule.lasting_ms:
        seen = _spread(record, rule, at, of)
    boots = tuple(boot for boot in record.boots_ms if newest - boot <= rule.within_ms)
    return replace(
        record,
        times_ms=tuple(time for time, _ in seen),
        devices=tuple(device for _, device in seen),
        events=(*record.events, event.id)[-MAX_IDS:],
        boots_ms=boots,
    )


def _without_bursts(seen: list[tuple[int, str]], burst_ms: int) -> list[tuple[int, str]]:
    kept: list[tuple[int, str]] = []
    for sighting in seen:
        if kept and burst_ms and sighting[0] - kept[-1][0] <= burst_ms:
            kept[-1] = sighting
        else:
            kept.append(sighting)
    return kept


def _spread(record: RepeatRecord, rule: RepeatPolicy, at: int, device: str) -> list[tuple[int, str]]:
    """For rules about when sightings lie, and not only how many there are: the oldest of the window stays."""
    seen = sorted((*zip(record.times_ms, record.devices, strict=True), (at, device)))
    seen = [(time, where) for time, where in seen if seen[-1][0] - time <= rule.within_ms]
    most = max(rule.count, 2 * (rule.reboots + 1), 2)
    if len(seen) <= most:
        return seen
    if rule.reboots:
        # The first sighting after each boot says all that matters.
        groups = list(_by_boot(seen, record.boots_ms).values())
        seen = [*(group[0] for group in groups[-(most - 1) :]), groups[-1][-1]]
        return sorted(set(seen))
    return [seen[0], *seen[-(most - 1) :]]


def _by_boot(seen: list[tuple[int, str]], boots: tuple[int, ...]) -> dict[int, list[tuple[int, str]]]:
    groups: dict[int, list[tuple[int, str]]] = {}
    for sighting in seen:
        groups.setdefault(sum(boot <= sighting[0] for boot in boots), []).append(sighting)
    return groups


def enough(rule: RepeatPolicy, record: RepeatRecord) -> bool:
    """Whether the rule is fulfilled by what is counted."""
    times = record.times_ms
    if not times or len(times) < rule.count:
        return False
    if rule.lasting_ms and times[-1] - times[0] < rule.lasting_ms:
        return False
    if rule.reboots:
        came_back = len({sum(boot <= time for boot in record.boots_ms) for time in times}) - 1
        return came_back >= rule.reboots
    return True


def booted(counts: Counts, event: EventRecord) -> None:
    """A boot of the node, for rules that ask whether a fault comes back after one."""
    for name in sorted(counts.asking_about_boots(event.node)):
        record = counts.records.get(name) or counts.state.repeats[name].record
        if event.observed_ms not in record.boots_ms:
            boots = tuple(sorted((*record.boots_ms, event.observed_ms)))[-MAX_BOOTS:]
            counts.put(replace(record, boots_ms=boots))


def raised(
    rule: RepeatPolicy, record: RepeatRecord, sighting: Sighting, policy: Policy, region: RegionId
) -> FindingRecord:
    """The finding of a rule that has counted enough."""
    event, verdict = sighting.event, sighting.verdict
    of_node = rule.per is Per.NODE or not event.device
    of_job = rule.per in (Per.JOB, Per.JOB_DEVICES)
    device = DeviceId("") if of_node or of_job else event.device
    subject = job_subject(JobId(event.job)) if of_job else device or event.node
    code = f"{PREFIX}{rule.name}"
    scope = Scope.NODE if of_node else Scope.PROCESS if of_job else Scope.DEVICE
    span = duration(max(record.times_ms) - min(record.times_ms))
    where = f"job {event.job}" if of_job else subject
    sentence = (
        f"{rule.meaning}: {verdict.code} {len(record.times_ms)} times within {span} on {where}, "
        f"last at {clock_time(event.observed_ms)}"
    )
    return FindingRecord(
        id=FindingId(made_id(subject, code, event.spool, event.sequence)),
        region=region,
        node=event.node,
        device=device,
        scope=scope,
        fault_class=rule.fault_class or verdict.fault_class,
        code=code,
        severity=rule.severity,
        action=rule.action,
        sentence=sentence,
        evidence=tuple(str(name) for name in record.events[-MAX_EVIDENCE:]),
        observed_ms=event.observed_ms,
        rule=f"repeats/{rule.name}",
        rule_version=policy.version,
        active=True,
        trace=event.trace,
        source=_source(rule, policy),
        confidence=Confidence.MEDIUM,
        shadow=rule.mode is Mode.SHADOW or verdict.shadow,
        count=len(record.times_ms),
        job=event.job if of_job else "",
    )


def restated(findings: Mapping[str, Versioned[FindingRecord]], policy: Policy) -> tuple[FindingRecord, ...]:
    """Active findings that say what their rule said in an earlier policy, as it says now: one that sticks is not raised
    anew for hours. One of a rule on trial is not acted on; that it is off trial only its next sighting says, since the
    fault itself may be on trial."""
    rules = {f"repeats/{rule.name}": rule for rule in policy.repeats if rule.mode is not Mode.OFF}
    found = []
    for held in findings.values():
        old = held.record
        rule = rules.get(old.rule) if old.active else None
        if rule is None:
            continue
        new = replace(
            old,
            severity=rule.severity,
            action=rule.action,
            fault_class=rule.fault_class or old.fault_class,
            shadow=old.shadow or rule.mode is Mode.SHADOW,
        )
        if new != old:
            found.append(replace(new, rule_version=policy.version, source=_source(rule, policy)))
    return tuple(found)


def _source(rule: RepeatPolicy, policy: Policy) -> str:
    return f"policy v{policy.version}, repeat rule {rule.name}"


def _within(subject: str, outer: str) -> bool:
    """``n1:gpu3:link-4`` is within ``n1:gpu3`` and within ``n1``."""
    return subject == outer or subject.startswith(f"{outer}:")


def is_sticky(repeats: Mapping[str, Versioned[RepeatRecord]], finding: FindingRecord, at_ms: int) -> bool:
    """Whether a repeat rule still holds the finding at this time."""
    return sticky_until_ms(repeats, finding) > at_ms


def sticky_until_ms(repeats: Mapping[str, Versioned[RepeatRecord]], finding: FindingRecord) -> int:
    """Until when (ledger time) a repeat rule holds the finding; 0: none does."""
    if not finding.code.startswith(PREFIX):
        return 0
    rule = finding.code.removeprefix(PREFIX)
    subject = f"job={finding.job}" if finding.job else slug(finding.device or finding.node)
    of_rule = (held.record for held in repeats.values() if held.record.rule == rule)
    return max((record.sticky_until_ms for record in of_rule if _within(record.subject, subject)), default=0)


def forget(counts: Counts, now: Now) -> None:
    """Drop records of rules that are gone, and of sightings that can no longer count."""
    rules = {rule.name: rule for rule in counts.policy.repeats}
    repeats, dropped = counts.state.repeats, 0
    start = counts.state.revision % max(1, len(repeats))
    for name, held in islice(chain(islice(repeats.items(), start, None), repeats.items()), min(LOOK, len(repeats))):
        record, rule = held.record, rules.get(held.record.rule)
        newest = max((*record.times_ms, *record.boots_ms), default=0)
        kept_ms = rule.within_ms + rule.sticky_ms if rule else 0
        if name in counts.records or (rule and now.ledger_ms <= max(newest + kept_ms, record.sticky_until_ms)):
            continue
        counts.draft.delete(counts.keys.repeat(record.rule, record.subject), held)
        dropped += 1
        if dropped == SWEEP:
            return


# -- drains of a node -------------------------------------------------------------------------------------------------


def drains_due(state: RegionState, policy: Policy) -> Iterator[tuple[RepeatPolicy, NodeId, tuple[int, ...]]]:
    """Rules that count a node's machine drains, for nodes that had enough of them: when those were planned."""
    rules = [rule for rule in policy.repeats if rule.kind == DRAINS and rule.mode is not Mode.OFF]
    if not rules:
        return
    planned: dict[NodeId, list[int]] = {}
    for drain in state.drains.values():
        record = drain.record
        if record.requested_by == "machine" and not record.maintenance and record.state not in NOT_DRAINED:
            planned.setdefault(record.node, []).append(record.planned_ms)
    for rule in rules:
        for node, times in sorted(planned.items()):
            apart = [time for time, _ in _without_bursts(sorted((t, "") for t in times), rule.burst_ms)]
            recent = [time for time in apart if apart[-1] - time <= rule.within_ms]
            if len(recent) >= rule.count:
                yield rule, node, tuple(recent)


def remediated(
    rule: RepeatPolicy, node: NodeId, times: tuple[int, ...], policy: Policy, region: RegionId
) -> FindingRecord:
    """The finding of a node whose devices had to be drained again and again."""
    code = f"{PREFIX}{rule.name}"
    span = duration(times[-1] - times[0])
    return FindingRecord(
        id=FindingId(made_id(node, code, times[-1])),
        region=region,
        node=node,
        device=DeviceId(""),
        scope=Scope.NODE,
        fault_class=rule.fault_class or "repair",
        code=code,
        severity=rule.severity,
        action=rule.action,
        sentence=f"{rule.meaning}: {len(times)} drains within {span} on {node}, last at {clock_time(times[-1])}",
        evidence=tuple(f"planned_ms={time}" for time in times[-MAX_EVIDENCE:]),
        observed_ms=times[-1],
        rule=f"repeats/{rule.name}",
        rule_version=policy.version,
        active=True,
        trace="",
        source=_source(rule, policy),
        confidence=Confidence.MEDIUM,
        shadow=rule.mode is Mode.SHADOW,
        count=len(times),
    )
