"""Pure: the chain of evidence behind an object, in the words of the path of one fault."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from controlplane.domain.words import listed
from controlplane.rpc.thread import Thread
from gridkeeper.decision import Versioned
from gridkeeper.ids import RegionId
from gridkeeper.kinds import checkpoint_name, reference
from gridkeeper.records.books import AccountRecord, AuditRecord, EntryRecord
from gridkeeper.records.faults import DrainCost, DrainRecord, FindingRecord, IncidentRecord
from gridkeeper.records.fleet import EventRecord, HealthRecord, LivenessRecord
from gridkeeper.records.jobs import CopyProgress, MigrationKind, MigrationRecord
from gridkeeper.records.limits import BreakerRecord
from gridkeeper.records.regions import LossState
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

BREAKER = "breaker-"
"""Before a breaker's name among the limits that refused a drain."""

ORDER: tuple[str, ...] = (
    "backend.events",
    "fleet.sample",
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
        *(link for finding in _records(region.findings, thread.findings) for link in _finding(finding)),
        *_states(thread, region),
        *(link for incident in _records(region.incidents, thread.incidents) for link in _incident(incident)),
        *(link for drain in _records(region.drains, thread.drains) for link in _drain(drain)),
        *(link for drain in _records(region.drains, thread.drains) for link in _limits(drain, region)),
        *_checkpoints(thread, world),
        *_regions(thread, region, world),
        *(link for migration in _records(world.migrations, thread.migrations) for link in _migration(migration, world)),
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
    age = f", {duration(event.age_ms)} before it was sent" if event.age_ms else ""
    seen_by = " and ".join(event.sources) or "the agent"
    sentence = f"{seen_by} saw {event.kind.value}{code} on {subject}{times}{age}{said}"
    return _link("backend.events", api_pb2.KIND_EVENT, event.id, event.observed_ms, sentence)


def _finding(finding: FindingRecord) -> Iterator[Link]:
    """What was concluded, by whose word and how surely; before it the samples that it rests on."""
    samples = [text for text in finding.evidence if "=" in text]
    if samples:
        kind, name = (api_pb2.KIND_DEVICE, finding.device) if finding.device else (api_pb2.KIND_NODE, finding.node)
        yield _link("fleet.sample", kind, name, finding.observed_ms, ", ".join(samples))
    parts = [f"rule {finding.rule} v{finding.rule_version}", *([f"by {finding.source}"] if finding.source else [])]
    parts.append(f"confidence {finding.confidence.value}")
    times = f", {finding.count} sightings" if finding.count > 1 else ""
    marks = " (only watched: nothing acts on it)" if finding.shadow else ""
    marks += "" if finding.active else " (has cleared)"
    sentence = (
        f"{finding.severity.value}, {finding.action.value}: {finding.sentence}{times} [{', '.join(parts)}]{marks}"
    )
    yield _link("detect.classify", api_pb2.KIND_FINDING, finding.id, finding.observed_ms, sentence)


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
    decided = f"{drain.device}: {drain.reason}{asked}{rule}{_how(drain)}"
    yield _link("drain.plan", kind, drain.id, drain.planned_ms, decided)
    if drain.cost is not None:
        yield _link("drain.cost", kind, drain.id, drain.planned_ms, _cost(drain.cost))
    for stage in drain.stages:
        if stage.name == "planned":
            continue
        if stage.name in ("admitted", "refused"):
            budgets = ", ".join(drain.budgets) or "none"
            yield _link("budget.reserve", kind, drain.id, stage.at_ms, f"{stage.name}; budgets: {budgets}")
        else:
            jobs = f"; jobs: {', '.join(drain.jobs)}" if drain.jobs and stage.name == "evacuating" else ""
            yield _link(f"drain.{stage.name}", kind, drain.id, stage.at_ms, f"{drain.device} is {stage.name}{jobs}")


def _how(drain: DrainRecord) -> str:
    """Under which policy it was decided, on which state and evidence, and how it is carried out."""
    parts = [f"mode {drain.mode.value}"]
    if drain.policy_version:
        parts.append(f"policy v{drain.policy_version}")
    if drain.evidence:
        parts.append(f"evidence {duration(drain.evidence_age_ms)} old: {', '.join(drain.evidence[:4])}")
    if drain.decided_revision:
        parts.append(f"store revision {drain.decided_revision}")
    if drain.priority:
        parts.append(f"priority {drain.priority}")
    if drain.maintenance:
        parts.append(f"maintenance {drain.maintenance}")
    return f" ({'; '.join(parts)})"


def _cost(cost: DrainCost) -> str:
    jobs = []
    for job in cost.jobs:
        if job.checkpoint_step < 0:
            loss = "has no checkpoint"
        else:
            loss = f"checkpoint of step {job.checkpoint_step}, {duration(job.checkpoint_age_ms)} old"
        target = f"would go to {job.target_region}" if job.target_region else "has nowhere to go as far as is known"
        jobs.append(f"{job.job} ({job.devices} devices, step {job.step}, {loss}, {target})")
    budgets = f"; budgets after it: {', '.join(cost.budgets)}" if cost.budgets else ""
    left = f"{cost.capacity_left} of {cost.capacity_total} devices stay usable"
    return f"it costs: {', '.join(jobs) or 'no job'}; {left}{budgets}"


def _limits(drain: DrainRecord, region: RegionState) -> Iterator[Link]:
    """Breakers under whose name it was counted, as they stand."""
    for name in drain.budgets:
        held = region.breakers.get(name.removeprefix(BREAKER))
        if held is not None:
            yield _link("breaker.state", api_pb2.KIND_DRAIN, drain.id, held.record.since_ms, _breaker(held.record))


def _checkpoints(thread: Thread, world: GlobalState) -> Iterator[Link]:
    """Those that are asked about: where they come from, and who resumed from them."""
    for key in sorted(thread.checkpoints & world.checkpoints.keys()):
        record = world.checkpoints[key].record
        name = checkpoint_name(key)
        doubt = "; suspect: it was written after the first evidence of a memory error" if record.suspect else ""
        sentence = (
            f"step {record.step} of {record.job} was verified in {record.region} and committed by epoch {record.epoch} "
            f"({record.size_bytes:,} bytes, manifest {record.digest[:16]}){doubt}"
        )
        yield _link("verify.manifest", api_pb2.KIND_CHECKPOINT, name, record.committed_ms, sentence)
        head = world.heads.get(record.job)
        if head is not None and head.record.step == record.step:
            where = ", ".join(head.record.regions) or "no region"
            sentence = f"it is the newest of {record.job}, verified in {where}"
            yield _link("replicate", api_pb2.KIND_CHECKPOINT, name, head.record.committed_ms, sentence)
        for moved in world.migrations.values():
            move = moved.record
            if move.job == record.job and move.resume_step == record.step:
                sentence = f"{move.kind.value} of {move.job} resumes from it: {move.reason}"
                yield _link("migrate.plan", api_pb2.KIND_MIGRATION, move.id, move.requested_ms, sentence)


def _regions(thread: Thread, region: RegionState, world: GlobalState) -> Iterator[Link]:
    """A region as its leader published it, its budgets and its breakers."""
    for name in sorted(thread.regions):
        kind = api_pb2.KIND_REGION
        held = world.regions.get(name)
        if held is not None:
            record = held.record
            doubt = "; in doubt: too much looks dead at once, nothing is drained" if record.in_doubt else ""
            sentence = (
                f"{record.nodes_alive} of {record.nodes} nodes alive, {record.usable} of {record.devices} devices "
                f"usable, {record.free} free, led by {record.leader}{doubt}"
            )
            yield _link("region.publish", kind, name, record.updated_ms, sentence)
        yield from _loss(name, world)
        if name != region.region:
            continue
        for _, budget in sorted(region.budgets.items()):
            if budget.record.holds:
                out = sorted({str(hold.device) for hold in budget.record.holds})
                shown = listed(out, 8)
                sentence = f"budget {budget.record.name}: {len(out)} of {budget.record.limit} out ({shown})"
                yield _link("budget.reserve", kind, name, 0, sentence)
        for _, found in sorted(region.breakers.items()):
            yield _link("breaker.state", kind, name, found.record.since_ms, _breaker(found.record))


def _loss(name: RegionId, world: GlobalState) -> Iterator[Link]:
    """Its grant, and whether it is or was taken for lost."""
    grant, loss = world.grants.get(name), world.losses.get(name)
    if grant is not None:
        held = grant.record
        sentence = f"the grant of {name} is held by {held.replica}, term {held.term}"
        if held.revoked:
            sentence = f"the grant of {name} is revoked: {held.revoked}; nothing of it is renewed"
        yield _link("grant.take", api_pb2.KIND_REGION, name, held.granted_ms, sentence)
    if loss is None:
        return
    record, kind = loss.record, api_pb2.KIND_LOSS
    yield _link("region.suspect", kind, name, record.suspected_ms, f"region {name} may be lost: {record.reason}")
    if record.decided_ms:
        said = {
            LossState.VETOED: "a human vetoed: nothing is taken over",
            LossState.APPROVED: "a human approved: it is about to be declared lost",
        }.get(record.state, f"it was declared lost; {record.jobs} jobs were its own, and they are recovered elsewhere")
        yield _link("region.lost", kind, name, record.decided_ms, f"{said} ({record.decided_by})")
    if record.returned_ms:
        sentence = f"region {name} is heard again"
        if record.decided_ms and not record.decided_by.startswith("user/"):
            sentence += "; its jobs are fenced there and stay where they went"
        yield _link("region.heard", kind, name, record.returned_ms, sentence)


def _breaker(breaker: BreakerRecord) -> str:
    return f"breaker {breaker.name} is {breaker.state.value.replace('_', ' ')}: {breaker.reason}"


def audit_link(entry: AuditRecord) -> Link:
    """What was done, by whom, and how it ended."""
    cited = f"; evidence: {', '.join(entry.evidence[:4])}" if entry.evidence else ""
    sentence = f"{entry.actor} {entry.result} {entry.verb} on {entry.object or 'the store'}: {entry.sentence}{cited}"
    return _link("audit", api_pb2.KIND_AUDIT, entry.id, entry.at_ms, f"{sentence} (store revision {entry.revision})")


def _migration(migration: MigrationRecord, world: GlobalState) -> Iterator[Link]:
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
        if stage.name == "verified" and migration.resume_step >= 0:
            sentence += f": step {migration.resume_step}"
            checkpoint = world.checkpoints.get(f"{migration.job}/{migration.resume_step:020d}")
            if checkpoint is not None:
                age = duration(max(0, stage.at_ms - checkpoint.record.committed_ms))
                sentence += f", committed by epoch {checkpoint.record.epoch} {age} before"
        if stage.name == "ownership_moved":
            sentence += f" {migration.target_epoch}"
        if stage.name == "done":
            sentence += _figures(migration)
        yield _link(step, kind, migration.id, stage.at_ms, sentence)
    if migration.copy is not None:
        sentence = _copied(migration.copy, migration.target_region)
        yield _link("migrate.precopy", kind, migration.id, migration.copy.seen_ms, sentence)


def _copied(copy: CopyProgress, target: str) -> str:
    left = f", the rest in about {duration(copy.eta_ms)}" if copy.eta_ms > 0 else ""
    share = f"{copy.bytes_here:,} of {copy.bytes_total:,} bytes"
    return f"checkpoint step {copy.step}: {share} have come from {copy.source} to {target}{left}"


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
        if entry.scope == thread.scope or not ids.isdisjoint(entry.refs):
            lasted = duration(entry.until_ms - entry.from_ms)
            sentence = f"{entry.scope} was {entry.uptime.value} for {lasted}: {entry.reason}"
            yield _link("ledger.append", kind, entry.scope, entry.until_ms, sentence)
    for scope in thread.scopes():
        held: Versioned[AccountRecord] | None = region.accounts.get(scope) or world.accounts.get(scope)
        if held:
            account = held.record
            sentence = f"{scope} is {account.current.value} since then: {account.reason}"
            yield _link("sla.fold", kind, scope, account.since_ms, sentence)
