"""Incidents: what a human sees. One per subject and fault class until resolved; every further finding joins. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from controlplane.domain.evidence import SEVERITY_RANK, Finding, merged, worst
from controlplane.domain.words import made_id
from gridkeeper.decision import Now, Versioned
from gridkeeper.ids import DrainId, FindingId, IncidentId
from gridkeeper.records.common import Severity
from gridkeeper.records.faults import FindingRecord, IncidentRecord, IncidentState
from gridkeeper.snapshot import RegionState

MAX_FINDINGS = 64

Incident = Versioned[IncidentRecord]


@dataclass(frozen=True, slots=True)
class Folded:
    """Incidents to write with what is there now, and the id of the gravest one that stays open ("" if none)."""

    writes: tuple[tuple[IncidentRecord, Incident | None], ...]
    main: IncidentId


def open_by_subject(incidents: Mapping[str, Incident]) -> dict[str, dict[str, Incident]]:
    """Unresolved incidents by subject and fault class."""
    found: dict[str, dict[str, Incident]] = {}
    for _, incident in sorted(incidents.items()):
        if incident.record.state is not IncidentState.RESOLVED:
            found.setdefault(incident.record.subject, {})[incident.record.fault_class] = incident
    return found


def fold(
    state: RegionState,
    subject: str,
    active: Iterable[Finding],
    standing: Mapping[str, Incident],
    well: bool,
    now: Now,
) -> Folded:
    """Open, extend, escalate and resolve the incidents of one subject.

    ``active``: its active findings. ``standing``: its unresolved incidents by class. ``well``: it is in service again
    (or was never taken out), so that an incident without active findings is over.
    """
    by_class: dict[str, list[FindingRecord]] = {}
    for finding in active:
        by_class.setdefault(finding.record.fault_class, []).append(finding.record)
    writes: list[tuple[IncidentRecord, Incident | None]] = []
    after: list[IncidentRecord] = []
    for fault_class in sorted({*by_class, *standing}):
        old = standing.get(fault_class)
        findings = by_class.get(fault_class, [])
        if old is None:
            record = _opened(state, subject, fault_class, findings, now)
        elif not findings and well:
            record = _resolved(old.record, now)
        elif not findings and (elsewhere := _elsewhere(old.record, by_class)):
            record = replace(_resolved(old.record, now), resolution=f"what it saw is part of incident {elsewhere}")
        else:
            record = _joined(old.record, findings)
        if record is None:
            continue
        if old is None or record != old.record:
            writes.append((record, old))
        if record.state is not IncidentState.RESOLVED:
            after.append(record)
    main = max(after, key=lambda i: (SEVERITY_RANK[i.severity], -i.opened_ms, i.id), default=None)
    return Folded(tuple(writes), main.id if main else IncidentId(""))


def _opened(
    state: RegionState, subject: str, fault_class: str, findings: list[FindingRecord], now: Now
) -> IncidentRecord | None:
    """None: nothing here is worth a human's look."""
    if not any(finding.severity is not Severity.INFO for finding in findings):
        return None
    gravest = worst(findings)
    assert gravest is not None, "there is at least one finding"
    first = min(findings, key=lambda f: (f.observed_ms, f.id))
    return IncidentRecord(
        id=IncidentId(made_id(subject, fault_class, state.revision)),
        region=state.region,
        subject=subject,
        fault_class=fault_class,
        state=IncidentState.OPEN,
        severity=gravest.severity,
        title=gravest.sentence,
        opened_ms=now.ledger_ms,
        observed_ms=first.observed_ms,
        last_ms=max(finding.observed_ms for finding in findings),
        count=sum(finding.count for finding in findings),
        findings=_bounded((), findings),
        drain=DrainId(""),
        acknowledged_by="",
        resolved_ms=0,
        resolution="",
        trace=first.trace,
    )


def _joined(old: IncidentRecord, findings: list[FindingRecord]) -> IncidentRecord:
    new = [finding for finding in findings if finding.id not in old.findings]
    gravest = worst(findings)
    if gravest is None or not new:
        return old
    graver = SEVERITY_RANK[gravest.severity] > SEVERITY_RANK[old.severity]
    return replace(
        old,
        severity=gravest.severity if graver else old.severity,
        title=gravest.sentence if graver else old.title,
        observed_ms=min([old.observed_ms, *(f.observed_ms for f in new)]),
        last_ms=max([old.last_ms, *(f.observed_ms for f in new)]),
        count=old.count + sum(finding.count for finding in new),
        findings=_bounded(old.findings, new),
    )


def _elsewhere(old: IncidentRecord, by_class: Mapping[str, list[FindingRecord]]) -> str:
    """The fault class that all its findings belong to by now, since their cause was seen; "" if not so."""
    for fault_class, findings in sorted(by_class.items()):
        if old.findings and set(old.findings) <= {finding.id for finding in findings}:
            return fault_class
    return ""


def _bounded(old: tuple[FindingId, ...], new: list[FindingRecord]) -> tuple[FindingId, ...]:
    ids = tuple(finding.id for finding in sorted(new, key=lambda f: (f.observed_ms, f.id)))
    return tuple(FindingId(name) for name in merged(old, ids, MAX_FINDINGS))


def _resolved(old: IncidentRecord, now: Now) -> IncidentRecord:
    resolution = "its findings have cleared and the device is in service"
    return replace(old, state=IncidentState.RESOLVED, resolved_ms=now.ledger_ms, resolution=resolution)
