"""Drains after their admission: how far they got, and how they are given up. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from controlplane.domain import health
from controlplane.domain.breaker import Breakers
from controlplane.domain.budget import Book
from controlplane.domain.budget_upkeep import HOLDING
from controlplane.domain.evacuation import jobs_on
from controlplane.domain.evidence import (
    Finding,
    bearing_on,
    by_subject,
    calls_out,
    is_fresh,
    is_level,
    weighs_on_device,
)
from controlplane.domain.health import MACHINE
from controlplane.domain.words import clock_time, duration, listed
from gridkeeper.decision import Decision, Draft, Guard, Now, Versioned
from gridkeeper.ids import DeviceId, DrainId, IncidentId, JobId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.common import Stamp
from gridkeeper.records.faults import DrainMode, DrainRecord, DrainRequestRecord, DrainState
from gridkeeper.records.fleet import HealthRecord, HealthState
from gridkeeper.snapshot import GlobalState, RegionState, Settings

OPEN = frozenset({DrainState.PLANNED, DrainState.REFUSED, DrainState.ADMITTED, DrainState.EVACUATING})
UNDER_WAY = frozenset({DrainState.ADMITTED, DrainState.EVACUATING, DrainState.EXPIRED})
MAX_GUARDS = 16

Drain = Versioned[DrainRecord]


def deadline_of(record: DrainRecord, settings: Settings, now: Now) -> int:
    """When a drain that is admitted now counts as expired, ledger time; 0: never, since it waits for jobs' own end."""
    if record.mode is DrainMode.WAIT:
        return 0
    begins_ms = max(now.ledger_ms, record.wait_until_ms) if record.mode is DrainMode.DEADLINE else now.ledger_ms
    return begins_ms + settings.timings.drain_deadline_ms


# -- drains under way -------------------------------------------------------------------------------------------------


def progress(state: RegionState, world: GlobalState, now: Now, keys: RegionKeys, drain: Drain) -> Iterator[Decision]:
    """admitted → evacuating → drained, or expired. Nothing is concluded while the global store is not fresh, but time
    passes."""
    record, held = drain.record, state.health.get(drain.record.device)
    if held is None or held.record.drain != record.id:
        return
    present = jobs_on(state, world, record.device)
    late = record.state is not DrainState.EXPIRED and 0 < record.deadline_ms <= now.ledger_ms
    if not present.unknown and not present.jobs:
        yield _drained(now, keys, drain, held, present.released)
    elif late:
        waits = present.unknown or f"{listed(sorted(present.jobs))} not confirmed stopped"
        why = f"past its deadline of {clock_time(record.deadline_ms)}: {waits}"
        yield _to(now, keys, drain, held, DrainState.EXPIRED, HealthState.DRAINING, why)
    elif record.state is DrainState.ADMITTED and present.jobs:
        jobs = tuple(JobId(job) for job in sorted({*record.jobs, *present.jobs}))
        why = f"waits for {listed(jobs)} to {'end' if record.mode is DrainMode.WAIT else 'leave'}"
        yield _to(now, keys, _with_jobs(drain, jobs), held, DrainState.EVACUATING, HealthState.DRAINING, why)


def _with_jobs(drain: Drain, jobs: tuple[JobId, ...]) -> Drain:
    return replace(drain, record=replace(drain.record, jobs=jobs))


def _drained(
    now: Now, keys: RegionKeys, drain: Drain, held: Versioned[HealthRecord], released: tuple[str, ...]
) -> Decision:
    why = f"no job is on it: {listed(released)}" if released else "no job was on it"
    return _to(now, keys, drain, held, DrainState.DRAINED, HealthState.DRAINED, why)


def _to(
    now: Now,
    keys: RegionKeys,
    drain: Drain,
    held: Versioned[HealthRecord],
    to: DrainState,
    device: HealthState,
    why: str,
) -> Decision:
    record, draft = drain.record, Draft()
    stages = (*record.stages, Stamp(to.value, now.ledger_ms))
    draft.put(keys.drain(record.id), replace(record, state=to, stages=stages), drain)
    after = held.record
    if device is not after.state:
        moved = health.moved(after, device, f"{why}; {record.reason}", now.ledger_ms)
        after = replace(moved, rule=record.rule, rule_version=record.rule_version)
    if after != held.record:
        draft.put(keys.health(record.device), after, held)
    guards = () if after != held.record else (Guard(keys.health(record.device), held.revision),)
    sentence = f"drain {record.id}: {record.device} is {to.value}, {why}"
    return Decision(
        f"drain.{to.value}", sentence, draft.writes(), guards, f"drain/{record.id}", record.evidence, record.trace
    )


# -- drains that are given up -----------------------------------------------------------------------------------------


def given_up(
    state: RegionState,
    settings: Settings,
    now: Now,
    keys: RegionKeys,
    newest: Mapping[DeviceId, Drain],
    findings: Mapping[str, list[Finding]],
    breakers: Breakers,
) -> Iterator[Decision]:
    """Refused drains whose evidence has gone or is too old, and what an operator's cancelling leaves to be put back."""
    for device, drain in newest.items():
        record, held = drain.record, state.health.get(device)
        by_evidence = record.requested_by == MACHINE and not record.maintenance
        if record.state is DrainState.REFUSED and by_evidence and device not in state.drain_requests:
            calling = [f for f in bearing_on(findings, device) if f.record.active and calls_out(f.record)]
            why = _why_given_up(record, calling, settings, now, breakers)
            if why and (held is None or held.record.state is not HealthState.UNKNOWN):
                decision = cancellation(state, settings, drain, MACHINE, why, now)
                guards = tuple(Guard(keys.finding(f.record.id), f.revision) for f in calling[:MAX_GUARDS])
                yield replace(decision, guards=guards)
        elif (
            record.state is DrainState.CANCELLED
            and held is not None
            and held.record.drain == record.id
            and held.record.state is HealthState.DRAINING
        ):
            yield cancellation(state, settings, drain, MACHINE, "it was cancelled", now)


