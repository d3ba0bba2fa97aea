"""Objectives measured minute by minute, and what is to be told of their burn rates. Pure.

A minute that nobody measured (no leader, nothing known) is no data, never good and never bad. An alert is a record, so
that the next leader goes on with it: one that fires goes on firing, and one that was told is not told again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from controlplane.domain import indicators
from controlplane.domain.settlement import Keys
from gridkeeper.decision import ABSENT, Decision, Delete, Draft, Now, Put, Versioned
from gridkeeper.keys import RegionKeys
from gridkeeper.records.common import Label
from gridkeeper.records.objectives import SloAlertRecord, SloHourRecord
from gridkeeper.sla.alerts import Condition, conditions, longest_ms, period_of
from gridkeeper.sla.budget import HOUR_MS, MINUTE_MS
from gridkeeper.sla.builtin import Asked, NotMeasured, Where, asked
from gridkeeper.sla.burn import Errors
from gridkeeper.sla.objectives import Goal, Level
from gridkeeper.sla.series import errors_of, minutes_of, satisfies
from gridkeeper.snapshot import GlobalState, RegionState

LATE_MS = 10_000
"""What happens is counted so much later: its record may come after the minute has ended."""
BACK_MS = HOUR_MS
"""After a time in which nobody measured, what happened is counted at most so far back."""
MOST_DELETES = 50
MAX_OBJECTIVES = 200
"""Measured in one store; the rest is said not to be."""

Hour = Versioned[SloHourRecord]
Held = Versioned[SloAlertRecord]


@dataclass(frozen=True, slots=True)
class Measured:
    """One objective that this store's leader measures."""

    goal: Goal
    number: int
    level: Level
    asked: Asked


def measured_here(goals: Sequence[Goal], where: Where, region: str) -> tuple[Measured, ...]:
    found = []
    for goal in goals:
        try:
            what = asked(goal)
        except NotMeasured:
            continue  # 'slo validate' says why
        if what.indicator.where is where and what.region in ("", region):
            found += [Measured(goal, number, level, what) for number, level in enumerate(goal.levels, 1)]
    return tuple(found[:MAX_OBJECTIVES])


def decide_objectives(
    here: Sequence[Measured], keys: Keys, state: RegionState | GlobalState, places: Sequence[str], now: Now,
    complete: bool,
) -> tuple[Decision, ...]:  # fmt: skip
    """``places``: who is to be told. ``complete``: these are all objectives that there are, so what is about others is
    over."""
    at_ms = now.ledger_ms // MINUTE_MS * MINUTE_MS
    hours: dict[tuple[str, int], list[Hour]] = {}
    for held in state.slo_hours.values():
        hours.setdefault((held.record.slo, held.record.objective), []).append(held)
    decisions: list[Decision] = []
    for one in here:
        own = hours.pop((one.goal.name, one.number), [])
        tick, series = _tick(one, keys, state, own, at_ms)
        decisions += [tick] if tick else []
        decisions += _alerts(one, keys, state.slo_alerts, series, places, at_ms)
    if complete:
        known = {(one.goal.name, one.number) for one in here}
        forgotten = [held for left in hours.values() for held in left][:MOST_DELETES]
        if forgotten:
            deletes = tuple(Delete(_hour_key(keys, held.record), held.revision) for held in forgotten)
            decisions.append(
                Decision("slo.measure", f"{len(deletes)} hours of objectives that are no more", deletes, audit=False)
            )
        for alert in state.slo_alerts.values():
            if (alert.record.slo, alert.record.objective) not in known:
                decisions += _moved(keys, alert, False, 0, places, at_ms)
    return tuple(decisions)


# -- measuring --------------------------------------------------------------------------------------------------------


