"""Never too much: how many devices may be out of service at once, and who holds the places. Pure.

A budget covers the region, a rack or a vendor. Its ``BudgetRecord`` is the serialisation point: every drain and every
cordon rewrites the records of all budgets that cover its device, in its own transaction, so two planners can never
both take the last place.

- ``limit = max(minimum, floor(fraction × durable inventory))``; an inventory of 0 devices, or a record that does not
  decode, is unknown, and unknown means no.
- A device counts once, however often it is held, and also when its health says that it is out without any hold. One
  that a human cordoned may be drained when cordons fill the budget, as long as drains alone stay within it.
- Hosts (vendor ``host``) are no accelerators: only their own vendor's budget covers them.
- A cordon by a human always succeeds, and counts. A drain's hold lasts until its device is back in service.
- Silent nodes do not count: nobody took them out. Against too much silence stands the freeze (``liveness.in_doubt``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from controlplane.domain.health import IN_SERVICE, OUT
from gridkeeper.decision import Decision, Draft, Now, Versioned
from gridkeeper.ids import DeviceId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.records.faults import BudgetHold, BudgetRecord, DrainState, HoldKind
from gridkeeper.records.fleet import DeviceRecord
from gridkeeper.snapshot import RegionState, Settings

HOST_VENDOR = "host"
HOLDING = frozenset({DrainState.ADMITTED, DrainState.EVACUATING, DrainState.DRAINED, DrainState.EXPIRED})
MAX_RECONCILED = 60


def limit_of(policy: BudgetPolicy, total: int) -> int:
    """Devices that may be out at once, of ``total``."""
    if total <= 0:
        return 0
    return max(policy.minimum, int(Fraction(str(policy.fraction)) * total))


def names_covering(device: DeviceRecord, policies: Iterable[BudgetPolicy]) -> dict[str, BudgetPolicy]:
    """Names of the budgets that cover a device, in the order of the policy."""
    found: dict[str, BudgetPolicy] = {}
    for policy in policies:
        if policy.kind == "vendor":
            found[f"vendor-{_safe(device.vendor)}"] = policy
        elif device.vendor != HOST_VENDOR:
            found["region" if policy.kind == "region" else f"rack-{_safe(device.rack)}"] = policy
    return found


def _safe(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()) or "unknown"


@dataclass(frozen=True, slots=True)
class Refusal:
    """``names``: the budgets that are full. ``sentence``: who holds them."""

    names: tuple[str, ...]
    sentence: str


@dataclass(slots=True)
class Line:
    """One budget while a decision is being made. ``limit`` None: unknown, which means no."""

    name: str
    old: Versioned[BudgetRecord] | None
    holds: tuple[BudgetHold, ...]
    total: int = 0
    limit: int | None = 0

    def record(self) -> BudgetRecord:
        return BudgetRecord(self.name, self.holds, self.limit or 0, self.total)


class Book:
    """All budgets of a region as they are after what was reserved and released on this book so far."""

    def __init__(self, state: RegionState, settings: Settings) -> None:
        self._state = state
        self._keys = RegionKeys(state.region)
        self._policies = settings.policy.budgets
        self.lines: dict[str, Line] = {
            name: Line(name, old, old.record.holds) for name, old in sorted(state.budgets.items())
        }
        totals: Counter[str] = Counter()
        policies: dict[str, BudgetPolicy] = {}
        self._covering: dict[DeviceId, tuple[str, ...]] = {}
        out: dict[str, set[DeviceId]] = {}
        known: dict[tuple[str, str], dict[str, BudgetPolicy]] = {}  # thousands of devices share vendor and rack
        for device in state.devices.values():
            place = (device.record.vendor, device.record.rack)
            if place not in known:
                known[place] = names_covering(device.record, self._policies)
            covering = known[place]
            self._covering[device.record.id] = tuple(covering)
            for name in covering:
                totals[name] += 1
            health = state.health.get(device.record.id)
            if health and health.record.state in OUT:
                for name in covering:
                    out.setdefault(name, set()).add(device.record.id)
        self._out = out
        for covering in known.values():
            policies.update(covering)
        for name, policy in policies.items():
            line = self.lines.setdefault(name, Line(name, None, ()))
            line.total = totals[name]
            unknown = self._keys.budget(name) in state.suspect_keys
            line.limit = None if unknown else limit_of(policy, totals[name])

    @classmethod
    def of(cls, state: RegionState, settings: Settings) -> Book:
        return cls(state, settings)

    def covering(self, device: DeviceId) -> tuple[str, ...]:
        """Names of the budgets that cover a device of the inventory; none for another one."""
        return self._covering.get(device, ())

    def used(self, name: str) -> frozenset[DeviceId]:
        """Devices that are out of service in this budget."""
        return frozenset({hold.device for hold in self.lines[name].holds} | self._out.get(name, set()))

    def drained(self, name: str) -> frozenset[DeviceId]:
        """Those of them that drains took out, whether or not they are cordoned too."""
        held = {hold.device for hold in self.lines[name].holds if hold.kind is HoldKind.DRAIN}
        return frozenset(held | self._out.get(name, set()))

    def usage(self, device: DeviceId) -> str:
        """``region 1/4, rack-a 1/4``."""
        shown = (f"{name} {len(self.used(name))}/{self.lines[name].limit or 0}" for name in self.covering(device))
        return ", ".join(shown) or "none"

    def refusal(self, device: DeviceId) -> Refusal | None:
        """Why the device may not be drained now; None: it may."""
        covering = self.covering(device)
        if device not in self._covering:
            return Refusal((), f"{device} is not in the inventory, so no budget is known for it")
        full = [name for name in covering if not self._has_room(name, device)]
        if not full:
            return None
        return Refusal(tuple(full), "; ".join(self._why_full(name) for name in full))

    def _has_room(self, name: str, device: DeviceId) -> bool:
        """A device that is cordoned already takes no further place; but drains alone never exceed the limit either, so
        that a cordon is no way around it."""
        limit, used = self.lines[name].limit, self.used(name)
        if limit is None:
            return False
        return len(used | {device}) <= limit or (device in used and len(self.drained(name) | {device}) <= limit)

    def _why_full(self, name: str) -> str:
        line, used = self.lines[name], sorted(self.used(name))
        if line.limit is None:
            return f"budget {name} does not decode, so what it allows is unknown"
        holders = ", ".join(used[:6]) + (f" and {len(used) - 6} more" if len(used) > 6 else "")
        return f"budget {name} is full: {len(used)} of {line.limit} out ({holders or 'nobody'})"

    def hold(self, device: DeviceId, kind: HoldKind, ref: str, draft: Draft) -> tuple[str, ...]:
        """Hold a place for ``device`` in every budget that covers it; the names. Does not ask whether there is room."""
        wanted = BudgetHold(device, kind, ref)
        covering = self.covering(device)
        for name in covering:
            line = self.lines[name]
            if wanted not in line.holds and line.limit is not None:
                line.holds = tuple(sorted((*line.holds, wanted), key=_hold_order))
            self._write(line, draft)
        return covering

    def release(self, device: DeviceId, draft: Draft, ref: str = "", kind: HoldKind = HoldKind.DRAIN) -> None:
        """Give up the device's places of that kind (only those held for ``ref``, unless "")."""
        for line in self.lines.values():
            kept = tuple(
                hold
                for hold in line.holds
                if hold.device != device or hold.kind is not kind or (ref != "" and hold.ref != ref)
            )
            if kept != line.holds:
                line.holds = kept
                self._write(line, draft)
        for out in self._out.values():
            out.discard(device)

    def _write(self, line: Line, draft: Draft) -> None:
        if line.limit is not None:
            draft.put(self._keys.budget(line.name), line.record(), line.old)


