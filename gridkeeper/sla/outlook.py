"""What is left of each commitment's downtime this month, and when it is used up at the present rate. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import polars as pl

from gridkeeper.sla.contract import Contract
from gridkeeper.sla.months import month_window
from gridkeeper.sla.report import Labels, measured
from gridkeeper.sla.spans import Window
from gridkeeper.sla.whatif import outlook


@dataclass(frozen=True, slots=True)
class Outlook:
    """``budget_ms``: the downtime that the target allows in the month; ``left_ms``: of it, negative: overdrawn.
    ``rate``: share of the time looked back on that was down (None: nothing to measure); ``burn``: that in budgets per
    month: 1 uses the budget up evenly (None: there is no budget). ``exhausted_in_ms``: at that rate; None: not before
    the month's end; 0: it is."""

    commitment: str
    subject: str
    target: Fraction  # of 1
    budget_ms: Fraction
    left_ms: Fraction
    rate: Fraction | None
    burn: Fraction | None
    exhausted_in_ms: int | None


def outlooks(
    contract: Contract, month: str, frame: pl.DataFrame, labels: Mapping[str, Labels], now_ms: int, over_ms: int
) -> tuple[Outlook, ...]:
    """Of every subject, the one that is exhausted first, first. ``over_ms``: how far back the present rate is looked
    at, within the month. Raises ``ValueError``: a time outside the month."""
    window = month_window(month, contract.zone)
    if not window.from_ms < now_ms < window.until_ms:
        raise ValueError(f"month: {month} is not the month that it is now in {contract.zone}; use that one")
    if over_ms <= 0:
        raise ValueError(f"over: {over_ms} ms; it must be longer than nothing")
    ends = outlook(contract, month, frame, labels, now_ms)
    lately = Window(max(window.from_ms, now_ms - over_ms), now_ms)
    present = {
        (section.commitment.name, line.subject): line.measured
        for section in measured(contract, frame, lately, labels)
        for line in section.lines
    }
    targets = {promise.name: promise.target / 100 for promise in contract.commitments}
    found = []
    for (name, subject), line in ends.items():
        budget = (1 - targets[name]) * line.measured.whole_ms
        left = budget - line.measured.down_ms
        now = present.get((name, subject))
        availability = now.availability if now else None
        rate = 1 - availability if availability is not None else None
        burn = rate / (1 - targets[name]) if rate is not None and targets[name] < 1 else None
        found.append(
            Outlook(name, subject, targets[name], budget, left, rate, burn, _exhausted(left, rate, window, now_ms))
        )
    return tuple(sorted(found, key=_order))


def _exhausted(left: Fraction, rate: Fraction | None, window: Window, now_ms: int) -> int | None:
    if left < 0:
        return 0
    if not rate:
        return None
    in_ms = int(left / rate)
    return in_ms if now_ms + in_ms < window.until_ms else None


def _order(one: Outlook) -> tuple[bool, int, Fraction, str, str]:
    return (one.exhausted_in_ms is None, one.exhausted_in_ms or 0, one.left_ms, one.commitment, one.subject)
