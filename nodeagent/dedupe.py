"""One fault, one event: merges what several sources say of the same thing. Pure and clock-free.

The rule. Sightings are one fault if device, kind and code are equal and they lie within ``window_ms`` of each other.
The first is admitted at once, so that no fault waits for the window; the others are counted, each under its source.
How often the fault happened is the *greatest* of the sources' counts: NVML saying it once and the kernel log saying it
once is once. What has been added to that since the last admission is admitted as one update per window. A key is
forgotten once nothing came for a window (and one more, for a source that lags and says when it saw what it says), so a
steady fault keeps its counts, and a later one is a new event.

Some codes mean nothing without their text (154: the recovery action; 74 and 144–150: which link, which error). NVML
gives the number alone. For those, the first sighting with a new text is admitted at once too, ``MAX_DETAILS`` of them
per window; so is the first with a new subject (another disk, interface, GPU instance).

Memory is bounded by ``max_keys``: beyond that many different faults at once, further ones are counted in one
``OVERFLOW`` event, which says that the picture is incomplete.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from gridkeeper.catalogue.codes import HostCode
from gridkeeper.ports.devices import Device, Sighting
from gridkeeper.records.fleet import EventKind
from nodeagent.kernel.parse import SOURCE, SOURCE_TEXT
from nodeagent.pci import normal_bus_id, slot_for

WINDOW_MS = 3_000
"""NVML delivers within milliseconds, the kernel log is read ten times a second, syslog daemons flush within about a
second: three seconds hold the slowest pair. Faults of a kind seldom repeat on purpose within it."""

MAX_KEYS = 4_096
MAX_DETAILS = 8
DETAILED_CODES = frozenset({74, 154, *range(144, 151)})
OVERFLOW_TOO_MANY = 2
"""Code of the ``OVERFLOW`` event "more different faults at once than can be told apart"."""

_WITH_TEXT = frozenset({SOURCE, SOURCE_TEXT})
_SAID_BETTER = {(EventKind.HOST, int(HostCode.OOM_KILL)): (EventKind.HOST, int(HostCode.OOM_KILL_CGROUP))}
"""What a counter counts -> what a line of the kernel log says of the same thing more exactly (vmstat's oom_kill counts
kills within a cgroup, too)."""
_WHO = re.compile(r"\bpid=\S{0,32}|\bname=[^,]{0,64}|^.{0,64}?\[\s*[0-9.]+\]")

Key = tuple[str, EventKind, int]


@dataclass(frozen=True, slots=True)
class Admitted:
    """What goes into the spool. ``count``: sightings since the previous admission of this fault (of the source that saw
    most). ``update``: more of a fault that was admitted before. ``seen_ms``: of the first sighting counted in it,
    boot-time clock."""

    slot: str
    kind: EventKind
    code: int
    message: str
    sources: tuple[str, ...]
    count: int
    pid: int
    seen_ms: int
    last_seen_ms: int
    pci_bus_id: str
    update: bool


@dataclass(slots=True)
class _Fault:
    """What is remembered of one key. Times: ``seen`` by the sightings' own clock, ``at`` by the caller's now."""

    opened_at: int
    touched_at: int
    last_seen: int
    best: Sighting
    told: int = 0
    untold_since: int | None = None  # seen_ms of the first sighting that is not told yet
    counts: dict[str, int] = field(default_factory=dict)
    details: set[str] = field(default_factory=set)
    new_details: int = 0  # in this window

    @property
    def untold(self) -> int:
        return max(self.counts.values(), default=0) - self.told


def resolve(sighting: Sighting, devices: Iterable[Device]) -> Sighting:
    """``sighting`` with its slot filled in from its PCI address, if a device is there."""
    if sighting.slot or not sighting.pci_bus_id:
        return sighting
    return replace(sighting, slot=slot_for(sighting.pci_bus_id, devices))


class Dedupe:
    """See the module's rule. ``now_ms`` must not go backwards; it is the clock that ``seen_ms`` is on."""

    def __init__(self, window_ms: int = WINDOW_MS, max_keys: int = MAX_KEYS) -> None:
        self._window_ms = window_ms
        self._max_keys = max_keys
        self._faults: dict[Key, _Fault] = {}

    def __len__(self) -> int:
        return len(self._faults)

    def see(self, sighting: Sighting, now_ms: int) -> Admitted | None:
        """What to spool now, or None if it was counted."""
        key = _key(sighting)
        fault = self._faults.get(key)
        if fault is None and sighting.source not in _WITH_TEXT and (better := _SAID_BETTER.get(key[1:])):
            exact = self._faults.get((key[0], *better))
            if exact is not None and self._same(exact, sighting, now_ms):
                sighting = replace(sighting, code=better[1])
                key, fault = _key(sighting), exact
        if fault is not None and not self._same(fault, sighting, now_ms):
            fault = None  # the old one was told in full: this is a new fault
        if fault is None and key not in self._faults and len(self._faults) >= self._max_keys:
            self._forget_quiet(now_ms)
            if len(self._faults) >= self._max_keys:
                sighting = _too_many(sighting, self._max_keys)
                key = _key(sighting)
                fault = self._faults.get(key)
        if fault is None:
            fault = self._faults[key] = _Fault(now_ms, now_ms, sighting.seen_ms, sighting)
            self._count(fault, sighting, now_ms)
            return _tell(fault, sighting.message, update=False)
        if self._count(fault, sighting, now_ms):
            return _tell(fault, sighting.message, update=False)
        return None

    def flush(self, now_ms: int) -> tuple[Admitted, ...]:
        """Updates of windows that have ended, in the order of their last sighting; call it at least once per window."""
        told: list[Admitted] = []
        for key, fault in list(self._faults.items()):
            if now_ms < fault.opened_at + self._window_ms:
                continue
            if fault.untold > 0:
                told.append(_tell(fault, fault.best.message, update=True))
            elif now_ms >= fault.touched_at + 2 * self._window_ms:
                del self._faults[key]
            fault.opened_at, fault.new_details = now_ms, 0  # the next window
        return tuple(sorted(told, key=lambda admitted: admitted.last_seen_ms))

    def next_flush_ms(self) -> int | None:
        """When ``flush`` has something to tell or to forget at the earliest; None while nothing is remembered."""
        window = self._window_ms
        return min(
            (f.opened_at + window if f.untold > 0 else f.touched_at + 2 * window for f in self._faults.values()),
            default=None,
        )

    def _same(self, fault: _Fault, sighting: Sighting, now_ms: int) -> bool:
        """By when it arrived or, for a source that lags, by when it was seen."""
        near = fault.untold > 0 or now_ms < fault.touched_at + self._window_ms
        return near or sighting.seen_ms < fault.last_seen + self._window_ms

    def _count(self, fault: _Fault, sighting: Sighting, now_ms: int) -> bool:
        """Whether its text is news that must not wait."""
        before = fault.untold
        fault.counts[sighting.source] = fault.counts.get(sighting.source, 0) + 1
        if fault.untold > before and fault.untold_since is None:
            fault.untold_since = sighting.seen_ms
        fault.last_seen = max(fault.last_seen, sighting.seen_ms)
        fault.touched_at = now_ms
        fault.best = _better(fault.best, sighting)
        detail = _detail(sighting)
        if not detail or detail in fault.details or fault.new_details >= MAX_DETAILS:
            return False
        if len(fault.details) >= 8 * MAX_DETAILS:
            fault.details.clear()
        fault.details.add(detail)
        fault.new_details += 1
        return True

    def _forget_quiet(self, now_ms: int) -> None:
        for key, fault in list(self._faults.items()):
            if fault.untold <= 0 and now_ms >= fault.touched_at + 2 * self._window_ms:
                del self._faults[key]


