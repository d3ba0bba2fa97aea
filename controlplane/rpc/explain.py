"""Pure: the chain of evidence behind an object, in the words of the path of one fault."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from controlplane.rpc.thread import Thread
from gridkeeper.decision import Versioned
from gridkeeper.kinds import reference
from gridkeeper.records.books import AccountRecord, EntryRecord
from gridkeeper.records.faults import DrainRecord, FindingRecord, IncidentRecord
from gridkeeper.records.fleet import EventRecord, HealthRecord, LivenessRecord
from gridkeeper.records.jobs import MigrationKind, MigrationRecord
from gridkeeper.snapshot import GlobalState, RegionState
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Link

K = TypeVar("K", bound=str)
R = TypeVar("R")

MIGRATION_STEPS: dict[str, tuple[str, str]] = {
    "planned": ("place.reserve", "is planned"),
    "reserved": ("place.reserve", "has devices reserved for it"),
    "pre_copying": ("migrate.precopy", "copies the newest checkpoint ahead while the job runs"),
    "stopping": ("executor.stop", "asks the job for a last checkpoint and to exit"),
    "fencing": ("executor.stop", "waits until the old run is certainly over"),
    "source_fenced": ("executor.stop", "knows that the old run is over"),
    "copying": ("migrate.precopy", "copies what the last checkpoint added"),
    "verified": ("verify.manifest", "has verified the checkpoint at the target"),
    "ownership_moved": ("fence.bump_epoch", "moved the ownership to a new epoch"),
    "starting": ("executor.start", "starts the job"),
    "running": ("migrate.confirm", "sees the job run"),
    "done": ("migrate.confirm", "is done"),
}
"""Stage of a migration -> (step, what to say)."""

ORDER: tuple[str, ...] = (
    "backend.events",
    "detect.classify",
    "health.step",
    "incident.open",
    "budget.reserve",
    "drain.plan",
)
"""At the same millisecond, causes come before effects."""


def chain(
    thread: Thread, region: RegionState, world: GlobalState, entries: Iterable[EntryRecord] = ()
) -> tuple[Link, ...]:
    """Links oldest first. ``entries``: ledger entries of the thread's scopes."""
    links = [
        *(_event(event) for event in _records(region.events, thread.events)),
        *(_finding(finding) for finding in _records(region.findings, thread.findings)),
        *_states(thread, region),
        *(link for incident in _records(region.incidents, thread.incidents) for link in _incident(incident)),
        *(link for drain in _records(region.drains, thread.drains) for link in _drain(drain)),
        *(link for migration in _records(world.migrations, thread.migrations) for link in _migration(migration)),
        *_books(thread, region, world, entries),
    ]
    return tuple(sorted(links, key=_order))


def _records(held: Mapping[K, Versioned[R]], names: Iterable[K]) -> Iterator[R]:
    return (held[name].record for name in names if name in held)


def _order(link: Link) -> tuple[int, int, str, str]:
    rank = ORDER.index(link.step) if link.step in ORDER else len(ORDER)
    return link.at_ms, rank, link.object, link.step


def duration(ms: int) -> str:
    """``850 ms``, ``12.3 s``, ``4 min 5 s``, ``2 h 3 min``."""
    if ms < 1_000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    if ms < 3_600_000:
        return f"{ms // 60_000} min {ms % 60_000 // 1000} s"
    return f"{ms // 3_600_000} h {ms % 3_600_000 // 60_000} min"


def _link(step: str, kind: int, name: str, at_ms: int, sentence: str) -> Link:
    return Link(step=step, object=reference(api_pb2.Kind.ValueType(kind), name), at_ms=at_ms, sentence=sentence)


def _event(event: EventRecord) -> Link:
    subject = event.device or event.node
    times = f", {event.count} sightings" if event.count > 1 else ""
    code = f" {event.code}" if event.code else ""
    said = f": {event.message.strip()}" if event.message.strip() else ""
    sentence = f"{' and '.join(event.sources) or 'the agent'} saw {event.kind.value}{code} on {subject}{times}{said}"
    return _link("backend.events", api_pb2.KIND_EVENT, event.id, event.observed_ms, sentence)


def _finding(finding: FindingRecord) -> Link:
    over = "" if finding.active else " (has cleared)"
    sentence = f"{finding.sentence} [rule {finding.rule} v{finding.rule_version}]{over}"
    return _link("detect.classify", api_pb2.KIND_FINDING, finding.id, finding.observed_ms, sentence)


