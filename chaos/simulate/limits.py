"""Invariants of "never too much" (rule 7): budgets, their division among regions, breakers. Pure.

Written against the policy and the records alone, with names and counts of its own: budgets with a selector, and those
of jobs, are left to the tests of the core.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from chaos.simulate.history import GLOBAL_STORE, Commit
from chaos.simulate.replay import Changed, Moment
from chaos.simulate.violation import Violation
from gridkeeper.ids import DeviceId
from gridkeeper.policy.model import BreakerPolicy, BudgetPolicy
from gridkeeper.records.faults import BudgetRecord, DrainRecord, DrainState, HoldKind
from gridkeeper.records.fleet import DeviceRecord, HealthRecord, HealthState
from gridkeeper.records.limits import BreakerRecord, BreakerState, EscrowRecord
from gridkeeper.snapshot import Settings

OUT = frozenset(
    {HealthState.DRAINING, HealthState.DRAINED, HealthState.REPAIRING, HealthState.PROBATION, HealthState.RETIRED}
)
MACHINE, FLEET = "machine", "fleet"


@dataclass(slots=True)
class _Fleet:
    """One region as its store shows it. ``begun``: device and ledger time of each admission."""

    devices: dict[DeviceId, DeviceRecord] = field(default_factory=dict)
    health: dict[DeviceId, HealthState] = field(default_factory=dict)
    budgets: dict[str, BudgetRecord] = field(default_factory=dict)
    breakers: dict[str, BreakerRecord] = field(default_factory=dict)
    begun: list[tuple[DeviceId, int]] = field(default_factory=list)
    wanted: dict[str, DrainRecord] = field(default_factory=dict)
    share: int = 0

    def covered(self, name: str) -> frozenset[DeviceId]:
        return frozenset(d.id for d in self.devices.values() if name in groups(d))

    def out(self, name: str, kind: HoldKind | None) -> frozenset[DeviceId]:
        """Devices out of service in a budget, all of them or those that drains took out."""
        holds = self.budgets[name].holds if name in self.budgets else ()
        held = {hold.device for hold in holds if kind is None or hold.kind is kind}
        return frozenset(held | {d for d in self.covered(name) if self.health.get(d) in OUT})

    def take(self, changes: Iterable[Changed]) -> None:
        for change in changes:
            match change.kind:
                case "devices" if change.new is not None:
                    self.devices[change.new.id] = change.new
                case "health" if change.new is not None:
                    self.health[change.new.device] = change.new.state
                case "budgets":
                    _keep(self.budgets, change)
                case "breakers":
                    _keep(self.breakers, change)
                case "shares":
                    self.share = change.new.amount if change.new else 0
                case "drains" if change.new is not None:
                    self.wanted[change.name] = change.new
                    if _admitted(change):
                        self.begun.append((change.new.device, _at(change.new)))


def _keep(found: dict[str, BudgetRecord] | dict[str, BreakerRecord], change: Changed) -> None:
    if change.new is None:
        found.pop(change.name, None)
    else:
        found[change.name] = change.new


def _admitted(change: Changed) -> bool:
    before: DrainRecord | None = change.old
    return change.new.state is DrainState.ADMITTED and (before is None or before.state is not DrainState.ADMITTED)


def _at(drain: DrainRecord) -> int:
    """When it came to the state that it is in, ledger time."""
    return drain.stages[-1].at_ms if drain.stages else drain.planned_ms


def groups(device: DeviceRecord) -> dict[str, str]:
    """Names of the groups that a device is in -> their kind."""
    vendor = {f"vendor-{device.vendor.lower()}": "vendor"}
    if device.vendor == "host":
        return vendor
    zone = f"zone-{device.zone.lower() or 'unknown'}"
    return {"region": "region", FLEET: FLEET, zone: "zone", f"rack-{device.rack.lower()}": "rack", **vendor}


def _limit(policy: BudgetPolicy, total: int) -> int:
    limit = max(policy.minimum, int(Fraction(str(policy.fraction)) * total)) if total else 0
    return min(limit, policy.maximum) if policy.maximum else limit


def never_too_much(moments: tuple[Moment, ...], settings: Settings) -> Iterator[Violation]:
    """At the revision at which a drain takes a place in a budget, no more devices are out than it allows of the durable
    inventory (those that humans cordoned count too, unless the drained one was cordoned itself), of the fleet's budget
    no more than the region holds, and no more drains have begun within a window than its budget says; whatever goes
    out of service by a drain is held in each budget that covers it."""
    fleets: dict[str, _Fleet] = {}
    plain = {p.kind: p for p in settings.policy.budgets if not p.window_ms and not p.select and p.kind != "job"}
    windows = [p for p in settings.policy.budgets if p.window_ms and not p.select and p.kind != "job"]
    for moment in moments:
        commit = moment.entry
        if not isinstance(commit, Commit) or commit.store == GLOBAL_STORE:
            continue
        fleet = fleets.setdefault(commit.store, _Fleet())
        budgets = [c for c in moment.changes if c.kind == "budgets" and c.name.partition("-")[0] in plain]
        before = {change.name: fleet.out(change.name, None) for change in budgets}
        fleet.take(moment.changes)
        for change in budgets:
            yield from _room(commit.at_ms, fleet, change, before[change.name], plain)
        for change in moment.changes:
            if change.kind == "health" and change.new is not None and change.new.state is HealthState.DRAINING:
                yield from _held(commit.at_ms, fleet, change.new, plain)
            elif change.kind == "drains" and change.new is not None and _admitted(change):
                yield from _in_time(commit.at_ms, fleet, change.new, windows)


def _room(
    at_ms: int, fleet: _Fleet, change: Changed, before: frozenset[DeviceId], policies: dict[str, BudgetPolicy]
) -> Iterator[Violation]:
    if change.new is None:
        return
    known = {hold.device for hold in change.old.holds if hold.kind is HoldKind.DRAIN} if change.old else set()
    fresh = sorted(h.device for h in change.new.holds if h.kind is HoldKind.DRAIN and h.device not in known)
    total = len(fleet.covered(change.name))
    limit = fleet.share if change.name == FLEET else _limit(policies[change.name.partition("-")[0]], total)
    drained, used = fleet.out(change.name, HoldKind.DRAIN), fleet.out(change.name, None)
    cordoned = all(device in before for device in fresh)
    if fresh and (len(drained) > limit or (len(used) > limit and not cordoned)):
        yield Violation(
            at_ms,
            "never too much",
            f"{', '.join(fresh)} drained with {len(used)} out ({len(drained)} by drains) of {total} in budget "
            f"{change.name}, which allows {limit}",
        )


def _held(at_ms: int, fleet: _Fleet, health: HealthRecord, policies: dict[str, BudgetPolicy]) -> Iterator[Violation]:
    device = fleet.devices.get(health.device)
    names = [name for name, kind in groups(device).items() if kind in policies] if device else ["any"]
    for name in names:
        holds = fleet.budgets[name].holds if name in fleet.budgets else ()
        if not any(hold.device == health.device and hold.kind is HoldKind.DRAIN for hold in holds):
            yield Violation(at_ms, "never too much", f"{health.device} is draining without a place in budget {name}")


def _in_time(at_ms: int, fleet: _Fleet, drain: DrainRecord, windows: list[BudgetPolicy]) -> Iterator[Violation]:
    now_ms, device = _at(drain), fleet.devices.get(drain.device)
    for policy in windows:
        for name, kind in (groups(device) if device else {}).items():
            if kind != policy.kind:
                continue
            inside = fleet.covered(name)
            begun = sum(1 for other, at in fleet.begun if other in inside and at > now_ms - policy.window_ms)
            limit = _limit(policy, len(inside))
            if begun > limit:
                sentence = f"{begun} drains have begun in {name} within {policy.window_ms} ms, which allows {limit}"
                yield Violation(at_ms, "never too much", sentence)


def escrowed(moments: tuple[Moment, ...], settings: Settings) -> Iterator[Violation]:
    """Of the fleet's budget no region holds more than it promised to, what regions may hold is never more than the
    limit in force, and that only follows policy, or what may be held already."""
    held: dict[str, int] = {}
    promised: dict[str, int] = {}
    given: dict[str, int] = {}
    limit = 0
    policy = next((p for p in settings.policy.budgets if p.kind == FLEET), None)

    def bound() -> int:
        return sum(max(given.get(name, 0), promised.get(name, 0)) for name in {*given, *promised})

    for moment in moments:
        for change in moment.changes:
            if change.kind == "shares":
                held[change.new.region if change.new else "?"] = change.new.amount if change.new else 0
            elif change.kind == "share-acks" and change.new is not None:
                promised[change.new.region] = change.new.amount
            elif change.kind == "escrow" and change.new is not None:
                before, record = bound(), change.new
                assert isinstance(record, EscrowRecord)
                given = {share.region: share.amount for share in record.shares}
                limit = record.limit
                allowed = max(before, _limit(policy, record.total) if policy else 0)
                if limit > allowed:
                    yield Violation(moment.at_ms, "escrow", f"the limit is {limit} where {allowed} are allowed")
            else:
                continue
            for name, amount in held.items():
                if amount > promised.get(name, 0):
                    sentence = f"{name} holds {amount} places and promised to hold {promised.get(name, 0)}"
                    yield Violation(moment.at_ms, "escrow", sentence)
            if bound() > limit:
                yield Violation(moment.at_ms, "escrow", f"{bound()} places may be held of {limit}")


def breakers_hold(moments: tuple[Moment, ...], settings: Settings) -> Iterator[Violation]:
    """No machine drain is admitted in the scope of an open breaker, of a half-open one no more than the trickle, and of
    a closed one none while more were first wanted within its window than policy says."""
    fleets: dict[str, _Fleet] = {}
    for moment in moments:
        commit = moment.entry
        if not isinstance(commit, Commit) or commit.store == GLOBAL_STORE:
            continue
        fleet = fleets.setdefault(commit.store, _Fleet())
        breakers = dict(fleet.breakers)
        fleet.take(moment.changes)
        for change in moment.changes:
            if change.kind != "drains" or change.new is None or not _admitted(change):
                continue
            device = fleet.devices.get(change.new.device)
            if change.new.requested_by != MACHINE or device is None:
                continue
            for policy in settings.policy.breakers:
                for name in (name for name, kind in groups(device).items() if kind == policy.kind):
                    yield from _passes(commit.at_ms, fleet, change.new, policy, name, breakers.get(name))


def _passes(
    at_ms: int, fleet: _Fleet, drain: DrainRecord, policy: BreakerPolicy, name: str, breaker: BreakerRecord | None
) -> Iterator[Violation]:
    now_ms, inside = _at(drain), fleet.covered(name)
    state = breaker.state if breaker else BreakerState.CLOSED
    if state is BreakerState.OPEN:
        yield Violation(at_ms, "breaker", f"{drain.device} is drained while the breaker of {name} is open")
    since = max(now_ms - policy.within_ms, breaker.since_ms if breaker else 0)
    machine = [d for d in fleet.wanted.values() if d.requested_by == MACHINE and d.device in inside]
    wanted = sum(1 for d in machine if d.planned_ms > since and d.state is not DrainState.SHADOW)
    most = max(policy.drains, int(Fraction(str(policy.fraction)) * len(inside)))
    if wanted > most:
        yield Violation(at_ms, "breaker", f"{drain.device} is drained though {wanted} were wanted in {name} of {most}")
    if state is BreakerState.HALF_OPEN:
        by_machine = {d.device for d in machine}
        passed = [at for other, at in fleet.begun if other in by_machine and at > now_ms - policy.trickle_ms]
        if sum(1 for at in passed if at > (breaker.since_ms if breaker else 0)) > policy.trickle:
            yield Violation(at_ms, "breaker", f"more than {policy.trickle} pass the half-open breaker of {name}")
