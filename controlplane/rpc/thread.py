"""Pure: which records belong to one story: found by the ids that they cite, and by their common trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from controlplane.domain.evidence import job_of
from gridkeeper.ids import DeviceId, JobId, MigrationId, NodeId, RegionId
from gridkeeper.records.faults import DrainState, IncidentState
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
    checkpoints: set[str] = field(default_factory=set)
    regions: set[RegionId] = field(default_factory=set)
    scope: str = ""
    """The ledger scope that is explained itself: all that is booked on it is told."""

    @property
    def ids(self) -> set[str]:
        """What a ledger entry may cite."""
        return {*self.incidents, *self.drains, *self.migrations}

    def scopes(self) -> tuple[str, ...]:
        """Ledger scopes that the story touches."""
        scopes = [*(f"device/{device}" for device in self.devices), *(f"job/{job}" for job in self.jobs)]
        return tuple(sorted({*scopes, *(f"region/{region}" for region in self.regions), self.scope} - {""}))


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
    elif kind == api_pb2.KIND_REGION and name == region.region:
        thread.regions.add(region.region)
        _now(thread, region)
        _evidence(thread, region)
        return thread
    elif kind == api_pb2.KIND_LOSS and name in world.losses:
        thread.regions.add(RegionId(name))
        return thread
    elif kind == api_pb2.KIND_CHECKPOINT and (found := _checkpoint(name, world)):
        thread.checkpoints.add(found)
        return thread
    elif kind == api_pb2.KIND_SLA and (name in region.accounts or name in world.accounts):
        return _of_scope(name, region, world)
    else:
        return None
    _upwards(thread, region)
    _downwards(thread, region, world)
    _evidence(thread, region)
    return thread


MOST = 50
"""Incidents and drains that the explanation of a region follows: the newest."""


def _now(thread: Thread, region: RegionState) -> None:
    """What makes a region what it is now: open incidents, and drains that are not over."""
    incidents = [(i.record.opened_ms, name) for name, i in region.incidents.items() if not i.record.resolved_ms]
    drains = [(d.record.planned_ms, name) for name, d in region.drains.items() if d.record.state in LIVE]
    thread.incidents.update(name for _, name in sorted(incidents)[-MOST:])
    thread.drains.update(name for _, name in sorted(drains)[-MOST:])


LIVE = frozenset(
    {
        DrainState.PLANNED,
        DrainState.ADMITTED,
        DrainState.EVACUATING,
        DrainState.DRAINED,
        DrainState.REFUSED,
        DrainState.EXPIRED,
    }
)
"""Drains that keep a device out, or would."""


def _checkpoint(name: str, world: GlobalState) -> str:
    """The key of ``<job>/<step>``; "" if it is none."""
    job, _, step = name.rpartition("/")
    key = f"{job}/{int(step):020d}" if step.isdecimal() and len(step) <= 20 else ""
    return key if key in world.checkpoints else ""


def _of_scope(scope: str, region: RegionState, world: GlobalState) -> Thread:
    """An account, and what its open interval cites."""
    thread = Thread(scope=scope)
    held = region.accounts.get(scope) or world.accounts.get(scope)
    refs = held.record.refs if held else ()
    thread.incidents.update(ref for ref in refs if ref in region.incidents)
    thread.drains.update(ref for ref in refs if ref in region.drains)
    thread.migrations.update(MigrationId(ref) for ref in refs if ref in world.migrations)
    _upwards(thread, region)
    _evidence(thread, region)
    return thread


def joined(threads: Iterable[Thread]) -> Thread:
    """Several stories as one."""
    whole = Thread()
    for thread in threads:
        for name in ("events", "findings", "devices", "nodes", "incidents", "drains", "migrations", "jobs"):
            getattr(whole, name).update(getattr(thread, name))
        whole.checkpoints |= thread.checkpoints
        whole.regions |= thread.regions
        whole.scope = whole.scope or thread.scope
    return whole


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