def _states(thread: Thread, region: RegionState) -> Iterator[Link]:
    for device in thread.devices:
        health: Versioned[HealthRecord] | None = region.health.get(device)
        if health:
            record = health.record
            sentence = f"{device} is {record.state.value}: {record.reason} [rule {record.rule} v{record.rule_version}]"
            yield _link("health.step", api_pb2.KIND_DEVICE, device, record.since_ms, sentence)
    for node in thread.nodes:
        liveness: Versioned[LivenessRecord] | None = region.liveness.get(node)
        if liveness:
            judged = liveness.record
            sentence = f"{node} is {judged.state.value}: {judged.reason}"
            yield _link("health.step", api_pb2.KIND_NODE, node, judged.since_ms, sentence)


def _incident(incident: IncidentRecord) -> Iterator[Link]:
    kind = api_pb2.KIND_INCIDENT
    sentence = f"{incident.severity.value}: {incident.title} ({incident.count} findings)"
    yield _link("incident.open", kind, incident.id, incident.opened_ms, sentence)
    if incident.acknowledged_by:
        yield _link("incident.ack", kind, incident.id, incident.last_ms, f"acknowledged by {incident.acknowledged_by}")
    if incident.resolved_ms:
        yield _link("incident.resolve", kind, incident.id, incident.resolved_ms, f"resolved: {incident.resolution}")


def _drain(drain: DrainRecord) -> Iterator[Link]:
    kind = api_pb2.KIND_DRAIN
    asked = (
        ""
        if drain.requested_by == "machine" or drain.requested_by in drain.reason
        else f", asked for by {drain.requested_by}"
    )
    rule = f" [rule {drain.rule} v{drain.rule_version}]" if drain.rule else ""
    yield _link("drain.plan", kind, drain.id, drain.planned_ms, f"{drain.device}: {drain.reason}{asked}{rule}")
    for stage in drain.stages:
        if stage.name == "planned":
            continue
        if stage.name in ("admitted", "refused"):
            budgets = ", ".join(drain.budgets) or "none"
            yield _link("budget.reserve", kind, drain.id, stage.at_ms, f"{stage.name}; budgets: {budgets}")
        else:
            jobs = f"; jobs: {', '.join(drain.jobs)}" if drain.jobs and stage.name == "evacuating" else ""
            yield _link(f"drain.{stage.name}", kind, drain.id, stage.at_ms, f"{drain.device} is {stage.name}{jobs}")


def _migration(migration: MigrationRecord) -> Iterator[Link]:
    kind = api_pb2.KIND_MIGRATION
    target = migration.target_node or "a place to be found"
    route = f"{migration.source_node} → {target}" if migration.source_node else f"on {target}"
    what = "start" if migration.kind is MigrationKind.START else f"{migration.kind.value} move"
    yield _link(
        "migrate.plan", kind, migration.id, migration.requested_ms, f"{what} of {migration.job}: {migration.reason}"
    )
    for stage in migration.stages:
        step, words = MIGRATION_STEPS.get(stage.name, (f"migrate.{stage.name}", f"is {stage.name}"))
        sentence = f"{migration.job} ({route}) {words}"
        if stage.name == "ownership_moved":
            sentence += f" {migration.target_epoch}"
        if stage.name == "done":
            sentence += _figures(migration)
        yield _link(step, kind, migration.id, stage.at_ms, sentence)


def _figures(migration: MigrationRecord) -> str:
    parts = []
    if migration.rto_ms >= 0:
        parts.append(f"RTO {duration(migration.rto_ms)}")
    if migration.rpo_steps >= 0 and migration.kind is not MigrationKind.START:
        least = "at least " if migration.rpo_at_least else ""
        parts.append(f"RPO {least}{migration.rpo_steps} steps, {duration(max(0, migration.rpo_ms))}")
    return f"; {', '.join(parts)}" if parts else ""


def _books(thread: Thread, region: RegionState, world: GlobalState, entries: Iterable[EntryRecord]) -> Iterator[Link]:
    ids = thread.ids
    kind = api_pb2.KIND_SLA
    for entry in entries:
        if not ids.isdisjoint(entry.refs):
            lasted = duration(entry.until_ms - entry.from_ms)
            sentence = f"{entry.scope} was {entry.uptime.value} for {lasted}: {entry.reason}"
            yield _link("ledger.append", kind, entry.scope, entry.until_ms, sentence)
    for scope in thread.scopes():
        held: Versioned[AccountRecord] | None = region.accounts.get(scope) or world.accounts.get(scope)
        if held:
            account = held.record
            sentence = f"{scope} is {account.current.value} since then: {account.reason}"
            yield _link("sla.fold", kind, scope, account.since_ms, sentence)
