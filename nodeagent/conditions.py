"""From readings to events: counters that grow, conditions that last, things that are listed once. Pure and clock-free.

A condition that lasts is told when it begins and every ``REPEAT_MS`` while it lasts, so that what is found of it does
not run out; its end is told at once where a code for that exists. The first reading of a counter is its baseline: what
was counted before this run of the agent was reported by the last one, or is in the telemetry's columns.
"""

from __future__ import annotations

from collections.abc import Iterable

from gridkeeper.catalogue.codes import REPEAT_MS
from gridkeeper.ports.devices import Sighting
from gridkeeper.records.fleet import EventKind

MAX_LISTED = 4_096
"""Listed things remembered per list; a longer list starts anew as a baseline."""


class Conditions:
    """What one backend or check has seen so far, and what is to be told of it. ``slot`` "" is the node."""

    def __init__(self, kind: EventKind, source: str) -> None:
        self._kind = kind
        self._source = source
        self._counters: dict[tuple[str, str], float] = {}
        self._lasting: dict[tuple[str, str], int] = {}  # -> when it was told last
        self._listed: dict[str, set[str]] = {}
        self._subjects: dict[str, set[str]] = {}
        self._told: list[Sighting] = []

    def take(self) -> tuple[Sighting, ...]:
        """What is new since the last call."""
        told, self._told = tuple(self._told), []
        return told

    def say(self, slot: str, code: int, message: str, now_ms: int, subject: str = "") -> None:
        self._told.append(Sighting(slot, self._kind, code, message, self._source, now_ms, subject=subject))

    def grew(self, slot: str, counter: str, value: float | None) -> float:
        """By how much the counter is above its last reading; 0 for the first one, for one that is not known (None), and
        after it started anew."""
        if value is None:
            return 0
        before = self._counters.get((slot, counter))
        self._counters[slot, counter] = value
        return max(0.0, value - before) if before is not None else 0

    def lasts(
        self, slot: str, name: str, on: bool | None, code: int, message: str, now_ms: int, over: int | None = None
    ) -> None:
        """``on`` None: not known, so it neither begins nor ends. ``over``: the code of its end."""
        key = (slot, name)
        told = self._lasting.get(key)
        if on is None:
            return
        if on:
            if told is None or now_ms - told >= REPEAT_MS:
                self._lasting[key] = now_ms
                self.say(slot, code, message, now_ms)
        elif told is not None:
            del self._lasting[key]
            if over is not None:
                self.say(slot, over, f"over: {message}", now_ms)

    def lasts_for(
        self, name: str, subjects: Iterable[str], code: int, words: str, now_ms: int, over: int | None = None
    ) -> None:
        """One condition of the node that several things may be in (ports, disks): told when the first joins, at once
        when another joins, and over when the last has left: its end must not end another one's."""
        now = set(subjects)
        joined = now - self._subjects.get(name, set())
        self._subjects[name] = now
        message = f"{words} {', '.join(sorted(now)[:16])}" if now else words
        if joined:
            self._lasting.pop(("", name), None)
        self.lasts("", name, bool(now), int(code), message, now_ms, None if over is None else int(over))

    def fresh(self, listing: str, names: Iterable[str]) -> tuple[str, ...]:
        """Those that were not listed before, in order; none the first time."""
        known = self._listed.get(listing)
        names = list(dict.fromkeys(names))
        new = () if known is None else tuple(name for name in names if name not in known)
        kept = set() if known is None or len(known) + len(new) > MAX_LISTED else known
        self._listed[listing] = kept | set(names)
        return new