def _tick(
    one: Measured, keys: Keys, state: RegionState | GlobalState, own: list[Hour], at_ms: int
) -> tuple[Decision | None, Errors]:
    """The minute that has ended, if it is not there yet; and the errors with it."""
    own = sorted(own, key=lambda held: held.record.hour)
    kept_ms = max(period_of(one.goal), longest_ms(one.goal)) + HOUR_MS
    recent_ms = at_ms - longest_ms(one.goal) - max(HOUR_MS, one.level.slice_ms)
    recent = [held.record for held in own if (held.record.hour + 1) * HOUR_MS >= recent_ms]
    minutes = minutes_of(recent)
    last_ms = minutes[-1].at_ms if minutes else 0
    draft = Draft()
    if last_ms < at_ms:
        after_ms = max(last_ms, at_ms - BACK_MS) if last_ms else at_ms - MINUTE_MS
        share = _share(one, state, after_ms - LATE_MS, at_ms - LATE_MS, at_ms)
        if share is not None:
            hour, minute = divmod(at_ms, HOUR_MS)
            newest = own[-1] if own and own[-1].record.hour == hour else None
            old = newest.record if newest else SloHourRecord(one.goal.name, one.number, hour, (), (), ())
            record = replace(
                old, minutes=(*old.minutes, minute // MINUTE_MS), good=(*old.good, share[0]),
                total=(*old.total, share[1]),
            )  # fmt: skip
            draft.put(_hour_key(keys, record), record, newest)
            recent = [one for one in recent if one.hour != hour] + [record]
            minutes = minutes_of(recent)
    for held in own[:MOST_DELETES]:
        if (held.record.hour + 1) * HOUR_MS < at_ms - kept_ms:
            draft.delete(_hour_key(keys, held.record), held)
    series = errors_of(minutes, one.level, one.goal.method)
    if not draft.puts:
        return None, series
    subject = f"slo/{one.goal.name}"
    return Decision("slo.measure", f"measured {one.goal.name}", draft.writes(), subject=subject, audit=False), series


def _hour_key(keys: Keys, record: SloHourRecord) -> str:
    return keys.slo_hour(record.slo, record.objective, record.hour)


def _share(
    one: Measured, state: RegionState | GlobalState, after_ms: int, until_ms: int, now_ms: int
) -> tuple[int, int] | None:
    edge = one.level.edge
    if one.asked.indicator.share:
        share = (
            indicators.share_in_region(one.asked, state)
            if isinstance(state, RegionState)
            else indicators.share_in_world(one.asked, state, now_ms)
        )
        if share is None:
            return None
        if edge is not None:
            return (int(satisfies(Fraction(*share), edge)), 1)
        return (share[1] - share[0], share[1]) if one.asked.failure else share
    read: Callable[..., list[Fraction | None]] = (
        indicators.values_in_region if isinstance(state, RegionState) else indicators.values_in_world
    )
    values = read(one.asked, state, after_ms, until_ms)
    assert edge is not None, "checked by builtin.asked"
    if not values:
        return None
    return (sum(1 for value in values if value is not None and satisfies(value, edge)), len(values))


# -- alerts -----------------------------------------------------------------------------------------------------------


def _alerts(
    one: Measured, keys: Keys, alerts: Mapping[str, Held], series: Errors, places: Sequence[str], at_ms: int
) -> Iterator[Decision]:
    prefix, names = f"{one.goal.name}/{one.number}/", set()
    for condition in conditions(one.goal, one.level):
        names.add(condition.name)
        held = alerts.get(prefix + condition.name)
        holds = condition.holds(series, at_ms)
        if held is not None:
            yield from _moved(keys, held, holds, condition.after_ms, places, at_ms)
        elif holds:
            yield _begun(one, keys, condition, at_ms)
    for name, held in alerts.items():
        if name.startswith(prefix) and name.removeprefix(prefix) not in names:
            yield from _moved(keys, held, False, 0, places, at_ms)


def _begun(one: Measured, keys: Keys, condition: Condition, at_ms: int) -> Decision:
    fires = condition.after_ms == 0
    region = {"region": str(keys.region)} if isinstance(keys, RegionKeys) else {}
    labels = tuple(Label(key, value) for key, value in {**condition.labels, **region}.items())
    record = SloAlertRecord(
        one.goal.name, one.number, condition.name, condition.alert, labels, condition.summary, fires, at_ms,
        at_ms if fires else 0, 0,
    )  # fmt: skip
    return _written(keys, record, None, "fires" if fires else "is about to fire")


def _moved(keys: Keys, held: Held, holds: bool, after_ms: int, places: Sequence[str], at_ms: int) -> Iterator[Decision]:
    """What becomes of an alert that there is."""
    old = held.record
    if holds and not old.firing:
        pending_ms = old.pending_ms or at_ms
        if at_ms - pending_ms >= after_ms:
            fired = replace(old, firing=True, pending_ms=pending_ms, since_ms=at_ms, ended_ms=0, told=())
            yield _written(keys, fired, held, "fires")
        elif pending_ms != old.pending_ms:
            yield _written(keys, replace(old, pending_ms=pending_ms), held, "is about to fire")
    elif not holds and old.firing:
        yield _written(keys, replace(old, firing=False, pending_ms=0, ended_ms=at_ms, told=()), held, "has ended")
    elif not holds and not old.firing:
        if not old.ended_ms or set(places) <= set(old.told):
            key = keys.slo_alert(old.slo, old.objective, old.name)
            yield Decision("slo.alert", f"{old.name} of {old.slo} is over", (Delete(key, held.revision),), audit=False)
        elif old.pending_ms:
            yield _written(keys, replace(old, pending_ms=0), held, "does not fire again")


def _written(keys: Keys, record: SloAlertRecord, held: Held | None, what: str) -> Decision:
    key = keys.slo_alert(record.slo, record.objective, record.name)
    write = Put(key, record, held.revision if held else ABSENT)
    sentence = f"alert {record.name} of objective {record.objective} of {record.slo} {what}: {record.summary}"
    audit = record.firing or what == "has ended"
    return Decision("slo.alert", sentence, (write,), subject=f"slo/{record.slo}", audit=audit)


def told(keys: Keys, held: Held, places: Sequence[str]) -> Decision:
    """These places know of the alert as it is."""
    record = replace(held.record, told=tuple(dict.fromkeys((*held.record.told, *places))))
    key = keys.slo_alert(record.slo, record.objective, record.name)
    return Decision(
        "slo.told", f"told of {record.name} of {record.slo}", (Put(key, record, held.revision),), audit=False
    )
