"""What findings amount to: which ones a device rests on, how bad they are, and whether they still hold. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from controlplane.domain.words import SEPARATOR
from gridkeeper.catalogue.own import HANG, MISSING, OVERFLOW
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, JobId, NodeId, node_of
from gridkeeper.keys import RegionKeys
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import FindingRecord
from gridkeeper.snapshot import RegionState

Finding = Versioned[FindingRecord]

OUT_CALLING = frozenset({Action.RESET_DEVICE, Action.REBOOT_NODE, Action.DRAIN, Action.REPLACE})
"""Actions that need the device empty: it must be drained."""

SEVERITY_RANK = {Severity.INFO: 0, Severity.WARNING: 1, Severity.ERROR: 2, Severity.FATAL: 3}
ACTION_RANK = {
    Action.IGNORE: 0,
    Action.WATCH: 1,
    Action.RESTART_JOB: 2,
    Action.RESET_DEVICE: 3,
    Action.DRAIN: 3,
    Action.REBOOT_NODE: 4,
    Action.REPLACE: 5,
}

SILENT_ROW = "telemetry-lost"
BLINDING = frozenset({MISSING, HANG, OVERFLOW, SILENT_ROW})
"""Codes of findings that say "nothing trustworthy is known of this device"; they neither heal nor convict it."""

MAX_EVIDENCE = 16


def is_level(finding: FindingRecord) -> bool:
    """A threshold rule's finding: it holds exactly while its condition does, and nobody else clears it."""
    return finding.code == finding.rule


def is_fresh(finding: FindingRecord, evidence_ms: int, ledger_ms: int) -> bool:
    """It may be acted on now: its condition still holds, or it was seen within ``evidence_ms``. An older event convicts
    nobody any more: the host may have changed since."""
    return is_level(finding) or ledger_ms - seen_ms(finding) <= evidence_ms


def seen_ms(finding: FindingRecord) -> int:
    """When it was seen last: a repeat moves ``last_ms`` alone."""
    return max(finding.observed_ms, finding.last_ms)


def asks_out(finding: FindingRecord) -> bool:
    """Its action needs the device empty, whether or not anybody acts on it."""
    return finding.action in OUT_CALLING and finding.code not in BLINDING


def calls_out(finding: FindingRecord) -> bool:
    """It asks for the device to be taken out of service, and its rule is no mere shadow."""
    return asks_out(finding) and not finding.shadow


def weighs_on_device(finding: FindingRecord) -> bool:
    """It says something about the hardware (and not only about a process on it), and its rule is no mere shadow."""
    return not finding.shadow and finding.scope is not Scope.PROCESS and finding.severity is not Severity.INFO


def rank(finding: FindingRecord) -> tuple[int, int, int, str]:
    """Orders findings: the greatest one is the reason that is shown."""
    return ACTION_RANK[finding.action], SEVERITY_RANK[finding.severity], -finding.observed_ms, finding.id


def worst(findings: Iterable[FindingRecord]) -> FindingRecord | None:
    return max(findings, key=rank, default=None)


def by_subject(findings: Mapping[str, Finding]) -> dict[str, list[Finding]]:
    """All findings, active or not, by device id, node id (findings of a whole node) or subject of a job."""
    grouped: dict[str, list[Finding]] = defaultdict(list)
    for _, finding in sorted(findings.items()):
        grouped[subject_of(finding.record)].append(finding)
    return grouped


def subject_of(finding: FindingRecord) -> str:
    """The job, device or node that a finding is about."""
    return job_subject(JobId(finding.job)) if finding.job else finding.device or finding.node


_JOB = f"job{SEPARATOR}"


def job_subject(job: JobId) -> str:
    """The subject of findings and incidents that are about a job. No device or node id has a colon."""
    return f"{_JOB}{job}"


def job_of(subject: str) -> JobId | None:
    """The job that a subject stands for; None: it is a device or a node."""
    return JobId(subject.removeprefix(_JOB)) if subject.startswith(_JOB) else None


def bearing_on(findings: Mapping[str, list[Finding]], device: DeviceId) -> list[Finding]:
    """The device's own findings, and those of its whole node that need all the node's devices empty."""
    own, of_node = findings.get(device, []), findings.get(node_of(device))
    return [*own, *(f for f in of_node if calls_out(f.record))] if of_node else own


def merged(old: tuple[str, ...], new: tuple[str, ...], most: int = MAX_EVIDENCE) -> tuple[str, ...]:
    """Old and new ids without repeats, in order, at most ``most``: the first quarter and the newest stay."""
    every = tuple(dict.fromkeys((*old, *new)))
    if len(every) <= most:
        return every
    return (*every[: most // 4], *every[len(every) - (most - most // 4) :])


def unreadable(state: RegionState) -> dict[str, str]:
    """Nodes and devices of which a record does not decode -> which one. What it stood for is unknown."""
    if not state.suspect_keys:
        return {}
    found: dict[str, str] = {}
    prefixes = {kind: RegionKeys(state.region).prefix(kind) for kind in ("events", "findings", "devices", "health")}
    for key in sorted(state.suspect_keys):
        for kind, prefix in prefixes.items():
            if key.startswith(prefix):
                subject = _subject_of(state, kind, key[len(prefix) :])
                found.setdefault(subject, f"{kind}/{key[len(prefix) :]} does not decode")
    return found


def _subject_of(state: RegionState, kind: str, name: str) -> str:
    if kind == "events":
        return NodeId(name.split("/", 1)[0])
    if kind == "findings":
        node, _, rest = name.partition(SEPARATOR)
        device = DeviceId(f"{node}/{rest.partition(SEPARATOR)[0]}")
        return device if device in state.devices else NodeId(node)
    return DeviceId(name)