def _hold_order(hold: BudgetHold) -> tuple[str, str, str]:
    return hold.device, hold.kind.value, hold.ref


def wanted_holds(state: RegionState) -> set[BudgetHold]:
    """What must be held, as cordons, drains and health records say."""
    wanted: set[BudgetHold] = set()
    for target, cordon in state.cordons.items():
        for device in devices_of(state, target):
            wanted.update(BudgetHold(device, HoldKind.CORDON, reason.owner) for reason in cordon.record.reasons)
    for drain in state.drains.values():
        record = drain.record
        if record.state not in HOLDING or record.device not in state.devices:
            continue
        health = state.health.get(record.device)
        over = record.state in (DrainState.DRAINED, DrainState.EXPIRED)
        if over and (health is None or health.record.drain != record.id or health.record.state in IN_SERVICE):
            continue
        wanted.add(BudgetHold(record.device, HoldKind.DRAIN, record.id))
    return wanted


def devices_of(state: RegionState, target: str) -> tuple[DeviceId, ...]:
    """The devices that a cordon's target (a node or a device) covers, sorted."""
    if "/" in target:
        device = DeviceId(target)
        return (device,) if device in state.devices else ()
    return tuple(sorted(name for name, device in state.devices.items() if device.record.node == target))


def _keeps(state: RegionState, keys: RegionKeys, hold: BudgetHold) -> bool:
    """A hold whose drain or cordon cannot be read stays: nobody knows that it is over."""
    ref = keys.drain(hold.ref) if hold.kind is HoldKind.DRAIN else keys.cordon(hold.device)
    node = keys.cordon(hold.device.partition("/")[0])
    unread = ref in state.suspect_keys or (hold.kind is HoldKind.CORDON and node in state.suspect_keys)
    return unread or keys.health(hold.device) in state.suspect_keys


def decide_budgets(state: RegionState, settings: Settings, now: Now) -> Decision | None:
    """Bring the budget records in line with inventory, policy, drains and cordons: places that leaked are given back,
    a record that was lost is made again."""
    keys, book, draft = RegionKeys(state.region), Book.of(state, settings), Draft()
    wanted: Mapping[str, set[BudgetHold]] = _by_budget(book, wanted_holds(state))
    moved: list[str] = []
    for name, line in book.lines.items():
        if line.limit is None or len(draft.puts) >= MAX_RECONCILED:
            continue
        if line.total == 0 and not wanted.get(name) and line.old is not None:
            draft.delete(keys.budget(name), line.old)
            continue
        kept = {hold for hold in line.holds if _keeps(state, keys, hold)}
        holds = tuple(sorted(kept | wanted.get(name, set()), key=_hold_order))
        if holds != line.holds:
            moved.append(f"{name} {len(line.holds)} → {len(holds)} holds")
            line.holds = holds
        record = line.record()
        if line.old is None or line.old.record != record:
            draft.put(keys.budget(name), record, line.old)
    if not draft.puts:
        return None
    sentence = f"budgets brought in line with the inventory: {', '.join(moved or sorted(book.lines))}"
    return Decision(
        "budget.reserve", sentence[:500], draft.writes(), subject=f"region/{state.region}", audit=bool(moved)
    )


def _by_budget(book: Book, holds: Iterable[BudgetHold]) -> dict[str, set[BudgetHold]]:
    found: dict[str, set[BudgetHold]] = {}
    for hold in holds:
        for name in book.covering(hold.device):
            found.setdefault(name, set()).add(hold)
    return found
