"""Maintenance that is announced: drained ahead of its window, cordoned and excluded within it, over by itself. Pure.

    planned → active (cordoned) → ended          or cancelled before it began

- From ``lead_ms`` before the window on, each device of the target is asked for with the mode ``deadline``: jobs may end
  by themselves until the window begins. The budgets hold as for anybody; a human who cancels such a drain is not asked
  again.
- The cordon belongs to the window (owner ``maintenance/<id>``), so that neither a human's uncordon nor another window
  ends it. It begins and ends in one transaction with the window's state.
- The ledger excludes exactly [from, until), by the record (``uptime.through``), whoever led meanwhile.
- When the window is over, what only it had taken out is given back (``borrowed.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from controlplane.domain.budget import Book
from controlplane.domain.cordon import add_reason, drop_reasons
from controlplane.domain.drain_progress import UNDER_WAY
from controlplane.domain.health import OUT
from controlplane.domain.repair_index import drains_of
from controlplane.domain.scopes import devices_of
from controlplane.domain.words import duration, listed, made_id, moment
from gridkeeper.decision import Decision, Draft, Guard, Now, Versioned
from gridkeeper.ids import DeviceId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.care import MaintenanceRecord, MaintenanceState
from gridkeeper.records.faults import DrainMode, DrainRequestRecord
from gridkeeper.records.fleet import CordonReason, HealthState
from gridkeeper.snapshot import RegionState, Settings

OVER = frozenset({MaintenanceState.ENDED, MaintenanceState.CANCELLED})
KEPT_MS = 100 * 86_400_000
"""How long a window that is over stays to be looked at; the audit trail keeps it for ever."""

MAX_REQUESTS = 60

WINDOW = "maintenance/"
"""How the owners of windows' cordons begin."""

Window = Versioned[MaintenanceRecord]


class BadWindow(ValueError):
    """The window cannot be announced, changed or cancelled; the message names the field, the value and the remedy."""


def owner_of(record: MaintenanceRecord) -> str:
    """Of the cordon that stands within the window."""
    return f"{WINDOW}{record.id}"


def covers(record: MaintenanceRecord, device: DeviceId) -> bool:
    """Whether the window is about this device, by itself or by its node."""
    return record.target in (device, device.partition("/")[0])


# -- what humans do ---------------------------------------------------------------------------------------------------


def announce(
    state: RegionState, target: str, span: tuple[int, int], lead_ms: int, actor: str, reason: str, now: Now, trace: str
) -> Decision:
    """A new window over [from, until), ms of wall time. Raises ``BadWindow``; the target is known to exist."""
    from_ms, until_ms = span
    if from_ms <= now.ledger_ms:
        raise BadWindow(
            f"from_ms: {moment(from_ms)} is not in the future; a window is announced before it begins "
            "('gridkeeper cordon --maintenance' begins one now)"
        )
    if until_ms <= from_ms:
        raise BadWindow(f"until_ms: {moment(until_ms)} is not after its begin, {moment(from_ms)}")
    _no_overlap(state, target, from_ms, until_ms, "")
    record = MaintenanceRecord(
        id=made_id(target, "maintenance", state.revision),
        region=state.region,
        target=target,
        from_ms=from_ms,
        until_ms=until_ms,
        lead_ms=lead_ms,
        announced_by=actor,
        announced_ms=now.ledger_ms,
        reason=reason,
        state=MaintenanceState.PLANNED,
        trace=trace,
    )
    draft = Draft()
    draft.put(RegionKeys(state.region).maintenance(record.id), record, None)
    begin = f"its drain begins {duration(lead_ms)} before" if lead_ms else "its drain begins with it"
    sentence = (
        f"maintenance {record.id} of {target} is announced by {actor} from {moment(from_ms)} until {moment(until_ms)}, "
        f"{begin}: {reason}"
    )
    return Decision("maintenance.plan", sentence, draft.writes(), (), f"maintenance/{record.id}", (actor,), trace)


def move_end(state: RegionState, window: Window, until_ms: int, actor: str, now: Now) -> Decision:
    """Another end of a window that is not over: later or earlier, and yet to come. Raises ``BadWindow``."""
    record = window.record
    if record.state in OVER or record.until_ms <= now.ledger_ms:
        raise BadWindow(f"id: maintenance {record.id} is over; announce a new one")
    if until_ms <= max(now.ledger_ms, record.from_ms):
        raise BadWindow(f"until_ms: {moment(until_ms)} is past or before its begin; cancel it instead")
    _no_overlap(state, record.target, record.from_ms, until_ms, record.id)
    draft = Draft()
    draft.put(RegionKeys(state.region).maintenance(record.id), replace(record, until_ms=until_ms), window)
    sentence = f"maintenance {record.id} of {record.target} ends at {moment(until_ms)} instead, says {actor}"
    return Decision(
        "maintenance.plan", sentence, draft.writes(), (), f"maintenance/{record.id}", (actor,), record.trace
    )


def call_off(state: RegionState, settings: Settings, window: Window, actor: str, reason: str, now: Now) -> Decision:
    """End it now: cancelled if it has not begun, else ended, and the time so far stays excluded. Raises
    ``BadWindow``."""
    if window.record.state in OVER:
        raise BadWindow(f"name: maintenance {window.record.id} is {window.record.state.value} already")
    return _end(state, settings, window, now, f"called off by {actor}: {reason}")


