"""Taking devices out of service: by budget, on evidence, and done only when every job is certainly gone. Pure.

    planned → admitted (budgets reserved) → evacuating → drained          or refused | cancelled | expired

- A drain is planned on findings that ask for it, at least one of them fresh, of a device on a node that is heard; or
  on a human's request. It cites them with their age and the store's revision, and its transaction compares the
  revisions of the health record and of the findings that it rests on.
- Intent and budget holds are one transaction. Without room the drain is ``refused``: the device stays degraded (so
  nothing new is placed on it), and the same drain is admitted when room comes. Evidence that goes away cancels it.
- ``drained`` says that no process of any job can be on the device (``jobs_on``); the deadline passing is ``expired``.
- A drain that a human cancelled is not planned again on the same evidence.
- Mode ``checkpoint`` asks its jobs to move; ``wait`` lets them end by themselves and has no deadline; ``deadline`` does
  so until ``wait_until_ms``. In each, nothing new is placed on the device from the admission on.
- What shadow rules (or a policy in shadow mode) would drain is written down once per evidence (``shadow.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from controlplane.domain import health
from controlplane.domain.breaker import Breakers
from controlplane.domain.budget import Book
from controlplane.domain.cost import Capacity, cost_of
from controlplane.domain.damping import remembered
from controlplane.domain.drain_progress import OPEN, UNDER_WAY, Drain, deadline_of, given_up, progress, satisfied
from controlplane.domain.evacuation import jobs_on
from controlplane.domain.evidence import (
    Finding,
    bearing_on,
    by_subject,
    calls_out,
    is_fresh,
    is_level,
    merged,
    rank,
    weighs_on_device,
)
from controlplane.domain.health import MACHINE
from controlplane.domain.shadow import decide_shadows
from controlplane.domain.unwell import unwell
from controlplane.domain.words import clock_time, duration, listed, made_id
from gridkeeper.decision import Decision, Draft, Guard, Now, Versioned
from gridkeeper.ids import DeviceId, DrainId, JobId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import Mode
from gridkeeper.records.common import Stamp
from gridkeeper.records.faults import (
    DrainMode,
    DrainRecord,
    DrainRequestRecord,
    DrainState,
    HoldKind,
    IncidentState,
)
from gridkeeper.records.fleet import HealthRecord, HealthState
from gridkeeper.snapshot import GlobalState, RegionState, Settings

BATCH = 16
"""Drains per transaction: four records and two guards each, and the budgets."""

BY_HAND = frozenset(
    {HealthState.SUSPECT, HealthState.DEGRADED, HealthState.HEALTHY, HealthState.PROBATION, HealthState.UNKNOWN}
)


@dataclass(frozen=True, slots=True)
class _Wish:
    """One device that is to be drained. ``old``: its refused drain. ``request``: the human's wish, if it is new."""

    device: DeviceId
    held: Versioned[HealthRecord]
    findings: tuple[Finding, ...]
    old: Drain | None
    request: Versioned[DrainRequestRecord] | None

    @property
    def by_machine(self) -> bool:
        """On evidence, not for announced work or a human."""
        asked = self.request.record if self.request else (self.old.record if self.old else None)
        return asked is None or (asked.requested_by == MACHINE and not asked.maintenance)

    @property
    def requested_by(self) -> str:
        if self.request is not None:
            return self.request.record.requested_by
        return self.old.record.requested_by if self.old else MACHINE

    @property
    def priority(self) -> int:
        return self.request.record.priority if self.request else (self.old.record.priority if self.old else 0)

    @property
    def order(self) -> tuple[bool, int, tuple[int, ...], int, str]:
        """Humans first, then by priority, then the gravest, then the oldest."""
        by_hand = self.requested_by != MACHINE
        gravest = max((rank(f.record)[:2] for f in self.findings), default=(0, 0))
        since = min((f.record.observed_ms for f in self.findings), default=0)
        return not by_hand, -self.priority, tuple(-n for n in gravest), since, self.device


@dataclass(slots=True)
class _Batch:
    """Drains that share one transaction, because they share budgets."""

    draft: Draft = field(default_factory=Draft)
    guards: dict[str, Guard] = field(default_factory=dict)
    drains: list[DrainRecord] = field(default_factory=list)


