"""Pure: what a human's wish becomes. Each function looks at the newest state and returns one decision, or says that
there is nothing to do; it raises ``Refusal`` when the wish cannot be granted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import grpc

from controlplane.domain import breaker
from controlplane.domain import cordon as cordons
from controlplane.domain.drain_progress import cancellation
from controlplane.domain.maintenance import WINDOW
from controlplane.domain.uptime import MAINTENANCE
from controlplane.rpc.refusal import Refusal, invalid, not_found, precondition
from gridkeeper.decision import Decision, Delete, Draft, Now
from gridkeeper.ids import DeviceId, IncidentId, JobId, MigrationId, NodeId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.records.common import Desired
from gridkeeper.records.faults import DrainState, IncidentState
from gridkeeper.records.jobs import TERMINAL_JOB, JobRecord, JobSpec, JobState
from gridkeeper.snapshot import GlobalState, RegionState, Settings

MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Plan:
    """``decision`` None: it is so already. ``objects``: ``<kind>/<name>``."""

    sentence: str
    objects: tuple[str, ...]
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """Who wants it, why, and the trace that everything which follows from it carries."""

    actor: str
    reason: str
    trace: str


def checked_reason(reason: str) -> str:
    """One line of text; empty becomes "by hand". Raises ``Refusal``."""
    reason = reason.strip()
    if len(reason) > MAX_REASON:
        raise invalid(f"reason: {len(reason)} characters; use at most {MAX_REASON}")
    if not reason.isprintable():
        raise invalid("reason: it holds line breaks or control characters; write one line")
    return reason or "by hand"


def devices_of(target: str, region: RegionState) -> tuple[DeviceId, ...]:
    """The devices that ``target`` (a node or a device of this region) names. Raises ``Refusal``."""
    where = f"in region {region.region}"
    if not target:
        raise invalid("target: it is empty; name a node, or a device as <node>/<slot>")
    if "/" in target:
        if DeviceId(target) not in region.devices:
            raise not_found("device", target, region.devices.keys(), where)
        return (DeviceId(target),)
    if NodeId(target) not in region.nodes:
        raise not_found("node", target, region.nodes.keys(), where)
    return tuple(sorted(name for name, device in region.devices.items() if device.record.node == target))


def counted(count: int, what: str) -> str:
    """``1 device``, ``2 devices``."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def reference_of(target: str) -> str:
    return f"device/{target}" if "/" in target else f"node/{target}"


def cordon(
    target: str, ttl_ms: int, maintenance: bool, wish: Wish, region: RegionState, settings: Settings, now: Now
) -> Plan:
    """The caller's reason on a node or device, or announced maintenance, whose time the ledger excludes; repeating it
    unchanged changes nothing."""
    devices_of(target, region)
    if maintenance:
        wish = dataclasses.replace(wish, actor=MAINTENANCE, reason=f"{wish.reason} (announced by {wish.actor})")
    objects = (reference_of(target),)
    held = region.cordons.get(target)
    own = [reason for reason in held.record.reasons if reason.owner == wish.actor] if held else []
    if own and own[0].reason == wish.reason and not ttl_ms and not own[0].expires_ms:
        return Plan(f"{target} is cordoned by {wish.actor} already: {wish.reason}", objects)
    decision = cordons.cordon(region, settings, target, wish.actor, wish.reason, now, ttl_ms=ttl_ms, trace=wish.trace)
    return Plan(decision.sentence, objects, decision)


def uncordon(target: str, maintenance: bool, wish: Wish, region: RegionState, settings: Settings, now: Now) -> Plan:
    """Take back the caller's reason, or end maintenance whoever announced it, and return devices that were drained by
    way of probation."""
    devices_of(target, region)
    if maintenance:
        wish = dataclasses.replace(wish, actor=MAINTENANCE, reason=f"{wish.reason} (ended by {wish.actor})")
    objects = (reference_of(target),)
    decision = cordons.uncordon(region, settings, target, wish.actor, wish.reason, now, trace=wish.trace)
    if decision is None:
        held = region.cordons.get(target)
        owners = [reason.owner for reason in held.record.reasons] if held else []
        others = f"; it is cordoned by {', '.join(owners)}" if owners else ""
        remedy = f"; 'gridkeeper uncordon {target} --maintenance' ends the maintenance" if MAINTENANCE in owners else ""
        windows = [owner for owner in owners if owner.startswith(WINDOW)]
        remedy += f"; 'gridkeeper maintenance cancel {windows[0].removeprefix(WINDOW)}' calls it off" if windows else ""
        return Plan(
            f"{wish.actor} has no cordon on {target}, and nothing on it waits to be returned{others}{remedy}", objects
        )
    return Plan(decision.sentence, objects, decision)


