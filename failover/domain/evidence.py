"""What a region knows about why a job stopped: its devices' incidents and drains. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, NodeId, node_of
from gridkeeper.records.common import Scope, Severity
from gridkeeper.records.faults import DrainRecord, DrainState, FindingRecord, IncidentRecord, IncidentState
from gridkeeper.snapshot import RegionState

BEFORE_EXIT_MS = 60_000
"""Evidence up to this long before an exit explains it; older evidence is another story."""

EVACUATING = frozenset({DrainState.ADMITTED, DrainState.EVACUATING, DrainState.EXPIRED})
"""The drain wants its jobs gone; past its deadline no less than before."""
UNDER_WAY = frozenset({DrainState.PLANNED, *EVACUATING})
TOOK_EFFECT = frozenset({*UNDER_WAY, DrainState.DRAINED})
GRAVE = frozenset({Severity.ERROR, Severity.FATAL})


@dataclass(frozen=True, slots=True)
class Evidence:
    """``fault_ms``: ledger time of the first sign of the fault, never later than the exit. Both None: none found."""

    incident: IncidentRecord | None
    drain: DrainRecord | None
    fault_ms: int

    @property
    def of_device(self) -> bool:
        """A device (or its node) is to blame, not the job."""
        return self.incident is not None or self.drain is not None


def of_exit(state: RegionState, node: NodeId, devices: tuple[DeviceId, ...], ended_ms: int) -> Evidence:
    """What explains that a job on these devices ended at ``ended_ms``. Evidence that arrived after the exit counts
    too: a process often dies before the driver reports why."""
    incidents = [i for i in open_incidents(state, node, devices) if i.last_ms >= ended_ms - BEFORE_EXIT_MS]
    drains = [
        d
        for d in drains_on(state, devices)
        if d.state in UNDER_WAY or (d.state in TOOK_EFFECT and d.planned_ms >= ended_ms - BEFORE_EXIT_MS)
    ]
    incident = max(incidents, key=lambda i: (i.observed_ms, i.id), default=None)
    drain = max(drains, key=lambda d: (d.planned_ms, d.id), default=None)
    seen = [i.observed_ms if i.observed_ms >= ended_ms - BEFORE_EXIT_MS else i.last_ms for i in incidents]
    return Evidence(incident, drain, min([*seen, ended_ms]))


def open_incidents(state: RegionState, node: NodeId, devices: tuple[DeviceId, ...]) -> Iterator[IncidentRecord]:
    """Unresolved incidents on the node, these devices or their nodes that speak of failing hardware, in order of id."""
    by_subject = state.memo.once(_unresolved, state.incidents)
    if not by_subject:
        return
    subjects = {str(node), *devices, *map(node_of, devices)}
    found = [record for subject in subjects for record in by_subject.get(subject, ())]
    for record in sorted(found, key=_id):
        if of_hardware(state.findings, record):
            yield record


def _unresolved(incidents: Mapping[str, Versioned[IncidentRecord]]) -> dict[str, list[IncidentRecord]]:
    found: dict[str, list[IncidentRecord]] = {}
    for incident in incidents.values():
        if incident.record.state is not IncidentState.RESOLVED:
            found.setdefault(incident.record.subject, []).append(incident.record)
    return found


def _id(record: IncidentRecord | DrainRecord) -> str:
    return record.id


def of_hardware(findings: Mapping[str, Versioned[FindingRecord]], incident: IncidentRecord) -> bool:
    """A process that crashed by its own doing leaves findings of process scope, and no more."""
    if incident.severity not in GRAVE:
        return False
    known = [findings[f].record for f in incident.findings if f in findings]
    return not known or any(f.scope is not Scope.PROCESS for f in known)


def drains_on(state: RegionState, devices: tuple[DeviceId, ...]) -> Iterator[DrainRecord]:
    """Drains of these devices, in order of id."""
    by_device = state.memo.once(_by_device, state.drains)
    if by_device.keys().isdisjoint(devices):
        return  # nearly all jobs nearly always
    yield from sorted((record for device in set(devices) for record in by_device.get(device, ())), key=_id)


def _by_device(drains: Mapping[str, Versioned[DrainRecord]]) -> dict[DeviceId, list[DrainRecord]]:
    found: dict[DeviceId, list[DrainRecord]] = {}
    for drain in drains.values():
        found.setdefault(drain.record.device, []).append(drain.record)
    return found
