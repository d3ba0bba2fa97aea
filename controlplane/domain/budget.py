"""Never too much: how many devices may be out of service at once, and who holds the places. Pure.

Budgets are per region, zone, rack, vendor and job, and over the fleet; all that cover a device hold at once. A
``BudgetRecord`` is the serialisation point: every drain and every cordon rewrites the records of all budgets that cover
its device, in its own transaction, so two planners can never both take the last place.

- ``limit = max(minimum, floor(fraction × durable inventory))``, at most ``maximum``; an inventory of 0 devices, or a
  record that does not decode, is unknown, and unknown means no.
- A device counts once, however often it is held, and also when its health says that it is out without any hold. One
  that a human cordoned may be drained when cordons fill the budget, as long as drains alone stay within it.
- A budget with a window counts drains begun within it, whatever became of them.
- A job's budget counts the devices that went out of service under it, until they are back.
- The fleet's budget is this region's share of it (``escrow.py``); without a share the answer is no.
- Hosts (vendor ``host``) are no accelerators: only their own vendor's budget covers them.
- A cordon by a human always succeeds, and counts, also where the record of a budget that is new to the device (another
  policy, another rack) does not say so yet. A drain's hold lasts until its device is back in service.
- Silent nodes do not count: nobody took them out. Against too much silence stands the freeze (``liveness.in_doubt``).
"""

from __future__ import annotations

import heapq
import re
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

from controlplane.domain.health import OUT
from controlplane.domain.scopes import FLEET, JOB, coverage, devices_of, of_budget, safe
from controlplane.domain.unwell import unwell
from gridkeeper.decision import ABSENT, Draft, Guard, Now, Versioned
from gridkeeper.ids import DeviceId, JobId
from gridkeeper.keys import RegionKeys
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.records.faults import BudgetHold, BudgetRecord, HoldKind
from gridkeeper.snapshot import RegionState, Settings

MAX_BEGUN = 4_096
"""Drains that a budget with a window can remember, and so allow: its record holds a time of each."""

_SHOWN = 6
_OF_JOB = re.compile(r"job-[a-z0-9._-]+(.*)")


@lru_cache(maxsize=1024)
def limit_of(policy: BudgetPolicy, total: int) -> int:
    """Devices that may be out at once (or drains that may begin within the window), of ``total``."""
    if total <= 0:
        return 0
    limit = max(policy.minimum, int(Fraction(str(policy.fraction)) * total))
    if policy.maximum:
        limit = min(limit, policy.maximum)
    return min(limit, MAX_BEGUN) if policy.window_ms else limit


@dataclass(frozen=True, slots=True)
class Refusal:
    """``names``: what is full. ``why``: who holds it; put into words only when somebody asks."""

    names: tuple[str, ...]
    why: Callable[[], str]

    @property
    def sentence(self) -> str:
        return self.why()


@dataclass(slots=True)
class Line:
    """One budget while a decision is being made. ``unknown``: why nothing is known of it, which means no; "".
    ``unreadable``: its record does not decode, so it cannot be written either."""

    name: str
    old: Versioned[BudgetRecord] | None
    total: int
    limit: int
    window_ms: int
    unknown: str
    unreadable: bool
    holds: list[BudgetHold]
    begun: tuple[int, ...]
    used: dict[DeviceId, int] = field(default_factory=dict)  # device -> holds, and one more if its health says so
    drained: dict[DeviceId, int] = field(default_factory=dict)
    shown: str = ""  # the holders in words, while they are the same

    def count(self, device: DeviceId, kind: HoldKind, by: int) -> None:
        self.shown = ""
        for counts in (self.used, self.drained) if kind is HoldKind.DRAIN else (self.used,):
            counts[device] = counts.get(device, 0) + by
            if counts[device] <= 0:
                del counts[device]

    def record(self) -> BudgetRecord:
        return BudgetRecord(self.name, tuple(self.holds), self.limit, self.total, self.begun)