def _why_given_up(record: DrainRecord, calling: list[Finding], settings: Settings, now: Now, breakers: Breakers) -> str:
    """Evidence that is seen again later makes a new drain. "": it stands."""
    evidence_ms = settings.policy.drain.evidence_ms
    if not calling:
        return "its evidence has cleared"
    if not any(is_fresh(f.record, evidence_ms, now.ledger_ms) for f in calling):
        return f"its evidence is older than {duration(evidence_ms)} and was not seen again"
    if breakers.outlived(record) and not any(is_level(f.record) for f in calling):
        return "it was wanted while a breaker was open, and events of that time are not acted on afterwards"
    return ""


def cancellation(
    state: RegionState, settings: Settings, drain: Drain, actor: str, reason: str, now: Now, trace: str = ""
) -> Decision:
    """Stop a drain that is not done: its places are free again and its device goes back to what the evidence says.

    Also for the API: raises ``ValueError`` for a drain that is over (``drained`` is ended by ``uncordon``).
    """
    record, keys, draft = drain.record, RegionKeys(state.region), Draft()
    if record.state not in OPEN | UNDER_WAY | {DrainState.CANCELLED}:
        raise ValueError(f"drain {record.id} is {record.state.value}; uncordon {record.device} to return it to service")
    if record.state is not DrainState.CANCELLED:
        stages = (*record.stages, Stamp(DrainState.CANCELLED.value, now.ledger_ms))
        ended = replace(
            record, state=DrainState.CANCELLED, stages=stages, reason=f"{record.reason}; cancelled: {reason}"
        )
        draft.put(keys.drain(record.id), ended, drain)
    if record.state in HOLDING or record.state is DrainState.CANCELLED:
        Book.of(state, settings, now).release(record.device, draft, record.id)
    held = state.health.get(record.device)
    if held is not None and held.record.drain == record.id:
        back = replace(held.record, drain=DrainId(""))
        if held.record.state is HealthState.DRAINING:
            found = bearing_on(state.memo.once(by_subject, state.findings), record.device)
            faulty = any(f.record.active and weighs_on_device(f.record) for f in found)
            doubtful = held.record.before_unknown in (HealthState.PROBATION, HealthState.UNKNOWN)
            well = HealthState.PROBATION if doubtful else HealthState.HEALTHY
            to = HealthState.DEGRADED if faulty else well
            back = replace(
                health.moved(back, to, f"drain {record.id} was cancelled by {actor}: {reason}", now.ledger_ms)
            )
        draft.put(keys.health(record.device), back, held)
    incident = state.incidents.get(record.incident) if record.incident else None
    if incident is not None and incident.record.drain == record.id:
        draft.put(keys.incident(IncidentId(record.incident)), replace(incident.record, drain=DrainId("")), incident)
    sentence = f"drain {record.id} of {record.device} is cancelled by {actor}: {reason}"
    return Decision(
        "drain.cancel", sentence, draft.writes(), (), f"drain/{record.id}", record.evidence, trace or record.trace
    )


def satisfied(
    state: RegionState, settings: Settings, now: Now, keys: RegionKeys, newest: Mapping[DeviceId, Drain]
) -> Iterator[Decision]:
    """Requests for devices that are out, or on their way, or gone from the inventory, are done. One that asks for more
    than the drain under way gives (its jobs to move now, or the device to stay out after a maintenance) changes it."""
    for device, request in sorted(state.drain_requests.items()):
        held, last, wish, draft = state.health.get(device), newest.get(device), request.record, Draft()
        if device not in state.devices:
            why = "it is not in the inventory"
        elif wish.not_before_ms > now.ledger_ms:
            continue
        elif last is not None and (last.record.state in UNDER_WAY or _keeps_out(last, held)):
            changed, why = _claimed(last.record, wish, settings, now)
            if changed != last.record:
                draft.put(keys.drain(last.record.id), changed, last)
        elif held is not None and held.record.state in health.OUT - {HealthState.PROBATION}:
            why = f"it is {held.record.state.value} already"
        else:
            continue
        draft.delete(keys.drain_request(device), request)
        sentence = f"the wish of {wish.requested_by} to drain {device} is done with: {why}"
        yield Decision("drain.plan", sentence, draft.writes(), (), f"device/{device}", (), wish.trace)


def _keeps_out(last: Drain, held: Versioned[HealthRecord] | None) -> bool:
    out = held is not None and held.record.state in (HealthState.DRAINED, HealthState.REPAIRING)
    return out and held is not None and held.record.drain == last.record.id


def _claimed(record: DrainRecord, wish: DrainRequestRecord, settings: Settings, now: Now) -> tuple[DrainRecord, str]:
    """The drain that is there, as the wish makes it: never less urgent than it was, and a human's if one asks."""
    changed, why = record, f"drain {record.id} is {record.state.value}"
    if record.maintenance and not wish.maintenance:
        changed = replace(changed, maintenance="", requested_by=wish.requested_by)
        why += f", and outlasts maintenance {record.maintenance}"
    hurried = wish.mode is DrainMode.CHECKPOINT and record.mode is not DrainMode.CHECKPOINT
    if hurried and record.state in UNDER_WAY:
        changed = replace(changed, mode=DrainMode.CHECKPOINT, wait_until_ms=0)
        changed = replace(changed, deadline_ms=deadline_of(changed, settings, now))
        why += f"; it waits no longer (mode {record.mode.value} before)"
    return changed, why
