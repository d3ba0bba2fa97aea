"""Cordons: reasons, each with an owner and an expiry, why nothing new is placed on a node or device. Pure.

Nobody removes another's reason. Every cordon counts in the budgets and is never refused by them.
"""

from __future__ import annotations

from dataclasses import replace

from controlplane.domain import health
from controlplane.domain.budget import Book
from controlplane.domain.evidence import is_level
from controlplane.domain.health import MACHINE
from controlplane.domain.scopes import devices_of
from controlplane.domain.words import duration, listed
from gridkeeper.decision import Decision, Draft, Now, Versioned, guards_of
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.care import RepairState
from gridkeeper.records.faults import HoldKind
from gridkeeper.records.fleet import CordonReason, CordonRecord, HealthState
from gridkeeper.snapshot import RegionState, Settings

MAX_DEVICES = 30
"""Devices that one uncordon returns at once: each is a health record and its findings in the same transaction."""
MAX_FINDINGS = 40

RETURNABLE = frozenset({HealthState.DRAINED, HealthState.REPAIRING})


class UnknownTarget(ValueError):
    """The target is no node or device of this region; the message names it."""


def _checked(state: RegionState, target: str) -> tuple[DeviceId, ...]:
    if "/" in target:
        if DeviceId(target) not in state.devices:
            raise UnknownTarget(f"target: {target!r} is no device of region {state.region}; name it <node>/<slot>")
    elif NodeId(target) not in state.nodes:
        raise UnknownTarget(f"target: {target!r} is no node of region {state.region}")
    return devices_of(state, target)


def _reference(target: str) -> str:
    return f"device/{target}" if "/" in target else f"node/{target}"


def cordon(
    state: RegionState,
    settings: Settings,
    target: str,
    owner: str,
    reason: str,
    now: Now,
    ttl_ms: int = 0,
    trace: str = "",
) -> Decision:
    """Add the owner's reason, or replace it. ``ttl_ms`` 0: it never expires. Raises ``UnknownTarget``."""
    _checked(state, target)
    keys, draft = RegionKeys(state.region), Draft()
    expires = now.ledger_ms + ttl_ms if ttl_ms else 0
    added = CordonReason(owner, reason, now.ledger_ms, expires)
    add_reason(state, Book.of(state, settings, now), target, added, draft)
    inventory = [(keys.device(DeviceId(target)), state.devices[DeviceId(target)])] if "/" in target else []
    until = f" for {duration(ttl_ms)}" if ttl_ms else ""
    sentence = f"{target} cordoned by {owner}{until}: {reason}"
    return Decision("cordon", sentence, draft.writes(), guards_of(inventory), _reference(target), (owner,), trace)


def add_reason(state: RegionState, book: Book, target: str, reason: CordonReason, draft: Draft) -> None:
    """Add the reason, in place of one of the same owner, and hold its devices in the budgets."""
    old = state.cordons.get(target)
    others = tuple(r for r in old.record.reasons if r.owner != reason.owner) if old else ()
    draft.put(RegionKeys(state.region).cordon(target), CordonRecord(target, (*others, reason)), old)
    for device in devices_of(state, target):
        book.hold(device, HoldKind.CORDON, reason.owner, draft)


def uncordon(
    state: RegionState, settings: Settings, target: str, owner: str, reason: str, now: Now, trace: str = ""
) -> Decision | None:
    """Take away the owner's reason, and return drained devices to service by way of probation: the device itself if
    ``target`` is one; of a node, those that a human had drained. None: there is nothing to do. Raises
    ``UnknownTarget``."""
    devices, keys, draft = _checked(state, target), RegionKeys(state.region), Draft()
    old, book, done = state.cordons.get(target), Book.of(state, settings, now), []
    if old is not None and any(r.owner == owner for r in old.record.reasons):
        drop_reasons(state, book, old, frozenset({owner}), draft)
        left = [r.owner for r in old.record.reasons if r.owner != owner]
        done.append(f"{target} uncordoned by {owner}" + (f" (still cordoned by {listed(left)})" if left else ""))
    returned = [d for d in devices if _returnable(state, d, human_only="/" not in target)][:MAX_DEVICES]
    budget = MAX_FINDINGS
    for device in returned:
        held = state.health[device]
        why = f"returned by {owner}: {reason}"
        back = health.moved(held.record, HealthState.PROBATION, why, now.ledger_ms)
        draft.put(keys.health(device), replace(back, evidence=()), held)
        for name, finding in sorted(state.findings.items()):
            record = finding.record
            if record.device == device and record.active and not is_level(record) and budget:
                draft.put(keys.finding(name), replace(record, active=False), finding)
                budget -= 1
    if returned:
        done.append(f"{listed([str(d) for d in returned])} on probation, returned by {owner}")
    if not done:
        return None
    sentence = f"{'; '.join(done)}: {reason}"
    return Decision("uncordon", sentence, draft.writes(), (), _reference(target), (owner,), trace)


def _returnable(state: RegionState, device: DeviceId, human_only: bool) -> bool:
    """What was drained for a maintenance or a reboot is given back at its end (``borrowed.py``)."""
    held = state.health.get(device)
    if held is None or held.record.state not in RETURNABLE or _being_repaired(state, device):
        return False
    drain = state.drains.get(held.record.drain)
    if drain is not None and drain.record.maintenance:
        return False
    return not human_only or drain is None or drain.record.requested_by != MACHINE


def _being_repaired(state: RegionState, device: DeviceId) -> bool:
    """A repair is under way on it or on its node: nothing may be placed there until it is over."""
    running = (r.record for r in state.repairs.values() if r.record.state is RepairState.RUNNING)
    return any((repair.device or repair.node) in (device, device.partition("/")[0]) for repair in running)


def drop_reasons(
    state: RegionState, book: Book, old: Versioned[CordonRecord], owners: frozenset[str], draft: Draft
) -> None:
    """Remove the reasons of ``owners``; their holds go unless the same owner cordons the device by another target."""
    keys = RegionKeys(state.region)
    target = old.record.target
    left = tuple(r for r in old.record.reasons if r.owner not in owners)
    if left:
        draft.put(keys.cordon(target), replace(old.record, reasons=left), old)
    else:
        draft.delete(keys.cordon(target), old)
    for device in devices_of(state, target):
        other = state.cordons.get(state.devices[device].record.node if "/" in target else device)
        still = {r.owner for r in other.record.reasons} if other else set()
        for owner in owners - still:
            book.release(device, draft, owner, HoldKind.CORDON)


def decide_expiry(state: RegionState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """Cordons whose time is up. One decision: they share the budget records."""
    due: list[tuple[Versioned[CordonRecord], frozenset[str]]] = []
    for _, old in sorted(state.cordons.items()):
        owners = frozenset(r.owner for r in old.record.reasons if 0 < r.expires_ms <= now.ledger_ms)
        if owners:
            due.append((old, owners))
    if not due:
        return ()
    book, draft, told = Book.of(state, settings, now), Draft(), list[str]()
    for old, owners in due:
        if len(draft.puts) < MAX_FINDINGS:
            drop_reasons(state, book, old, owners, draft)
            told.append(f"{old.record.target} (by {', '.join(sorted(owners))})")
    sentence = f"cordons have expired: {listed(told)}"
    return (Decision("cordon.expire", sentence, draft.writes(), subject=f"region/{state.region}"),)