class Book:
    """All budgets of a region as they are after what was reserved and released on this book so far."""

    def __init__(self, state: RegionState, settings: Settings, now: Now) -> None:
        self._state = state
        self._now = now
        self._keys = RegionKeys(state.region)
        self._policies = settings.policy.budgets
        self._coverage = coverage(state, tuple(of_budget(policy) for policy in self._policies))
        self._job_policies = tuple(policy for policy in self._policies if policy.kind == JOB)
        self._jobs = _jobs_of(state) if self._job_policies else {}
        self._running: dict[str, int] = {}  # budget of a job that holds devices here -> how many
        if self._job_policies:
            for job, reservation in state.reservations.items():
                for name in self._job_names((job,)):
                    self._running.setdefault(name, len(reservation.record.devices))
        self._lines: dict[str, Line] = {}
        self._cordoned: dict[str, list[BudgetHold]] = {}
        for hold in cordon_holds(state):
            for name in self.covering(hold.device):
                self._cordoned.setdefault(name, []).append(hold)
        self._out: dict[str, list[DeviceId]] = {}
        for device in unwell(state):
            if state.health[device].record.state in OUT:
                for name in self.covering(device):
                    self._out.setdefault(name, []).append(device)

    @classmethod
    def of(cls, state: RegionState, settings: Settings, now: Now) -> Book:
        return cls(state, settings, now)

    @property
    def names(self) -> tuple[str, ...]:
        """Every budget that there is, and every one that a record is left of."""
        jobs = {job for held in self._jobs.values() for job in held}
        return tuple(sorted({*self._state.budgets, *self._coverage.totals, *self._running, *self._job_names(jobs)}))

    def covering(self, device: DeviceId) -> tuple[str, ...]:
        """Names of the budgets that cover a device of the inventory; none for another one."""
        names = self._coverage.names.get(device, ())
        jobs = self._jobs.get(device)
        return (*names, *self._job_names(jobs)) if jobs and device in self._coverage.names else names

    def _job_names(self, jobs: Iterable[JobId]) -> tuple[str, ...]:
        return tuple(self._job_name(policy, job) for job in sorted(jobs) for policy in self._job_policies)

    @staticmethod
    def _job_name(policy: BudgetPolicy, job: JobId) -> str:
        return f"job-{safe(job)}{of_budget(policy).suffix}"

    def line(self, name: str) -> Line:
        if name not in self._lines:
            self._lines[name] = self._line(name)
        return self._lines[name]

    def _line(self, name: str) -> Line:
        old = self._state.budgets.get(name)
        policies, total = self._policies_of(name), self._total(name, old)
        limit = min((limit_of(policy, total) for policy in policies), default=0)
        window_ms = max((policy.window_ms for policy in policies), default=0)
        unknown, unreadable = "", self._keys.budget(name) in self._state.suspect_keys
        if any(policy.kind == FLEET for policy in policies):
            limit, unknown = self._share(name)
        if unreadable:
            unknown = "does not decode"
        begun = tuple(at for at in old.record.begun_ms if at > self._now.ledger_ms - window_ms) if old else ()
        holds = list(old.record.holds) if old else []
        if not window_ms and (missing := set(self._cordoned.get(name, ())).difference(holds)):
            holds = sorted({*holds, *missing}, key=hold_order)
        line = Line(name, old, total, limit, window_ms, unknown, unreadable, holds, begun)
        for hold in holds:
            line.count(hold.device, hold.kind, 1)
        if not window_ms:
            for device in self._out.get(name, ()):
                line.count(device, HoldKind.DRAIN, 1)
        return line

    def _policies_of(self, name: str) -> tuple[BudgetPolicy, ...]:
        if name in self._coverage.groupings:
            return tuple(self._policies[index] for index in self._coverage.groupings[name])
        suffix = _OF_JOB.match(name)
        return tuple(p for p in self._job_policies if suffix and of_budget(p).suffix == suffix[1])

    def is_running(self, name: str) -> bool:
        """The job of a job's budget holds devices here."""
        return name in self._running

    def _total(self, name: str, old: Versioned[BudgetRecord] | None) -> int:
        if name in self._coverage.totals or not name.startswith("job-"):
            return self._coverage.totals.get(name, 0)
        return self._running.get(name, old.record.total if old else 0)

    def _share(self, name: str) -> tuple[int, str]:
        held = self._state.shares.get(name)
        if self._keys.share(name) in self._state.suspect_keys:
            return 0, "has a share here that does not decode"
        if held is None:
            return 0, "has not given this region a share yet"
        return held.record.amount, ""

    def used(self, name: str) -> frozenset[DeviceId]:
        """Devices that are out of service in this budget."""
        return frozenset(self.line(name).used)

    def drained(self, name: str) -> frozenset[DeviceId]:
        """Those of them that drains took out, whether or not they are cordoned too."""
        return frozenset(self.line(name).drained)

    def usage(self, device: DeviceId) -> str:
        """``region 1/4, rack-a 1/4``."""
        return ", ".join(self._use(self.line(name)) for name in self.covering(device)) or "none"

    @staticmethod
    def _use(line: Line) -> str:
        return f"{line.name} {len(line.begun) if line.window_ms else len(line.used)}/{line.limit}"

    def refusal(self, device: DeviceId) -> Refusal | None:
        """Why the device may not be drained now; None: it may."""
        if device not in self._coverage.names:
            return Refusal((), lambda: f"{device} is not in the inventory, so no budget is known for it")
        full = tuple(name for name in self.covering(device) if not self._has_room(self.line(name), device))
        return Refusal(full, lambda: "; ".join(self._why_full(self.line(name)) for name in full)) if full else None

    @staticmethod
    def _has_room(line: Line, device: DeviceId) -> bool:
        """A device that is cordoned already takes no further place; but drains alone never exceed the limit either, so
        that a cordon is no way around it."""
        if line.unknown:
            return False
        if line.window_ms:
            return len(line.begun) < line.limit
        if len(line.used) + (device not in line.used) <= line.limit:
            return True
        return device in line.used and len(line.drained) + (device not in line.drained) <= line.limit

    @staticmethod
    def _why_full(line: Line) -> str:
        if line.unknown:
            return f"budget {line.name} {line.unknown}, so what it allows is unknown"
        if line.window_ms:
            return f"budget {line.name} is full: {len(line.begun)} of {line.limit} drains have begun in its window"
        if not line.shown:
            holders = ", ".join(heapq.nsmallest(_SHOWN, line.used)) or "nobody"
            more = len(line.used) - _SHOWN
            line.shown = holders + (f" and {more} more" if more > 0 else "")
        share = "of this region's share of " if line.name == FLEET else "of "
        return f"budget {line.name} is full: {len(line.used)} {share}{line.limit} out ({line.shown})"

    def guards(self, device: DeviceId) -> tuple[Guard, ...]:
        """What an admission rests on besides the budget records: the share of the fleet's budget."""
        names = [name for name in self.covering(device) if name == FLEET]
        held = ((name, self._state.shares.get(name)) for name in names)
        return tuple(Guard(self._keys.share(name), share.revision if share else ABSENT) for name, share in held)

    def hold(self, device: DeviceId, kind: HoldKind, ref: str, draft: Draft) -> tuple[str, ...]:
        """Hold a place for ``device`` in every budget that covers it; the names. Does not ask whether there is room."""
        wanted = BudgetHold(device, kind, ref)
        covering = self.covering(device)
        for name in covering:
            line = self.line(name)
            if line.window_ms:
                if kind is HoldKind.DRAIN:
                    line.begun = (*line.begun, self._now.ledger_ms)[-MAX_BEGUN:]
            elif device not in line.used or wanted not in line.holds:
                insort(line.holds, wanted, key=hold_order)
                line.count(device, kind, 1)
            self.write(line, draft)
        return covering

    def release(self, device: DeviceId, draft: Draft, ref: str = "", kind: HoldKind = HoldKind.DRAIN) -> None:
        """Give up the device's places of that kind (only those held for ``ref``, unless ""). What is left in budgets
        that no longer cover it is tidied up by ``decide_budgets``."""
        for name in self.covering(device):
            line = self.line(name)
            gone = [h for h in line.holds if h.device == device and h.kind is kind and (ref == "" or h.ref == ref)]
            for hold in gone:
                line.holds.remove(hold)
                line.count(device, kind, -1)
            if device in self._out.get(name, ()) and kind is HoldKind.DRAIN and not line.window_ms:
                self._out[name].remove(device)
                line.count(device, kind, -1)
            if gone:
                self.write(line, draft)

    def write(self, line: Line, draft: Draft) -> None:
        if not line.unreadable:
            draft.put(self._keys.budget(line.name), line.record(), line.old)


def cordon_holds(state: RegionState) -> Iterator[BudgetHold]:
    """What must be held, as the cordons say: one per device and reason (more where node and device are cordoned)."""
    for target, cordon in state.cordons.items():
        for device in devices_of(state, target):
            for reason in cordon.record.reasons:
                yield BudgetHold(device, HoldKind.CORDON, reason.owner)


def _jobs_of(state: RegionState) -> Mapping[DeviceId, frozenset[JobId]]:
    """Jobs per device: those that hold it, and those that it went out of service under."""
    found: dict[DeviceId, frozenset[JobId]] = {}
    for job, reservation in state.reservations.items():
        for device in reservation.record.devices:
            found[device] = found.get(device, frozenset()) | {job}
    for device, health in state.health.items():
        drain = state.drains.get(health.record.drain) if health.record.state in OUT else None
        if drain is not None and drain.record.jobs:
            found[device] = found.get(device, frozenset()) | frozenset(drain.record.jobs)
    return found


def hold_order(hold: BudgetHold) -> tuple[str, str, str]:
    """Holds are kept in this order, so that equal ones make equal records."""
    return hold.device, hold.kind.value, hold.ref
