"""Error budgets and burn rates, in exact rationals. Pure. Targets and ratios are of 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Compliance:
    """``achieved``: None where there was nothing to measure, which neither meets nor breaks the target."""

    target: Fraction
    good: Fraction
    total: Fraction

    @property
    def achieved(self) -> Fraction | None:
        return self.good / self.total if self.total else None

    @property
    def budget(self) -> Fraction:
        """How much may be bad, in the unit of ``total``."""
        return (1 - self.target) * self.total

    @property
    def spent(self) -> Fraction:
        return self.total - self.good

    @property
    def remaining(self) -> Fraction | None:
        """Of the budget; negative when more was spent. None: there is no budget (a target of 100 %, or no data)."""
        return 1 - self.spent / self.budget if self.budget else None

    @property
    def met(self) -> bool | None:
        achieved = self.achieved
        return None if achieved is None else achieved >= self.target


def occurrences(good: int, total: int, target: Fraction) -> Compliance:
    """Good events of all events. Raises ``ValueError``."""
    if not 0 <= good <= total:
        raise ValueError(f"good: {good} of {total} events; it must be between 0 and the total")
    return Compliance(target, Fraction(good), Fraction(total))


def timeslices(ratios: Sequence[Fraction | None], slice_target: Fraction, target: Fraction) -> Compliance:
    """A slice is good if its ratio reaches ``slice_target``. One without data (None) is bad."""
    good = sum(1 for value in ratios if value is not None and value >= slice_target)
    return Compliance(target, Fraction(good), Fraction(len(ratios)))


def ratio_timeslices(ratios: Sequence[Fraction | None], target: Fraction) -> Compliance:
    """The mean of the slices' ratios, each weighing the same. One without data (None) counts 0."""
    return Compliance(target, sum((value for value in ratios if value is not None), Fraction(0)), Fraction(len(ratios)))


def time_budget(target: Fraction, window_ms: int) -> Fraction:
    """ms that may be down."""
    return (1 - target) * window_ms


def burn_rate(error_ratio: Fraction, target: Fraction) -> Fraction | None:
    """How many times faster than evenly over the window the budget is spent; None: there is no budget."""
    return error_ratio / (1 - target) if target < 1 else None


@dataclass(frozen=True, slots=True)
class BurnWindow:
    """An alert on the budget spent in ``long_ms``; ``short_ms`` ends it soon after the errors end."""

    severity: str
    budget: Fraction  # of the whole budget, spent in the long window
    long_ms: int
    short_ms: int
    period_ms: int

    @property
    def factor(self) -> Fraction:
        return self.budget * self.period_ms / self.long_ms

    def threshold(self, target: Fraction) -> Fraction:
        """Error ratio of 1 above which it fires."""
        return self.factor * (1 - target)

    def fires(self, long_ratio: Fraction | None, short_ratio: Fraction | None, target: Fraction) -> bool:
        """Both windows strictly above the threshold. A window without data is not above it."""
        if long_ratio is None or short_ratio is None:
            return False
        edge = self.threshold(target)
        return long_ratio > edge and short_ratio > edge


MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


def standard_windows(period_ms: int = 30 * DAY_MS) -> tuple[BurnWindow, ...]:
    """The Site Reliability Workbook's four (chapter "Alerting on SLOs"): factors 14.4, 6, 3 and 1 over 30 days."""
    return (
        BurnWindow("page", Fraction(2, 100), HOUR_MS, 5 * MINUTE_MS, period_ms),
        BurnWindow("page", Fraction(5, 100), 6 * HOUR_MS, 30 * MINUTE_MS, period_ms),
        BurnWindow("ticket", Fraction(10, 100), DAY_MS, 2 * HOUR_MS, period_ms),
        BurnWindow("ticket", Fraction(10, 100), 3 * DAY_MS, 6 * HOUR_MS, period_ms),
    )