def ack_incident(name: str, wish: Wish, region: RegionState) -> Plan:
    held = region.incidents.get(IncidentId(name))
    if held is None:
        raise not_found("incident", name, region.incidents.keys(), f"in region {region.region}")
    incident, objects = held.record, (f"incident/{name}",)
    if incident.state is IncidentState.RESOLVED:
        raise precondition(f"incident {name} is resolved already ({incident.resolution}); nothing is left to do")
    if incident.state is IncidentState.ACKNOWLEDGED:
        return Plan(f"incident {name} is acknowledged already, by {incident.acknowledged_by}", objects)
    draft = Draft()
    record = dataclasses.replace(incident, state=IncidentState.ACKNOWLEDGED, acknowledged_by=wish.actor)
    draft.put(RegionKeys(region.region).incident(name), record, held)
    sentence = f"incident {name} acknowledged by {wish.actor}: {wish.reason}"
    decision = Decision("incident.ack", sentence, draft.writes(), (), objects[0], incident.findings, incident.trace)
    return Plan(sentence, objects, decision)


def cancel_drain(name: str, wish: Wish, region: RegionState, settings: Settings, now: Now) -> Plan:
    """Call off a drain that is not over, with the request that may still wait behind it."""
    held = region.drains.get(name)
    if held is None:
        raise not_found("drain", name, region.drains.keys(), f"in region {region.region}")
    drain, objects = held.record, (f"drain/{name}", f"device/{held.record.device}")
    if drain.state is DrainState.CANCELLED:
        return Plan(f"drain {name} is cancelled already", objects)
    try:
        decision = cancellation(region, settings, held, wish.actor, wish.reason, now)
    except ValueError as error:
        raise precondition(str(error)) from error
    request = region.drain_requests.get(drain.device)
    if request is not None:
        key = RegionKeys(region.region).drain_request(drain.device)
        decision = dataclasses.replace(decision, writes=(*decision.writes, Delete(key, request.revision)))
    return Plan(decision.sentence, objects, decision)


def reset_breaker(name: str, wish: Wish, region: RegionState, now: Now) -> Plan:
    """Close a breaker: the machine drains again in its scope, and counting starts anew."""
    objects, known = (f"breaker/{name}",), {f"{region.region}/{own}" for own in region.breakers}
    if name not in known:
        raise not_found("breaker", name, known, f"in region {region.region}")
    decision = breaker.reset(region, name.removeprefix(f"{region.region}/"), wish.actor, wish.reason, now)
    if decision is None:
        return Plan(f"breaker {name} is closed already", objects)
    decision = dataclasses.replace(decision, evidence=(wish.actor,), trace=wish.trace)
    return Plan(
        f"{decision.sentence}; what was wanted while it was open and does not hold now is dropped", objects, decision
    )


def submit_job(spec: JobSpec, wish: Wish, world: GlobalState, now: Now) -> Plan:
    """Submitting the same spec again changes nothing; another one under the same name is refused."""
    objects = (f"job/{spec.name}",)
    held = world.jobs.get(spec.name)
    if held is not None:
        before = dataclasses.replace(held.record.spec, nodes=held.record.spec.members)
        if before != spec:
            fields = ", ".join(
                field.name
                for field in dataclasses.fields(JobSpec)
                if getattr(spec, field.name) != getattr(before, field.name)
            )
            raise Refusal(
                grpc.StatusCode.ALREADY_EXISTS,
                f"spec.name: there is a job {spec.name} with another spec (differs in {fields}); use another name",
            )
        state = held.record.state
        hint = "; submit it under another name to run it again" if state in TERMINAL_JOB else ""
        return Plan(f"job {spec.name} is submitted already and is {state.value}{hint}", objects)
    record = JobRecord(
        spec=spec,
        state=JobState.PENDING,
        desired=Desired.RUN,
        reason=f"submitted by {wish.actor}",
        submitted_by=wish.actor,
        submitted_ms=now.ledger_ms,
        migration=MigrationId(""),
        restarts=0,
        ended_ms=0,
        trace=wish.trace,
    )
    draft = Draft()
    draft.put(KEYS.job(spec.name), record, None)
    nodes = f" on each of {spec.members} nodes" if spec.members > 1 else ""
    sentence = f"job {spec.name} submitted: {counted(spec.devices, 'device')}{nodes}, {' '.join(spec.command)[:120]}"
    return Plan(sentence, objects, Decision("job.submit", sentence, draft.writes(), (), objects[0], (), wish.trace))


def stop_job(name: str, wish: Wish, world: GlobalState) -> Plan:
    held = world.jobs.get(JobId(name))
    if held is None:
        raise not_found("job", name, world.jobs.keys(), "in the grid")
    objects = (f"job/{name}",)
    job = held.record
    if job.state in TERMINAL_JOB or job.desired is Desired.STOP:
        over = job.state.value if job.state in TERMINAL_JOB else "being stopped"
        return Plan(f"job {name} is {over} already", objects)
    draft = Draft()
    sentence = f"job {name} is to stop: {wish.reason}"
    draft.put(KEYS.job(JobId(name)), dataclasses.replace(job, desired=Desired.STOP, reason=sentence), held)
    return Plan(sentence, objects, Decision("job.stop", sentence, draft.writes(), (), objects[0], (), job.trace))
