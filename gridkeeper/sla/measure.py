"""Availability as a contract defines it: which time is down, how it is sliced, what is left out. Exact; pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import assert_never

from gridkeeper.records.books import UptimeClass
from gridkeeper.records.settlement import Cause
from gridkeeper.sla.spans import PRECEDENCE, Piece

MINUTE_MS = 60_000


class Counting(enum.StrEnum):
    """How much of an outage counts. A clock minute begins where the Unix time is divisible by 60 s, which it does in
    every time zone in use; two outages in one minute touch it once."""

    EXACT = "exact"
    WHOLE = "whole-clock-minutes"
    TOUCHED = "touched-clock-minutes"
    FLOOR = "full-minutes-of-each-outage"
    CEIL = "begun-minutes-of-each-outage"


class Counts(enum.StrEnum):
    """What a class of time counts as."""

    UP = "up"
    DOWN = "down"
    EXCLUDED = "excluded"


class Exclude(enum.StrEnum):
    """``from-downtime``: excluded time is not down, but remains in the whole. ``from-both``: it is in neither."""

    DOWNTIME = "from-downtime"
    BOTH = "from-both"


@dataclass(frozen=True, slots=True)
class Rule:
    """A contract's definition of availability. An outage is uninterrupted time that counts as down; excluded time
    interrupts it. Outages shorter than ``minimum_ms`` do not count at all. ``causes``: those that exclude."""

    counting: Counting = Counting.EXACT
    minimum_ms: int = 0
    degraded: Counts = Counts.UP
    unknown: Counts = Counts.DOWN
    exclude: Exclude = Exclude.DOWNTIME
    causes: tuple[Cause, ...] = PRECEDENCE


@dataclass(frozen=True, slots=True)
class Measured:
    """``raw_down_ms``: with nothing excluded: time that was booked as excluded, without what held in it, and time that
    nobody knows of count as down. All ms are whole."""

    elapsed_ms: int
    down_ms: int
    excluded_ms: int
    raw_down_ms: int
    exclude: Exclude

    @property
    def whole_ms(self) -> int:
        """The denominator."""
        return self.elapsed_ms - (self.excluded_ms if self.exclude is Exclude.BOTH else 0)

    @property
    def availability(self) -> Fraction | None:
        """Of 1; None where no time is left to be measured."""
        return ratio(self.whole_ms - self.down_ms, self.whole_ms)

    @property
    def raw(self) -> Fraction | None:
        return ratio(self.elapsed_ms - self.raw_down_ms, self.elapsed_ms)


def ratio(part: int, whole: int) -> Fraction | None:
    return Fraction(part, whole) if whole > 0 else None


def measure(pieces: Sequence[Piece], rule: Rule) -> Measured:
    """``pieces``: a window as ``resolve`` returns it."""
    down, raw, excluded = [], [], 0
    for piece in pieces:
        counts = counted_as(piece.uptime, piece.cause, rule)
        excluded += piece.ms if counts is Counts.EXCLUDED else 0
        if counts is Counts.DOWN:
            down.append((piece.from_ms, piece.until_ms))
        if raw_as(piece.uptime, rule) is Counts.DOWN:
            raw.append((piece.from_ms, piece.until_ms))
    elapsed = sum(piece.ms for piece in pieces)
    whole = elapsed - (excluded if rule.exclude is Exclude.BOTH else 0)
    return Measured(
        elapsed, min(whole, counted_ms(down, rule)), excluded, min(elapsed, counted_ms(raw, rule)), rule.exclude
    )


def counted_as(uptime: UptimeClass, cause: Cause | None, rule: Rule) -> Counts:
    """What a time counts as. A cause that this contract does not exclude changes nothing."""
    if cause is not None and cause in rule.causes:
        return Counts.EXCLUDED
    match uptime:
        case UptimeClass.UP:
            return Counts.UP
        case UptimeClass.DEGRADED:
            return rule.degraded
        case UptimeClass.DOWN:
            return Counts.DOWN
        case UptimeClass.UNKNOWN:
            return rule.unknown
        case UptimeClass.EXCLUDED:  # booked as maintenance
            return Counts.EXCLUDED if Cause.MAINTENANCE in rule.causes else Counts.DOWN
        case _:
            assert_never(uptime)


def raw_as(uptime: UptimeClass, rule: Rule) -> Counts:
    """What a time counts as with nothing excluded."""
    if uptime is UptimeClass.UP or (uptime is UptimeClass.DEGRADED and rule.degraded is not Counts.DOWN):
        return Counts.UP
    return Counts.UP if uptime is UptimeClass.UNKNOWN and rule.unknown is Counts.UP else Counts.DOWN


def counted_ms(intervals: Iterable[tuple[int, int]], rule: Rule) -> int:
    """ms of the outages that count. ``intervals``: in order of time, disjoint; those that touch are one outage."""
    total, touched_until = 0, None
    for begin, end in _outages(intervals):
        if end - begin < rule.minimum_ms:
            continue
        match rule.counting:
            case Counting.EXACT:
                total += end - begin
            case Counting.WHOLE:
                total += max(0, end // MINUTE_MS - -(-begin // MINUTE_MS)) * MINUTE_MS
            case Counting.TOUCHED:
                first, last = begin // MINUTE_MS, -(-end // MINUTE_MS)
                first = first if touched_until is None else max(first, touched_until)
                total += max(0, last - first) * MINUTE_MS
                touched_until = last
            case Counting.FLOOR:
                total += (end - begin) // MINUTE_MS * MINUTE_MS
            case Counting.CEIL:
                total += -(-(end - begin) // MINUTE_MS) * MINUTE_MS
            case _:
                assert_never(rule.counting)
    return total


def _outages(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begin, end in intervals:
        if merged and merged[-1][1] == begin:
            merged[-1] = (merged[-1][0], end)
        elif begin < end:
            merged.append((begin, end))
    return merged
