"""Burn-rate alerts over a series of errors, exactly: the same minute as the rules that ``promrules`` writes. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from gridkeeper.sla.budget import BurnWindow


@dataclass(frozen=True, slots=True)
class Tick:
    """What one step of a series says, at its end: ``bad`` of ``total`` events; or of a ratio, that of 1."""

    at_ms: int
    bad: Fraction
    total: Fraction = Fraction(1)


class Errors:
    """A series, in order of time. Sums of any window are two look-ups."""

    def __init__(self, ticks: Sequence[Tick]) -> None:
        self._at = [tick.at_ms for tick in ticks]
        if any(later <= earlier for earlier, later in zip(self._at, self._at[1:], strict=False)):
            raise ValueError("ticks: their times must grow; sort them, and leave out duplicates")
        self._bad = list(accumulate((tick.bad for tick in ticks), initial=Fraction(0)))
        self._total = list(accumulate((tick.total for tick in ticks), initial=Fraction(0)))

    def ratio(self, now_ms: int, window_ms: int) -> Fraction | None:
        """Of the ticks in (now - window, now]; None: there is none, or nothing happened. A window that is not full yet
        is what there is of it."""
        first, end = (bisect.bisect_right(self._at, at) for at in (now_ms - window_ms, now_ms))
        total = self._total[end] - self._total[first]
        return (self._bad[end] - self._bad[first]) / total if total else None


def firing(errors: Errors, target: Fraction, windows: Sequence[BurnWindow], now_ms: int) -> tuple[BurnWindow, ...]:
    """The alerts that hold now."""
    return tuple(
        window
        for window in windows
        if window.fires(errors.ratio(now_ms, window.long_ms), errors.ratio(now_ms, window.short_ms), target)
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """An alert begins or ends."""

    at_ms: int
    window: BurnWindow
    fires: bool


def turns(
    errors: Errors, target: Fraction, windows: Sequence[BurnWindow], from_ms: int, until_ms: int, every_ms: int
) -> tuple[Turn, ...]:
    """Evaluated at ``from_ms`` and each ``every_ms`` after, up to ``until_ms``."""
    found: list[Turn] = []
    held: frozenset[BurnWindow] = frozenset()
    for now_ms in range(from_ms, until_ms + 1, every_ms):
        now = frozenset(firing(errors, target, windows, now_ms))
        found += [Turn(now_ms, window, window in now) for window in windows if (window in now) is not (window in held)]
        held = now
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Forecast:
    """``rate``: budgets per window at the present error ratio. ``left``: of the budget, of 1; negative: overdrawn.
    ``exhausted_in_ms``: None: not at this rate; 0: it is already."""

    rate: Fraction
    left: Fraction
    exhausted_in_ms: int | None


def forecast(error_ratio: Fraction, spent: Fraction, target: Fraction, window_ms: int) -> Forecast:
    """``spent``: of the window's budget, of 1. The window's end is not counted on: in a rolling one old errors leave,
    so this is the earliest. Raises ``ValueError`` for a target without a budget."""
    if target >= 1:
        raise ValueError("target: 100 % leaves no budget to forecast; use a lower one")
    rate, left = error_ratio / (1 - target), 1 - spent
    if left <= 0:
        return Forecast(rate, left, 0)
    return Forecast(rate, left, int(left * window_ms / rate) if rate else None)
