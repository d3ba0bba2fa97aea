"""Measured minutes as the errors that burn-rate alerts look at, by budgeting method. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gridkeeper.records.objectives import SloHourRecord
from gridkeeper.sla.budget import HOUR_MS, MINUTE_MS
from gridkeeper.sla.burn import Errors, Tick
from gridkeeper.sla.objectives import Level
from gridkeeper.sla.openslo import Budgeting, Op

COMPARE = {
    Op.LT: lambda value, edge: value < edge,
    Op.LTE: lambda value, edge: value <= edge,
    Op.GT: lambda value, edge: value > edge,
    Op.GTE: lambda value, edge: value >= edge,
}


@dataclass(frozen=True, slots=True)
class Minute:
    """The minute that ends at ``at_ms``."""

    at_ms: int
    good: int
    total: int


def satisfies(value: Fraction, edge: tuple[Op, Fraction]) -> bool:
    return bool(COMPARE[edge[0]](value, edge[1]))


def minutes_of(hours: Iterable[SloHourRecord]) -> list[Minute]:
    return [
        Minute(hour.hour * HOUR_MS + minute * MINUTE_MS, good, total)
        for hour in sorted(hours, key=lambda hour: hour.hour)
        for minute, good, total in zip(hour.minutes, hour.good, hour.total, strict=True)
    ]


def errors_of(minutes: Sequence[Minute], level: Level, method: Budgeting) -> Errors:
    """Of slices only those that are over; one in which nothing was measured says nothing."""
    if method is Budgeting.OCCURRENCES:
        return Errors([Tick(m.at_ms, Fraction(m.total - m.good), Fraction(m.total)) for m in minutes if m.total])
    slices: dict[int, tuple[int, int]] = {}
    for minute in minutes:
        end_ms = -(-minute.at_ms // level.slice_ms) * level.slice_ms
        good, total = slices.get(end_ms, (0, 0))
        slices[end_ms] = (good + minute.good, total + minute.total)
    last = minutes[-1].at_ms if minutes else 0
    return Errors(
        [
            Tick(end_ms, _slice_error(Fraction(good, total), level, method))
            for end_ms, (good, total) in sorted(slices.items())
            if total and end_ms <= last
        ]
    )


def _slice_error(ratio: Fraction, level: Level, method: Budgeting) -> Fraction:
    if method is Budgeting.TIMESLICES:
        assert level.slice_target is not None, "checked when the document was read"
        return Fraction(ratio < level.slice_target)
    return 1 - ratio
