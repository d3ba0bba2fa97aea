"""Devices that were drained for something that ends by itself, a window of maintenance or the reboot of their node, and
how they are given back when it is over. Pure.

Drains under way are cancelled, drained devices go on probation. One that faults call out by now becomes the machine's,
one that another window covers becomes that window's. Each is one transaction of its own, derived from what is left:
dying between any two loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from controlplane.domain import health
from controlplane.domain.drain_progress import OPEN, UNDER_WAY, Drain, cancellation
from controlplane.domain.evidence import bearing_on, by_subject, calls_out, worst
from controlplane.domain.health import MACHINE
from controlplane.domain.maintenance import OVER, covers
from gridkeeper.decision import Decision, Draft, Guard, Now
from gridkeeper.keys import RegionKeys
from gridkeeper.records.care import RepairState
from gridkeeper.records.faults import DrainState
from gridkeeper.records.fleet import HealthState
from gridkeeper.snapshot import RegionState, Settings

GOING_ON = frozenset({RepairState.PROPOSED, RepairState.APPROVED, RepairState.RUNNING})


def decide_returns(state: RegionState, settings: Settings, now: Now) -> Iterator[Decision]:
    """One decision per device or request whose cause is over."""
    keys = RegionKeys(state.region)
    for device, request in sorted(state.drain_requests.items()):
        window = request.record.maintenance
        if window and not _stands(state, keys, window):
            draft = Draft()
            draft.delete(keys.drain_request(device), request)
            sentence = f"the wish to drain {device} is void: {window} is over"
            yield Decision("drain.cancel", sentence, draft.writes(), (), f"device/{device}", (), request.record.trace)
    for drain in state.memo.once(_borrowing, state.drains):
        record = drain.record
        if _stands(state, keys, record.maintenance):
            continue
        if record.state in OPEN | UNDER_WAY:
            decision = _passed_on(state, keys, drain, now)
            why = f"{record.maintenance} is over"
            yield decision or cancellation(state, settings, drain, MACHINE, why, now)
        elif record.state is DrainState.DRAINED:
            held = state.health.get(record.device)
            if held is not None and held.record.drain == record.id and held.record.state is HealthState.DRAINED:
                yield _passed_on(state, keys, drain, now) or _returned(state, keys, drain, now)


def _borrowing(drains: Mapping[str, Drain]) -> tuple[Drain, ...]:
    """Drains for something that ends by itself and that are not over, by id."""
    alive = OPEN | UNDER_WAY | {DrainState.DRAINED}
    return tuple(d for _, d in sorted(drains.items()) if d.record.maintenance and d.record.state in alive)


def _stands(state: RegionState, keys: RegionKeys, name: str) -> bool:
    """The window or the repair is not over; one that does not decode may not be."""
    if not state.suspect_keys.isdisjoint((keys.maintenance(name), keys.repair(name))):
        return True
    window, repair = state.maintenance.get(name), state.repairs.get(name)
    if window is not None:
        return window.record.state not in OVER
    return repair is not None and repair.record.state in GOING_ON


def _passed_on(state: RegionState, keys: RegionKeys, drain: Drain, now: Now) -> Decision | None:
    """Somebody else wants the device out by now: the drain becomes theirs. None: nobody does."""
    record, draft = drain.record, Draft()
    other = next(
        (
            w.record
            for _, w in sorted(state.maintenance.items())
            if w.record.state not in OVER
            and covers(w.record, record.device)
            and now.ledger_ms >= w.record.from_ms - w.record.lead_ms
        ),
        None,
    )
    if other is not None:
        changed, to = replace(record, maintenance=other.id), f"maintenance {other.id}"
    else:
        found = bearing_on(state.memo.once(by_subject, state.findings), record.device)
        calling = [f.record for f in found if f.record.active and calls_out(f.record)]
        main = worst(calling)
        if main is None:
            return None
        evidence = tuple(dict.fromkeys((*record.evidence, *sorted(f.id for f in calling))))[:16]
        why = f"{record.reason}; it stays out for {main.sentence}"
        changed = replace(record, maintenance="", requested_by=MACHINE, evidence=evidence, reason=why)
        to = f"finding {main.id}"
    draft.put(keys.drain(record.id), changed, drain)
    sentence = f"drain {record.id} outlasts {record.maintenance}: it stands for {to} now"
    return Decision(
        "drain.plan", sentence, draft.writes(), (), f"drain/{record.id}", changed.evidence, record.trace
    )  # fmt: skip


def _returned(state: RegionState, keys: RegionKeys, drain: Drain, now: Now) -> Decision:
    record, draft, held = drain.record, Draft(), state.health[drain.record.device]
    why = f"{record.maintenance} is over, and nothing else keeps it out"
    back = replace(health.moved(held.record, HealthState.PROBATION, why, now.ledger_ms), evidence=())
    draft.put(keys.health(record.device), back, held)
    sentence = f"{record.device} is on probation: {why}"
    guards = (Guard(keys.drain(record.id), drain.revision),)
    return Decision("health.step", sentence, draft.writes(), guards, f"device/{record.device}", (), record.trace)