def decide_drains(
    state: RegionState, world: GlobalState, settings: Settings, now: Now, most: int = BATCH
) -> tuple[Decision, ...]:
    """Progress of drains under way, one decision each; then what is new, in one of at most ``most`` drains."""
    keys = RegionKeys(state.region)
    findings = state.memo.once(by_subject, state.findings)
    newest = state.memo.once(_newest_by_device, state.drains)
    decisions: list[Decision] = []
    for drain in newest.values():
        if drain.record.state in UNDER_WAY:
            decisions.extend(progress(state, world, now, keys, drain))
    wishes, breakers = _wanted(state, settings, now)
    decisions.extend(breakers.decisions())
    decisions.extend(given_up(state, settings, now, keys, newest, findings, breakers))
    decisions.extend(satisfied(state, settings, now, keys, newest))
    decisions.extend(decide_shadows(state, world, settings, now, findings))
    decisions.extend(_planning(state, world, settings, now, wishes, breakers, most))
    return tuple(decisions)


def decide_admissions(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """Only what is new, of what ``decide_drains`` decides: when more is wanted than fits into one transaction, the rest
    need not be looked at for each of them."""
    wishes, breakers = _wanted(state, settings, now)
    return (*breakers.decisions(), *_planning(state, world, settings, now, wishes, breakers, BATCH))


def _wanted(state: RegionState, settings: Settings, now: Now) -> tuple[list[_Wish], Breakers]:
    """Devices to be drained, the most urgent first, and the breakers that know of them."""
    findings = state.memo.once(by_subject, state.findings)
    newest = state.memo.once(_newest_by_device, state.drains)
    keys = RegionKeys(state.region)
    wishes = sorted(_wishes(state, settings, now, keys, newest, findings), key=lambda wish: wish.order)
    return wishes, Breakers(state, settings, now, (w.device for w in wishes if w.by_machine and w.old is None))


def _planning(
    state: RegionState,
    world: GlobalState,
    settings: Settings,
    now: Now,
    wishes: list[_Wish],
    breakers: Breakers,
    most: int,
) -> Iterator[Decision]:
    """Refusals, one each; admissions, in one."""
    if not wishes:
        return
    keys = RegionKeys(state.region)
    batch, book, capacity = _Batch(), Book.of(state, settings, now), Capacity(state)
    for wish in wishes:
        if wish.by_machine and wish.old and breakers.outlived(wish.old.record) and not _holds(wish.findings):
            continue  # given up
        refusal = (breakers.refusal(wish.device) if wish.by_machine else None) or book.refusal(wish.device)
        if refusal is None and len(batch.drains) < most:
            _admit(state, world, settings, now, keys, book, breakers, capacity, batch, wish)
        elif refusal is not None:
            yield from _refuse(state, settings, now, keys, book, wish, refusal.names, refusal.sentence)
    if batch.drains:
        yield _admission(batch)


def _newest_by_device(drains: Mapping[str, Drain]) -> dict[DeviceId, Drain]:
    """A shadow drain took nothing out, so it hides none that did."""
    newest: dict[DeviceId, Drain] = {}
    for _, drain in sorted(drains.items()):
        if drain.record.state is DrainState.SHADOW:
            continue
        other = newest.get(drain.record.device)
        if other is None or drain.created > other.created:
            newest[drain.record.device] = drain
    return newest


# -- what is new ------------------------------------------------------------------------------------------------------


def _wishes(
    state: RegionState,
    settings: Settings,
    now: Now,
    keys: RegionKeys,
    newest: dict[DeviceId, Drain],
    findings: dict[str, list[Finding]],
) -> Iterator[_Wish]:
    """Devices that evidence or humans want out, and that are in."""
    drainable = [device for device in unwell(state) if _drainable(state.health[device].record.state)]
    for device in sorted({*state.drain_requests, *newest, *drainable}):
        held = state.health.get(device)
        if held is None or device not in state.devices:
            continue
        request, last = state.drain_requests.get(device), newest.get(device)
        if request is not None and request.record.not_before_ms > now.ledger_ms:
            request = None
        if last is not None and last.record.state in UNDER_WAY:
            continue
        if last is not None and keys.drain(last.record.id) in state.suspect_keys:
            continue
        old = last if last is not None and last.record.state in OPEN else None
        asked = old is not None and (old.record.requested_by != MACHINE or bool(old.record.maintenance))
        if (request is not None or asked) and held.record.state in BY_HAND:
            active = tuple(f for f in bearing_on(findings, device) if f.record.active and weighs_on_device(f.record))
            yield _Wish(device, held, active, old, request)
        elif _drainable(held.record.state) and settings.policy.mode is Mode.ACT:
            calling = tuple(f for f in bearing_on(findings, device) if f.record.active and calls_out(f.record))
            if _convicts(calling, _declined(last), settings, now):
                yield _Wish(device, held, calling, old, None)


def _drainable(state: HealthState) -> bool:
    return state is HealthState.SUSPECT or state is HealthState.DEGRADED


def _declined(last: Drain | None) -> Drain | None:
    return last if last is not None and last.record.state is DrainState.CANCELLED else None


def _convicts(calling: tuple[Finding, ...], declined: Drain | None, settings: Settings, now: Now) -> bool:
    """At least one finding is fresh, and (after a cancelled drain) newer than what was judged then."""
    evidence_ms = settings.policy.drain.evidence_ms
    fresh = (f for f in calling if is_fresh(f.record, evidence_ms, now.ledger_ms))
    return any(declined is None or f.revision > declined.revision for f in fresh)


def _holds(findings: tuple[Finding, ...]) -> bool:
    """A condition that calls for the drain holds now, whatever was seen when."""
    return any(is_level(f.record) for f in findings)


def _admit(
    state: RegionState,
    world: GlobalState,
    settings: Settings,
    now: Now,
    keys: RegionKeys,
    book: Book,
    breakers: Breakers,
    capacity: Capacity,
    batch: _Batch,
    wish: _Wish,
) -> None:
    planned = _planned(state, settings, now, wish)
    names = book.hold(wish.device, HoldKind.DRAIN, planned.id, batch.draft)
    jobs, usage = tuple(JobId(job) for job in sorted(jobs_on(state, world, wish.device).jobs)), book.usage(wish.device)
    cost = cost_of(world, wish.device, jobs, capacity, usage, now, settings.policy.placement)
    capacity.take(wish.device)
    drain = replace(
        planned,
        state=DrainState.ADMITTED,
        reason=f"{planned.reason}; budgets {usage}",
        budgets=names,
        jobs=jobs,
        cost=cost,
        deadline_ms=deadline_of(planned, settings, now),
        stages=(*planned.stages, Stamp(DrainState.ADMITTED.value, now.ledger_ms)),
    )
    moved = health.moved(wish.held.record, HealthState.DRAINING, drain.reason, now.ledger_ms)
    moved = replace(moved, rule=drain.rule, rule_version=drain.rule_version, before_unknown=wish.held.record.state)
    if wish.by_machine:
        moved = replace(moved, drained_ms=remembered(wish.held.record, settings.policy.drain, now.ledger_ms))
        batch.guards.update((guard.key, guard) for guard in breakers.admit(wish.device, batch.draft))
    _record(state, keys, batch.draft, wish, drain, moved)
    for finding in wish.findings[:2]:
        key = keys.finding(finding.record.id)
        batch.guards[key] = Guard(key, finding.revision)
    batch.guards.update((guard.key, guard) for guard in book.guards(wish.device))
    batch.drains.append(drain)


def _refuse(
    state: RegionState,
    settings: Settings,
    now: Now,
    keys: RegionKeys,
    book: Book,
    wish: _Wish,
    names: tuple[str, ...],
    why: str,
) -> Iterator[Decision]:
    """Write the refusal down, once per set of full budgets."""
    old = wish.old
    if old is not None and old.record.state is DrainState.REFUSED and old.record.budgets == names:
        return
    planned = _planned(state, settings, now, wish)
    drain = replace(
        planned,
        state=DrainState.REFUSED,
        reason=f"{planned.reason}; refused: {why}",
        budgets=names,
        stages=_refused_again(planned.stages, now),
    )
    draft = Draft()
    _record(state, keys, draft, wish, drain, wish.held.record)
    sentence = f"drain {drain.id} of {wish.device} is refused: {why}; nothing new is placed on it meanwhile"
    yield Decision(
        "drain.plan", sentence, draft.writes(), (), f"drain/{drain.id}", drain.evidence, drain.trace
    )  # fmt: skip


def _refused_again(stages: tuple[Stamp, ...], now: Now) -> tuple[Stamp, ...]:
    """The first and the last refusal in a row: what is full may change each minute for as long as the drain waits."""
    last_two = {stamp.name for stamp in stages[-2:]}
    kept = stages[:-1] if len(stages) >= 2 and last_two == {DrainState.REFUSED.value} else stages
    return (*kept, Stamp(DrainState.REFUSED.value, now.ledger_ms))


def _how(settings: Settings, now: Now, wish: _Wish) -> tuple[DrainMode, int, str]:
    """Mode, end of the waiting and window: as the human asked, else as it was planned before, else by policy."""
    policy = settings.policy.drain
    if wish.request is not None:
        asked = wish.request.record
        until = now.ledger_ms + asked.wait_ms if asked.mode is DrainMode.DEADLINE else 0
        return asked.mode, until, asked.maintenance
    if wish.old is not None:
        return wish.old.record.mode, wish.old.record.wait_until_ms, wish.old.record.maintenance
    mode = DrainMode(policy.mode)
    return mode, now.ledger_ms + policy.wait_ms if mode is DrainMode.DEADLINE else 0, ""


def _planned(state: RegionState, settings: Settings, now: Now, wish: _Wish) -> DrainRecord:
    """The drain as it is planned now; a refused one keeps id, requester and stages."""
    mode, wait_until_ms, maintenance = _how(settings, now, wish)
    held, old = wish.held.record, wish.old.record if wish.old else None
    ranked = sorted((f.record for f in wish.findings), key=rank, reverse=True)
    requested_by = wish.requested_by
    age = max(0, now.ledger_ms - max((f.observed_ms for f in ranked), default=now.ledger_ms))
    evidence = merged((), tuple(e for f in ranked for e in (f.id, *f.evidence)))
    if requested_by == MACHINE and ranked:
        main = ranked[0]
        own = max(0, now.ledger_ms - main.observed_ms)
        more = f" and {len(ranked) - 1} more findings" if len(ranked) > 1 else ""
        cited = listed(main.evidence, 2)
        reason = f"{main.sentence}{more}, {duration(own)} old, evidence {cited}; rule {main.rule} v{main.rule_version}"
        rule, version = main.rule, main.rule_version
    else:
        asked = wish.request.record.reason if wish.request else (old.reason.split("; ")[0] if old else "")
        when = clock_time(wish.request.record.requested_ms) if wish.request else ""
        reason = f"asked for by {requested_by} at {when}: {asked}" if wish.request else asked
        rule, version = "by-hand", 1
        evidence = merged((requested_by,), evidence)
    trace = old.trace if old and old.trace else ""
    if not trace and wish.request:
        trace = wish.request.record.trace
    incident = state.incidents.get(held.incident)
    trace = trace or (incident.record.trace if incident else "") or held.trace
    return DrainRecord(
        id=old.id if old else DrainId(made_id(wish.device, "drain", state.revision)),
        region=state.region,
        node=held.node,
        device=wish.device,
        uuid=held.uuid,
        incident=held.incident,
        state=DrainState.PLANNED,
        reason=reason,
        evidence=evidence,
        evidence_age_ms=age,
        decided_revision=state.revision,
        rule=rule,
        rule_version=version,
        budgets=(),
        jobs=(),
        requested_by=requested_by,
        planned_ms=old.planned_ms if old else now.ledger_ms,
        deadline_ms=0,
        stages=old.stages if old else (Stamp(DrainState.PLANNED.value, now.ledger_ms),),
        trace=trace,
        mode=mode,
        wait_until_ms=wait_until_ms,
        priority=wish.priority,
        policy_version=settings.policy.version,
        maintenance=maintenance,
    )


def _record(
    state: RegionState, keys: RegionKeys, draft: Draft, wish: _Wish, drain: DrainRecord, held: HealthRecord
) -> None:
    """Drain, health and incident name each other; a request that became a drain is done."""
    draft.put(keys.drain(drain.id), drain, wish.old)
    draft.put(keys.health(wish.device), replace(held, drain=drain.id), wish.held)
    incident = state.incidents.get(drain.incident)
    if incident is not None and incident.record.state is not IncidentState.RESOLVED:
        draft.put(keys.incident(drain.incident), replace(incident.record, drain=drain.id), incident)
    if wish.request is not None:
        draft.delete(keys.drain_request(wish.device), wish.request)


def _admission(batch: _Batch) -> Decision:
    first = batch.drains[0]
    if len(batch.drains) == 1:
        sentence = f"drain {first.id} of {first.device} is admitted: {first.reason}"
        subject = f"drain/{first.id}"
    else:
        names = listed([drain.id for drain in batch.drains], BATCH)
        sentence = f"{len(batch.drains)} drains are admitted ({names}); the first: {first.reason}"
        subject = f"drain/{first.id}"
    evidence = tuple(dict.fromkeys(e for drain in batch.drains for e in drain.evidence))[:64]
    writes, guards = batch.draft.writes(), tuple(batch.guards.values())
    return Decision("drain.plan", sentence, writes, guards, subject, evidence, first.trace)
