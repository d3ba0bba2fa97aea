"""How much each identity may ask for: token buckets, bounded in number, and streams counted."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gridkeeper.ports.clock import Clock

MOST_BUCKETS = 16_384
"""Identities remembered at a time; who has not been heard for longest begins anew with a full bucket. It is more than
the nodes of a region, and an identity takes a certificate: nobody makes thousands of them up."""


@dataclass(frozen=True, slots=True)
class Rate:
    """``burst`` at once, and ``per_s`` from then on."""

    per_s: float
    burst: float


@dataclass(slots=True)
class _Level:
    left: float
    at_ms: int


class Buckets:
    """One bucket per name."""

    def __init__(self, rate: Rate, clock: Clock, most: int = MOST_BUCKETS) -> None:
        self._rate = rate
        self._clock = clock
        self._most = most
        self._levels: OrderedDict[str, _Level] = OrderedDict()

    def take(self, name: str, cost: float = 1.0) -> int:
        """Pay ``cost``, also when there is not enough left. Returns for how many ms the bucket is then empty: 0 if it
        could pay. Who waits that long before going on keeps to the rate, whatever ``cost`` was."""
        level = self._refilled(name)
        level.left -= cost
        return 0 if level.left >= 0 else int(-level.left / self._rate.per_s * 1000) + 1

    def admit(self, name: str, cost: float = 1.0) -> int:
        """As ``take``, but pay nothing when there is not enough: returns after how many ms there will be."""
        level = self._refilled(name)
        if level.left >= cost:
            level.left -= cost
            return 0
        return int((cost - level.left) / self._rate.per_s * 1000) + 1

    def _refilled(self, name: str) -> _Level:
        now = self._clock.mono_ms()
        level = self._levels.get(name)
        if level is None:
            level = self._levels[name] = _Level(self._rate.burst, now)
            if len(self._levels) > self._most:
                self._levels.popitem(last=False)
            return level
        self._levels.move_to_end(name)
        level.left = min(self._rate.burst, level.left + (now - level.at_ms) / 1000 * self._rate.per_s)
        level.at_ms = now
        return level


class TooMany(Exception):
    """No room for another stream; the message says whose are too many."""


class StreamCounts:
    """Streams open at a time, per identity and in all."""

    def __init__(self, each: int, all_: int) -> None:
        self._each = each
        self._all = all_
        self._open: Counter[str] = Counter()

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """Raises ``TooMany``."""
        if self._open[name] >= self._each:
            raise TooMany(f"{name} has {self._each} streams open at this replica already; end some")
        if self._open.total() >= self._all:
            raise TooMany(f"this replica already serves {self._all} streams; end some or ask another replica")
        self._open[name] += 1
        try:
            yield
        finally:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]
