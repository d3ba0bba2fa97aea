"""Too many at once is suspicious: a breaker per scope stops the machine's drains when too many are wanted. Pure.

    closed → open (more wanted within the window than policy says) → half-open (after ``cool_ms``) → closed, or open

- What counts is each drain that the machine *first wanted* within the window, admitted or not, as their records say: so
  deciding again counts nothing twice, and a new leader counts the same.
- Open: no machine drain in its scope. Healthy events, repairs and humans' drains go on.
- Half-open: ``trickle`` machine drains per ``trickle_ms``, each written into the breaker's record by the transaction
  that admits it. Counting starts anew. ``close_ms`` without another burst close it, once no more than a burst still
  waits for it: else the very drains that opened it would all begin at once.
- A wish of the time when it was open is not acted on afterwards unless its condition still holds (a level finding) or
  it is seen again: the others expire (``decide_drains`` gives them up), so that no stale fault is replayed.
- Every machine drain compares the records of its breakers; one that does not decode, and a scope without devices, are
  unknown, and unknown means no.
- A human may close it (``reset``). An incident stands from its opening until it is closed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from controlplane.domain.budget import Refusal
from controlplane.domain.health import MACHINE
from controlplane.domain.scopes import coverage, of_breaker
from controlplane.domain.words import SEPARATOR, clock_time, duration, made_id
from gridkeeper.decision import ABSENT, Decision, Draft, Guard, Now, Versioned
from gridkeeper.ids import DeviceId, DrainId, IncidentId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import BreakerPolicy
from gridkeeper.records.common import Severity
from gridkeeper.records.faults import DrainRecord, DrainState, IncidentRecord, IncidentState
from gridkeeper.records.limits import BreakerRecord, BreakerState
from gridkeeper.snapshot import RegionState, Settings

FAULT_CLASS = "breaker"
PREFIX = "breaker-"
"""Before a breaker's name among the names that refused a drain."""
REMEMBERED = 64
"""Times of what opened it that are kept in its record, for people."""


@lru_cache(maxsize=1024)
def threshold(policy: BreakerPolicy, total: int) -> int:
    """Machine drains that may be wanted within the window, of ``total`` devices; 0 for an unknown fleet."""
    return max(policy.drains, int(Fraction(str(policy.fraction)) * total)) if total > 0 else 0


