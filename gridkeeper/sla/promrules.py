"""Prometheus recording and alerting rules of checked SLOs. Pure.

Each objective gets a group: the error ratio over every window that an alert looks at, then the alerts on them, so an
alert sees what was recorded in the same evaluation. A window is one millisecond short: so it holds the samples in
(now - window, now] in every version of Prometheus, those before 3.0 counting both ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import yaml

from gridkeeper.sla.alerts import SIGN, Condition, conditions, labels_of, short, windows_of
from gridkeeper.sla.budget import MINUTE_MS, BurnWindow
from gridkeeper.sla.credit import exact_text
from gridkeeper.sla.objectives import Goal, Level
from gridkeeper.sla.openslo import Budgeting, MetricSource, RatioMetric, RawType

RATIO = "gridkeeper_slo_error_ratio"
SLICE = "gridkeeper_slo_slice_error"
USABLE = "healthy|suspect|degraded"
BUILT_IN = {
    "device-availability": (f'gridkeeper_devices{{state=~"{USABLE}"%s}}', "gridkeeper_devices{%s}"),
    "node-availability": ('gridkeeper_nodes{state="alive"%s}', "gridkeeper_nodes{%s}"),
}
"""Indicators of a source of type gridkeeper: good and total, of the gauges that its control plane exports."""


class NoRules(ValueError):
    """An SLO that Prometheus rules cannot be written for. The message names the field and the remedy."""


@dataclass(frozen=True, slots=True)
class _Query:
    """``good`` and ``total`` to be summed apart; or, with ``error``, a ratio of errors at any moment."""

    bad: str = ""
    total: str = ""
    error: str = ""


def rules_text(goals: Iterable[Goal]) -> str:
    """A rule file. Raises ``NoRules``."""
    groups = [_group(goal, level, number) for goal in goals for number, level in enumerate(goal.levels, 1)]
    header = "# Written by `gridkeeper slo rules`; edit the SLOs instead.\n"
    return header + yaml.dump({"groups": groups}, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=200)


class _Plain(yaml.SafeDumper):
    """Without anchors: what is the same twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _group(goal: Goal, level: Level, number: int) -> dict[str, Any]:
    labels = labels_of(goal, level)
    query = _query(goal, level)
    every = level.slice_ms or MINUTE_MS
    rules: list[dict[str, Any]] = []
    windows = windows_of(goal)
    if query.error:
        rules.append({"record": SLICE, "expr": query.error, "labels": labels})
    looked = {ms for window in windows for ms in (window.long_ms, window.short_ms)}
    for ms in sorted(looked | {alert.lookback_ms for alert in goal.alerts}):
        rules.append({"record": f"{RATIO}:{short(ms)}", "expr": _over(query, ms, labels), "labels": labels})
    rules += [_rule(condition, labels) for condition in conditions(goal, level)]
    return {"name": f"slo-{goal.name}-{number}", "interval": short(every), "rules": rules}


def _over(query: _Query, ms: int, labels: dict[str, str]) -> str:
    window = _window(ms)
    if query.error:
        return f"avg_over_time({SLICE}{_matching(labels)}[{window}])"
    return f"({query.bad % {'w': window}}) / ({query.total % {'w': window}})"


def _query(goal: Goal, level: Level) -> _Query:
    ratio = goal.sli.ratioMetric
    if ratio is None:
        assert goal.sli.thresholdMetric is not None and level.edge is not None
        op, value = level.edge
        asked = _asked(goal, goal.sli.thresholdMetric.metricSource)
        good = f"avg(({asked}) {SIGN[op]} bool {exact_text(value)})"
        return _sliced(goal, level, good, instant=good)
    if ratio.raw is not None:
        asked = f"avg({_asked(goal, ratio.raw.metricSource)})"
        good = asked if ratio.rawType is RawType.SUCCESS else f"1 - {asked}"
        return _sliced(goal, level, good, instant=good)
    return _counted(goal, level, ratio)


