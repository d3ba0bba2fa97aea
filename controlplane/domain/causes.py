"""Which event is the cause and which its consequence, and what a later event takes back. Pure.

Chains of NVIDIA's (its XID catalogue, and noise seen in fleets): 45 is the clean-up after another error; 63 and 64
record or fail to record the retirement that a 48, 94 or 95 asks for; 171 and 172 detail a 48; 154 says what recovery
another XID needs. A consequence joins the incident of its cause: it gets its fault class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from controlplane.domain.evidence import SEVERITY_RANK, is_level
from gridkeeper.catalogue import JobEffect, Verdict
from gridkeeper.catalogue.model import finding_code
from gridkeeper.catalogue.nvidia import CLEAN_UP, RECOVERY, recovery_action
from gridkeeper.catalogue.own import LOST, MISSING, SELF_TEST
from gridkeeper.catalogue.tables import table
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import FindingRecord
from gridkeeper.records.fleet import EventKind, EventRecord

FOLLOW_MS = 60_000
"""A consequence belongs to a cause on the same device up to this far from it."""

CAUSES: dict[int, frozenset[int]] = {
    63: frozenset({48, 94, 95}),
    64: frozenset({48, 94, 95}),
    171: frozenset({48}),
    172: frozenset({48}),
}
"""XID -> the XIDs that it follows. 45 and 154 follow any other one."""

FOLLOWERS = frozenset({CLEAN_UP, RECOVERY, *CAUSES})
CURED_BY_RESET = frozenset({Action.RESET_DEVICE, Action.DRAIN})


def cause_of(event: EventRecord, recent: Iterable[EventRecord]) -> EventRecord | None:
    """The gravest XID near ``event`` on its device that it is a consequence of; None: it is none, or that is not
    known."""
    if event.kind is not EventKind.XID or event.code not in FOLLOWERS:
        return None
    wanted = CAUSES.get(event.code)
    near = [
        other
        for other in recent
        if other.kind is EventKind.XID
        and other.device == event.device
        and (other.code in wanted if wanted else other.code not in FOLLOWERS)
        and abs(other.observed_ms - event.observed_ms) <= FOLLOW_MS
    ]
    return max(near, key=lambda other: (SEVERITY_RANK[_severity(other.code)], other.id), default=None)


def _severity(code: int) -> Severity:
    entry = table(EventKind.XID).get(code)
    return entry.severity if entry else Severity.WARNING


def fault_class_of(cause: EventRecord) -> str:
    entry = table(cause.kind).get(cause.code)
    return entry.fault_class if entry else "driver"


def as_consequence(event: EventRecord, verdict: Verdict, cause: EventRecord | None) -> Verdict:
    """The verdict on an event that has a cause: in the cause's incident, and for a clean-up nothing more."""
    if cause is None:
        return verdict
    fault_class = fault_class_of(cause)
    if event.code == CLEAN_UP:
        return replace(
            verdict, fault_class=fault_class, scope=Scope.PROCESS, severity=Severity.INFO, action=Action.IGNORE,
            job=JobEffect.DIES, meaning=f"{verdict.meaning} that follows XID {cause.code}",
        )  # fmt: skip
    said = "" if event.code == RECOVERY else f" that follows XID {cause.code}"
    return replace(verdict, fault_class=fault_class, meaning=f"{verdict.meaning}{said}")


def adopted(finding: FindingRecord, cause: EventRecord) -> FindingRecord | None:
    """A clean-up that was digested before its cause came, as a consequence of it; None: it is none of its."""
    if (
        finding.code != finding_code(EventKind.XID, CLEAN_UP)
        or finding.severity is Severity.INFO
        or cause.kind is not EventKind.XID
        or cause.code in FOLLOWERS
        or finding.device != cause.device
        or abs(finding.observed_ms - cause.observed_ms) > FOLLOW_MS
    ):
        return None
    return replace(
        finding, fault_class=fault_class_of(cause), severity=Severity.INFO, action=Action.IGNORE,
        sentence=f"{finding.sentence}; it follows XID {cause.code}",
    )  # fmt: skip


def clears(event: EventRecord, finding: FindingRecord) -> bool:
    """Whether the event ends what the finding says. A boot or a device that is back resets what a reset can cure and
    what was seen before it; a worn-out card stays worn out, and level rules speak for themselves."""
    if not finding.active or is_level(finding) or finding.job or finding.node != event.node:
        return False
    if event.kind is EventKind.BOOT:
        return finding.action is not Action.REPLACE and finding.observed_ms <= event.observed_ms
    if finding.device != event.device:
        return False
    if event.kind is EventKind.DEVICE_FOUND:
        return finding.code in (MISSING, LOST)
    if event.kind is EventKind.SELF_TEST:
        return event.code == 0 and finding.code == SELF_TEST
    if event.kind is EventKind.XID and event.code == RECOVERY:
        return recovery_action(event.message) is Action.IGNORE and _recovered(finding, event)
    entry = table(event.kind).get(event.code)
    return entry is not None and any(finding.code == finding_code(event.kind, code) for code in entry.ends)


def _recovered(finding: FindingRecord, event: EventRecord) -> bool:
    """The driver says that the device needs nothing any more: what it asked for is done, and so is what a reset cures
    of what was seen before."""
    if finding.code == finding_code(EventKind.XID, RECOVERY):
        return True
    cured = finding.code.startswith("xid-") and finding.action in CURED_BY_RESET
    return cured and finding.observed_ms < event.observed_ms