def _tell(fault: _Fault, message: str, update: bool) -> Admitted:
    best = fault.best
    admitted = Admitted(
        slot=best.slot,
        kind=best.kind,
        code=best.code,
        message=message,
        sources=tuple(sorted(fault.counts)),
        count=max(fault.untold, 1),
        pid=best.pid,
        seen_ms=fault.last_seen if fault.untold_since is None else fault.untold_since,
        last_seen_ms=fault.last_seen,
        pci_bus_id=best.pci_bus_id,
        update=update,
    )
    fault.told, fault.untold_since = max(fault.counts.values()), None
    return admitted


def _key(sighting: Sighting) -> Key:
    return sighting.slot or normal_bus_id(sighting.pci_bus_id), sighting.kind, sighting.code


def _better(old: Sighting, new: Sighting) -> Sighting:
    """The kernel log's words before NVML's number, and a pid before none; of equals, the newer."""
    old_text, new_text = old.source == SOURCE, new.source == SOURCE
    if old_text and not new_text:
        return replace(old, pid=old.pid or new.pid)
    return replace(new, pid=new.pid or old.pid, slot=new.slot or old.slot, pci_bus_id=new.pci_bus_id or old.pci_bus_id)


def _detail(sighting: Sighting) -> str:
    if sighting.subject:
        return sighting.subject
    if sighting.kind is not EventKind.XID or sighting.code not in DETAILED_CODES or sighting.source not in _WITH_TEXT:
        return ""
    return _WHO.sub("", sighting.message)


def _too_many(sighting: Sighting, limit: int) -> Sighting:
    message = f"more than {limit} different faults at once; further ones are only counted"
    return Sighting("", EventKind.OVERFLOW, OVERFLOW_TOO_MANY, message, "dedupe", sighting.seen_ms)