class Breakers:
    """All breakers of a region on one snapshot, while drains are being admitted one after another.

    ``wanted``: devices that the machine wants to drain now and that no drain record says yet.
    """

    def __init__(self, state: RegionState, settings: Settings, now: Now, wanted: Iterable[DeviceId]) -> None:
        self._state = state
        self._now = now
        self._keys = RegionKeys(state.region)
        policies = settings.policy.breakers
        self._coverage = coverage(state, tuple(of_breaker(policy) for policy in policies))
        self._policies = {name: policies[found[0]] for name, found in self._coverage.groupings.items()}
        self._counts, self._times = self._count(wanted)
        self._waiting = self._held_back()
        self._moves = {
            name: after
            for name, policy in sorted(self._policies.items())
            if (after := self._next(name, policy)) is not None
        }
        self._passed: dict[str, tuple[int, ...]] = {}

    def _old(self, name: str) -> Versioned[BreakerRecord] | None:
        return self._state.breakers.get(name)

    def _count(self, wanted: Iterable[DeviceId]) -> tuple[Counter[str], dict[str, list[int]]]:
        """Per breaker: how many were first wanted within its window (and since it last changed), and when."""
        since = {name: self._since(name, policy) for name, policy in self._policies.items()}
        earliest = min(since.values(), default=self._now.ledger_ms)
        counts: Counter[str] = Counter()
        times: dict[str, list[int]] = {}
        for drain in self._state.drains.values():
            record = drain.record
            if record.planned_ms <= earliest or not _counts(record):
                continue
            for name in self._coverage.names.get(record.device, ()):
                if record.planned_ms > since[name]:
                    counts[name] += 1
                    times.setdefault(name, []).append(record.planned_ms)
        for device in wanted:
            for name in self._coverage.names.get(device, ()):
                counts[name] += 1
                times.setdefault(name, []).append(self._now.ledger_ms)
        return counts, times

    def _held_back(self) -> Counter[str]:
        """Per breaker: machine drains that it refused and that are wanted still."""
        counts: Counter[str] = Counter()
        for drain in self._state.drains.values():
            if drain.record.state is DrainState.REFUSED and _counts(drain.record):
                counts.update(name.removeprefix(PREFIX) for name in drain.record.budgets if name.startswith(PREFIX))
        return counts

    def _since(self, name: str, policy: BreakerPolicy) -> int:
        old = self._old(name)
        return max(self._now.ledger_ms - policy.within_ms, old.record.since_ms if old else 0)

    def _next(self, name: str, policy: BreakerPolicy) -> BreakerRecord | None:
        """The record after its next change of state; None: it stays."""
        if self._keys.breaker(name) in self._state.suspect_keys:
            return None
        old, now_ms = self._old(name), self._now.ledger_ms
        record = old.record if old else BreakerRecord(name, BreakerState.CLOSED, 0, "", (), (), 0)
        age, most = now_ms - record.since_ms, threshold(policy, self._coverage.totals.get(name, 0))
        if record.state is BreakerState.OPEN:
            if age < policy.cool_ms:
                return None
            why = f"open for {duration(age)}: {policy.trickle} machine drains per {duration(policy.trickle_ms)} pass"
            return replace(
                record, state=BreakerState.HALF_OPEN, since_ms=now_ms, reason=why, passed_ms=(), open_until_ms=now_ms
            )
        if self._counts[name] > most:
            why = (
                f"{self._counts[name]} machine drains were wanted in {name} within {duration(policy.within_ms)}, "
                f"more than {most}"
            )
            times = tuple(sorted(self._times[name])[-REMEMBERED:])
            trips = record.trips + 1
            return BreakerRecord(name, BreakerState.OPEN, now_ms, why, times, (), trips, record.open_until_ms)
        quiet = age >= policy.close_ms and self._waiting[name] <= most
        if record.state is BreakerState.HALF_OPEN and quiet:
            why = f"no further burst for {duration(age)}"
            return replace(record, state=BreakerState.CLOSED, since_ms=now_ms, reason=why, wanted_ms=(), passed_ms=())
        return None

    # -- for the planner of drains --

    def refusal(self, device: DeviceId) -> Refusal | None:
        """Why the machine may not drain the device now; None: it may."""
        stops = tuple(name for name in self._coverage.names.get(device, ()) if self._stops(name))
        if not stops:
            return None
        return Refusal(tuple(PREFIX + name for name in stops), lambda: "; ".join(map(self._why, stops)))

    def _stops(self, name: str) -> bool:
        if name in self._moves or self._keys.breaker(name) in self._state.suspect_keys:
            return True
        old = self._old(name)
        match old.record.state if old else BreakerState.CLOSED:
            case BreakerState.OPEN:
                return True
            case BreakerState.HALF_OPEN:
                return len(self._recent(name)) >= self._policies[name].trickle
            case BreakerState.CLOSED:
                return False

    def _recent(self, name: str) -> tuple[int, ...]:
        """When drains passed the half-open breaker within ``trickle_ms``."""
        old, after = self._old(name), self._now.ledger_ms - self._policies[name].trickle_ms
        passed = self._passed.get(name, old.record.passed_ms if old else ())
        return tuple(at for at in passed if at > after)

    def _why(self, name: str) -> str:
        if self._keys.breaker(name) in self._state.suspect_keys:
            return f"the breaker of {name} does not decode, so whether it is open is unknown"
        old = self._old(name)
        record = self._moves.get(name) or (old.record if old else None)
        assert record is not None, "a breaker that stops something has a record, or is about to"
        if record.state is BreakerState.OPEN:
            return f"the breaker of {name} is open since {clock_time(record.since_ms)}: {record.reason}"
        return f"the breaker of {name} is {record.state.value.replace('_', '-')} and lets few through: {record.reason}"

    def admit(self, device: DeviceId, draft: Draft) -> tuple[Guard, ...]:
        """One machine drain passes: half-open breakers write it down; the guards on the others."""
        guards: list[Guard] = []
        for name in self._coverage.names.get(device, ()):
            old, key = self._old(name), self._keys.breaker(name)
            if old is not None and old.record.state is BreakerState.HALF_OPEN:
                self._passed[name] = (*self._recent(name), self._now.ledger_ms)
                draft.put(key, replace(old.record, passed_ms=self._passed[name]), old)
            else:
                guards.append(Guard(key, old.revision if old else ABSENT))
        return tuple(guards)

    def outlived(self, drain: DrainRecord) -> bool:
        """It was refused by a breaker that was open then and is not any more."""
        refused_ms = max((s.at_ms for s in drain.stages if s.name == DrainState.REFUSED.value), default=0)
        for name in drain.budgets:
            old = self._old(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
            over = old is not None and old.record.state is not BreakerState.OPEN
            if over and old is not None and refused_ms <= old.record.open_until_ms:
                return True
        return False

    # -- what becomes of the breakers --

    def decisions(self) -> Iterator[Decision]:
        """Changes of state, one decision each with its incident; then breakers that policy no longer has."""
        for name, after in self._moves.items():
            yield _changed(self._state, self._keys, name, self._old(name), after, self._now)
        for name, old in sorted(self._state.breakers.items()):
            if name not in self._policies:
                closed = replace(
                    old.record, state=BreakerState.CLOSED, reason="the policy has no such breaker any more"
                )
                yield _changed(self._state, self._keys, name, old, closed, self._now, keep=False)


def _counts(record: DrainRecord) -> bool:
    """The machine wanted it, on evidence (and not for announced work), and not only in thought."""
    return record.requested_by == MACHINE and not record.maintenance and record.state is not DrainState.SHADOW


def subject_of(state: RegionState, name: str) -> str:
    """The subject of a breaker's incident: neither a node nor a device."""
    return SEPARATOR.join(("breaker", state.region, name))


def _changed(
    state: RegionState,
    keys: RegionKeys,
    name: str,
    old: Versioned[BreakerRecord] | None,
    after: BreakerRecord,
    now: Now,
    keep: bool = True,
) -> Decision:
    draft = Draft()
    if keep:
        draft.put(keys.breaker(name), after, old)
    elif old is not None:
        draft.delete(keys.breaker(name), old)
    _incident(state, keys, name, after, now, draft)
    word = after.state.value.replace("_", "-")
    sentence = f"the breaker of {name} is {word}: {after.reason}"
    return Decision(f"breaker.{after.state.value}", sentence, draft.writes(), subject=f"breaker/{name}")


def _incident(state: RegionState, keys: RegionKeys, name: str, after: BreakerRecord, now: Now, draft: Draft) -> None:
    """Stands from the opening until it is closed; opening again counts in it."""
    subject = subject_of(state, name)
    found = (
        v
        for _, v in sorted(state.incidents.items())
        if v.record.subject == subject and v.record.state is not IncidentState.RESOLVED
    )
    standing = next(found, None)
    if after.state is BreakerState.OPEN:
        title = f"automatic draining is stopped in {name}: {after.reason}"
        if standing is not None:
            again = replace(standing.record, title=title, last_ms=now.ledger_ms, count=standing.record.count + 1)
            draft.put(keys.incident(standing.record.id), again, standing)
            return
        record = IncidentRecord(
            id=IncidentId(made_id(subject, state.revision)),
            region=state.region,
            subject=subject,
            fault_class=FAULT_CLASS,
            state=IncidentState.OPEN,
            severity=Severity.FATAL,  # a page: from here on nobody but humans takes anything out
            title=title,
            opened_ms=now.ledger_ms,
            observed_ms=min(after.wanted_ms, default=now.ledger_ms),
            last_ms=now.ledger_ms,
            count=1,
            findings=(),
            drain=DrainId(""),
            acknowledged_by="",
            resolved_ms=0,
            resolution="",
            trace="",
        )
        draft.put(keys.incident(record.id), record, None)
    elif standing is not None and after.state is BreakerState.CLOSED:
        over = replace(
            standing.record, state=IncidentState.RESOLVED, resolved_ms=now.ledger_ms, resolution=after.reason
        )
        draft.put(keys.incident(standing.record.id), over, standing)


def reset(state: RegionState, name: str, actor: str, reason: str, now: Now) -> Decision | None:
    """A human closes a breaker; counting starts anew. None: it is closed. Raises ``KeyError`` if it is none."""
    old = state.breakers[name]
    if old.record.state is BreakerState.CLOSED:
        return None
    why = f"closed by {actor}: {reason}"
    until_ms = now.ledger_ms if old.record.state is BreakerState.OPEN else old.record.open_until_ms
    after = BreakerRecord(name, BreakerState.CLOSED, now.ledger_ms, why, (), (), old.record.trips, until_ms)
    return _changed(state, RegionKeys(state.region), name, old, after, now)
