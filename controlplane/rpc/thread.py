"""Pure: which records belong to one story: found by the ids that they cite, and by their common trace."""

from __future__ import annotations

from dataclasses import dataclass, field

from controlplane.domain.evidence import job_of
from gridkeeper.ids import DeviceId, JobId, MigrationId, NodeId
from gridkeeper.records.faults import IncidentState
from gridkeeper.snapshot import GlobalState, RegionState
from gridkeeper.v1 import api_pb2


@dataclass(slots=True)
class Thread:
    """Ids of the records of one story."""

    events: set[str] = field(default_factory=set)
    findings: set[str] = field(default_factory=set)
    devices: set[DeviceId] = field(default_factory=set)
    nodes: set[NodeId] = field(default_factory=set)
    incidents: set[str] = field(default_factory=set)
    drains: set[str] = field(default_factory=set)
    migrations: set[MigrationId] = field(default_factory=set)
    jobs: set[JobId] = field(default_factory=set)

    @property
    def ids(self) -> set[str]:
        """What a ledger entry may cite."""
        return {*self.incidents, *self.drains, *self.migrations}

    def scopes(self) -> tuple[str, ...]:
        """Ledger scopes that the story touches."""
        return (*(f"device/{device}" for device in sorted(self.devices)), *(f"job/{job}" for job in sorted(self.jobs)))


def trace_id(traceparent: str) -> str:
    """The trace id of a W3C traceparent; "" if there is none."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""


def thread_of(kind: int, name: str, region: RegionState, world: GlobalState) -> Thread | None:
    """The story of one object; None: there is no such object here, or its kind has none."""
    thread = Thread()
    if kind == api_pb2.KIND_EVENT and name in region.events:
        thread.events.add(name)
        for finding, held in region.findings.items():
            if name in held.record.evidence:
                thread.findings.add(finding)
        _incidents_of_findings(thread, region)
    elif kind == api_pb2.KIND_FINDING and name in region.findings:
        thread.findings.add(name)
        _incidents_of_findings(thread, region)
    elif kind == api_pb2.KIND_DEVICE and name in region.devices:
        device = DeviceId(name)
        thread.devices.add(device)
        _latest_incidents(thread, name, region)
        health = region.health.get(device)
        if health and health.record.drain in region.drains:
            thread.drains.add(health.record.drain)
    elif kind == api_pb2.KIND_NODE and name in region.nodes:
        thread.nodes.add(NodeId(name))
        _latest_incidents(thread, name, region)
    elif kind == api_pb2.KIND_INCIDENT and name in region.incidents:
        thread.incidents.add(name)
    elif kind == api_pb2.KIND_DRAIN and name in region.drains:
        thread.drains.add(name)
    elif kind == api_pb2.KIND_MIGRATION and name in world.migrations:
        _causes_of(thread, MigrationId(name), region, world)
        _evidence(thread, region)
        return thread
    elif kind == api_pb2.KIND_JOB and name in world.jobs:
        job = JobId(name)
        thread.jobs.add(job)
        for migration, moved in world.migrations.items():
            if moved.record.job == job:
                _causes_of(thread, migration, region, world)
        _evidence(thread, region)
        return thread
    else:
        return None
    _upwards(thread, region)
    _downwards(thread, region, world)
    _evidence(thread, region)
    return thread


def _incidents_of_findings(thread: Thread, region: RegionState) -> None:
    for incident, held in region.incidents.items():
        if not thread.findings.isdisjoint(held.record.findings):
            thread.incidents.add(incident)


def _latest_incidents(thread: Thread, subject: str, region: RegionState) -> None:
    """Those that are open; if none is, the last one."""
    own = [(name, held.record) for name, held in region.incidents.items() if held.record.subject == subject]
    live = [name for name, record in own if record.state is not IncidentState.RESOLVED]
    if not live and own:
        live = [max(own, key=lambda pair: pair[1].opened_ms)[0]]
    thread.incidents.update(live)


def _upwards(thread: Thread, region: RegionState) -> None:
    """From drains to the incidents that caused them."""
    for drain in thread.drains:
        incident = region.drains[drain].record.incident
        if incident in region.incidents:
            thread.incidents.add(incident)


def _downwards(thread: Thread, region: RegionState, world: GlobalState) -> None:
    """From incidents to drains, from both to the migrations that they caused."""
    for name, held in region.drains.items():
        if held.record.incident in thread.incidents:
            thread.drains.add(name)
    thread.drains.update(
        region.incidents[name].record.drain
        for name in thread.incidents
        if region.incidents[name].record.drain in region.drains
    )
    traces = {trace_id(region.incidents[name].record.trace) for name in thread.incidents}
    traces |= {trace_id(region.drains[name].record.trace) for name in thread.drains}
    traces.discard("")
    for migration, moved in world.migrations.items():
        record = moved.record
        if record.incident in thread.incidents or record.drain in thread.drains or trace_id(record.trace) in traces:
            thread.migrations.add(migration)
            thread.jobs.add(record.job)


def _causes_of(thread: Thread, migration: MigrationId, region: RegionState, world: GlobalState) -> None:
    """A migration and what led to it, without the other jobs that the same fault moved."""
    record = world.migrations[migration].record
    thread.migrations.add(migration)
    thread.jobs.add(record.job)
    if record.drain in region.drains:
        thread.drains.add(record.drain)
    if record.incident in region.incidents:
        thread.incidents.add(record.incident)
    _upwards(thread, region)


def _evidence(thread: Thread, region: RegionState) -> None:
    """Findings and events that incidents and drains rest on, and the devices concerned."""
    for name in thread.incidents:
        incident = region.incidents[name].record
        thread.findings.update(finding for finding in incident.findings if finding in region.findings)
        if job := job_of(incident.subject):
            thread.jobs.add(job)
        elif "/" in incident.subject:
            thread.devices.add(DeviceId(incident.subject))
        elif ":" not in incident.subject:
            thread.nodes.add(NodeId(incident.subject))
    cited: set[str] = set()
    for name in thread.drains:
        drain = region.drains[name].record
        thread.devices.add(drain.device)
        cited.update(drain.evidence)
    for device in thread.devices:
        health = region.health.get(device)
        if health and (not thread.incidents or health.record.incident in thread.incidents):
            cited.update(health.record.evidence)
    thread.findings.update(cited & region.findings.keys())
    for name in thread.findings:
        cited.update(region.findings[name].record.evidence)
    thread.events.update(cited & region.events.keys())
