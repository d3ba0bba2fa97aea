"""The alerts of an objective: what each is called, its labels, and whether it holds. Pure.

The same in the control plane's own engine and in the rules that ``promrules`` writes, so that whoever fans them out
takes both for one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from gridkeeper.sla.budget import DAY_MS, MINUTE_MS, BurnWindow, standard_windows
from gridkeeper.sla.burn import Errors
from gridkeeper.sla.credit import exact_text
from gridkeeper.sla.objectives import Alert, Goal, Level
from gridkeeper.sla.openslo import Op

SIGN = {Op.LT: "<", Op.LTE: "<=", Op.GT: ">", Op.GTE: ">="}
CALENDAR_MS = 30 * DAY_MS
"""Calendar windows differ in length; their factors are those of 30 days."""
BURN = "SloBudgetBurn"
POLICY = "SloAlertPolicy"


def period_of(goal: Goal) -> int:
    return goal.window.ms if goal.rolling else CALENDAR_MS


def windows_of(goal: Goal) -> tuple[BurnWindow, ...]:
    """The standard alerts that are shorter than the SLO's window."""
    period = period_of(goal)
    return tuple(window for window in standard_windows(period) if window.long_ms <= period)


def short(ms: int) -> str:
    for unit, size in (("d", DAY_MS), ("h", 3_600_000), ("m", MINUTE_MS), ("s", 1_000)):
        if ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


def labels_of(goal: Goal, level: Level) -> dict[str, str]:
    return {"slo": goal.name, "service": goal.service, "objective": level.name}


@dataclass(frozen=True, slots=True)
class Condition:
    """``name``: unique within the objective; ``after_ms``: it must hold so long before it fires."""

    name: str
    alert: str
    labels: dict[str, str]
    summary: str
    after_ms: int
    of: BurnWindow | Alert
    target: Fraction

    def holds(self, errors: Errors, now_ms: int) -> bool:
        if isinstance(self.of, BurnWindow):
            long_ratio, short_ratio = (errors.ratio(now_ms, ms) for ms in (self.of.long_ms, self.of.short_ms))
            return self.of.fires(long_ratio, short_ratio, self.target)
        ratio = errors.ratio(now_ms, self.of.lookback_ms)
        if ratio is None:
            return self.of.no_data
        return self.of.breaching and _compare(self.of.op, ratio, self.of.threshold * (1 - self.target))


def _compare(op: Op, ratio: Fraction, edge: Fraction) -> bool:
    return {Op.LT: ratio < edge, Op.LTE: ratio <= edge, Op.GT: ratio > edge, Op.GTE: ratio >= edge}[op]


def conditions(goal: Goal, level: Level) -> Iterator[Condition]:
    own = labels_of(goal, level)
    for window in windows_of(goal):
        spent, over = exact_text(window.budget * 100), short(window.long_ms)
        yield Condition(
            f"burn-{over}", BURN, {**own, "severity": window.severity, "window": over},
            f"{goal.name}: {spent} % of the error budget of {goal.window.text} spent within {over}, and still burning",
            0, window, level.target,
        )  # fmt: skip
    for alert in goal.alerts:
        if alert.breaching or alert.no_data:
            yield Condition(
                f"policy-{alert.policy}", POLICY, {**own, "severity": alert.severity, "policy": alert.policy},
                f"{goal.name}: burn rate over {short(alert.lookback_ms)} is {SIGN[alert.op]} "
                f"{exact_text(alert.threshold)} (alert policy {alert.policy})",
                alert.after_ms, alert, level.target,
            )  # fmt: skip


def longest_ms(goal: Goal) -> int:
    """What its alerts look back on."""
    return max(
        [window.long_ms for window in windows_of(goal)] + [alert.lookback_ms for alert in goal.alerts], default=0
    )