def _no_overlap(state: RegionState, target: str, from_ms: int, until_ms: int, own: str) -> None:
    for name, other in sorted(state.maintenance.items()):
        record = other.record
        if name == own or record.target != target or record.state in OVER:
            continue
        if from_ms < record.until_ms and record.from_ms < until_ms:
            raise BadWindow(
                f"from_ms: {target} has maintenance {name} from {moment(record.from_ms)} until "
                f"{moment(record.until_ms)}; extend or cancel that one"
            )


# -- what time does ---------------------------------------------------------------------------------------------------


def decide_maintenance(state: RegionState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """Begin, ask for drains, and end."""
    decisions: list[Decision] = []
    for _, window in sorted(state.maintenance.items()):
        record = window.record
        if record.state in OVER:
            if now.ledger_ms - record.until_ms >= KEPT_MS:
                decisions.append(_forgotten(state, window))
        elif now.ledger_ms >= record.until_ms:
            decisions.append(_end(state, settings, window, now, "its time is over"))
        else:
            if record.state is MaintenanceState.PLANNED and now.ledger_ms >= record.from_ms:
                decisions.append(_begin(state, settings, window, now))
            if now.ledger_ms >= record.from_ms - record.lead_ms:
                decisions.extend(_requests(state, window, now))
    return tuple(decisions)


def _begin(state: RegionState, settings: Settings, window: Window, now: Now) -> Decision:
    record, draft = window.record, Draft()
    draft.put(RegionKeys(state.region).maintenance(record.id), replace(record, state=MaintenanceState.ACTIVE), window)
    why = f"{record.reason} (announced by {record.announced_by}, until {moment(record.until_ms)})"
    reason = CordonReason(owner_of(record), why, record.from_ms, 0)
    add_reason(state, Book.of(state, settings, now), record.target, reason, draft)
    sentence = f"maintenance {record.id} begins: {record.target} is cordoned until {moment(record.until_ms)}: {why}"
    return Decision(
        "maintenance.begin", sentence, draft.writes(), (), f"maintenance/{record.id}", (owner_of(record),), record.trace
    )


def _end(state: RegionState, settings: Settings, window: Window, now: Now, why: str) -> Decision:
    record, draft = window.record, Draft()
    begun = now.ledger_ms >= record.from_ms
    to = MaintenanceState.ENDED if begun else MaintenanceState.CANCELLED
    ended = replace(record, state=to, until_ms=min(record.until_ms, now.ledger_ms) if begun else record.until_ms)
    draft.put(RegionKeys(state.region).maintenance(record.id), ended, window)
    cordon = state.cordons.get(record.target)
    if cordon is not None:
        drop_reasons(state, Book.of(state, settings, now), cordon, frozenset({owner_of(record)}), draft)
    sentence = f"maintenance {record.id} of {record.target} is {to.value}: {why}"
    return Decision(
        f"maintenance.{'end' if begun else 'cancel'}", sentence, draft.writes(), (), f"maintenance/{record.id}", (),
        record.trace,
    )  # fmt: skip


def _forgotten(state: RegionState, window: Window) -> Decision:
    draft = Draft()
    draft.delete(RegionKeys(state.region).maintenance(window.record.id), window)
    sentence = f"maintenance {window.record.id} has been over for {duration(KEPT_MS)} and is in the audit trail alone"
    return Decision(
        "maintenance.end", sentence, draft.writes(), (), f"maintenance/{window.record.id}", audit=False
    )  # fmt: skip


def _requests(state: RegionState, window: Window, now: Now) -> Iterator[Decision]:
    """Ask for each device of the target that is in service, once: a drain of this window that was called off is not
    asked for again."""
    record, keys, draft = window.record, RegionKeys(state.region), Draft()
    wait_ms = max(0, record.from_ms - now.ledger_ms)
    wanted: list[str] = []
    for device in devices_of(state, record.target):
        held = state.health.get(device)
        if held is None or held.record.state in OUT - {HealthState.PROBATION}:
            continue
        if any(d.record.maintenance == record.id or d.record.state in UNDER_WAY for d in drains_of(state, device)):
            continue
        if device in state.drain_requests or keys.drain_request(device) in state.suspect_keys:
            continue
        reason = f"maintenance {record.id}: {record.reason}"
        request = DrainRequestRecord(
            device, record.announced_by, reason, now.ledger_ms, record.trace, DrainMode.DEADLINE, wait_ms,
            maintenance=record.id,
        )  # fmt: skip
        draft.put(keys.drain_request(device), request, None)
        wanted.append(device)
        if len(wanted) == MAX_REQUESTS:
            break
    if wanted:
        guard = Guard(keys.maintenance(record.id), window.revision)
        sentence = f"{listed(wanted)} asked for by maintenance {record.id}, jobs may end until {moment(record.from_ms)}"
        yield Decision(
            "drain.request", sentence, draft.writes(), (guard,), f"maintenance/{record.id}", (record.announced_by,),
            record.trace,
        )  # fmt: skip