def _counted(goal: Goal, level: Level, ratio: RatioMetric) -> _Query:
    part = ratio.good or ratio.bad
    assert part is not None and ratio.total is not None
    function = "increase" if ratio.counter else "sum_over_time"
    some, total = (
        f"sum({function}({_asked(goal, metric.metricSource).replace('%', '%%')}[%(w)s]))"
        for metric in (part, ratio.total)
    )
    some = f"({some} or vector(0))"  # a counter that never counted has no series
    bad = some if ratio.bad is not None else f"{total} - {some}"
    if goal.method is Budgeting.OCCURRENCES:
        return _Query(bad, total)
    window = {"w": _window(level.slice_ms)}
    return _sliced(goal, level, f"1 - ({bad % window}) / ({total % window})", instant="")


def _sliced(goal: Goal, level: Level, good: str, instant: str) -> _Query:
    """``good``: the ratio of good of one slice. ``instant``: the same, where it is of one moment only: then a slice's
    is its mean."""
    of_slice = f"avg_over_time(({instant})[{_window(level.slice_ms)}:1m])" if instant and level.slice_ms else good
    if goal.method is Budgeting.TIMESLICES:
        assert level.slice_target is not None
        return _Query(error=f"({of_slice}) < bool {exact_text(level.slice_target)}")
    return _Query(error=f"1 - ({of_slice})")


def _asked(goal: Goal, source: MetricSource) -> str:
    """The query of a metric."""
    spec = json.loads(source.spec) if source.spec else {}
    where = f"SLO {goal.name}: metricSource"
    if goal.source == "prometheus":
        query = spec.get("query") if isinstance(spec, dict) else None
        if not isinstance(query, str) or not query.strip():
            raise NoRules(f"{where}.spec.query: is missing; write the PromQL of the series")
        return query.strip()
    if goal.source != "gridkeeper":
        raise NoRules(f"{where}.type: {goal.source!r} has no Prometheus rules; use Prometheus or gridkeeper")
    name = spec.get("sli") if isinstance(spec, dict) else None
    if name not in BUILT_IN:
        raise NoRules(f"{where}.spec.sli: {name!r} is not exported to Prometheus; there are {', '.join(BUILT_IN)}")
    region = spec.get("region", "")
    chosen = f"region={json.dumps(region)}" if region else ""
    good, total = BUILT_IN[name]
    # A state that nothing is in has no series: none good is 0, not "no data".
    return f"(sum({good % (f',{chosen}' if chosen else '')}) or vector(0)) / sum({total % chosen})"


def _rule(condition: Condition, labels: dict[str, str]) -> dict[str, Any]:
    after = {"for": short(condition.after_ms)} if condition.after_ms else {}
    return {
        "alert": condition.alert,
        "expr": _holds(condition, labels),
        **after,
        "labels": condition.labels,
        "annotations": {"summary": condition.summary},
    }


def _holds(condition: Condition, labels: dict[str, str]) -> str:
    of, target = condition.of, condition.target
    if isinstance(of, BurnWindow):
        edge = _number(of.threshold(target))
        long_ratio, short_ratio = (
            f"{RATIO}:{short(ms)}{_matching(labels)} > {edge}" for ms in (of.long_ms, of.short_ms)
        )
        return f"{long_ratio} and {short_ratio}"
    series = f"{RATIO}:{short(of.lookback_ms)}{_matching(labels)}"
    told = []
    if of.breaching:
        told.append(f"{series} {SIGN[of.op]} {_number(of.threshold * (1 - target))}")
    if of.no_data:
        told.append(f"absent({series})")
    return " or ".join(told)


def _matching(labels: dict[str, str]) -> str:
    return "{" + ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels.items()) + "}"


def _number(value: Fraction) -> str:
    """PromQL: decimals, or a division where there are none."""
    text = exact_text(value)
    return f"({text})" if "/" in text else text


def _window(ms: int) -> str:
    """A range that holds the samples in (now - ms, now]."""
    return f"{ms - 1}ms"
