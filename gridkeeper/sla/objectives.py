"""What OpenSLO documents mean: checked beyond their types, and put into exact numbers. Pure.

Faults name document, field, value and remedy; what the specification allows and this program does not do is refused by
the field's name, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction

from gridkeeper.configfile import ConfigError, Placed, parse_documents
from gridkeeper.sla.budget import DAY_MS, HOUR_MS, MINUTE_MS
from gridkeeper.sla.months import BadMonth, zone_of
from gridkeeper.sla.openslo import (
    API,
    KINDS,
    AlertCondition,
    AlertConditionSpec,
    AlertNotificationTarget,
    AlertPolicy,
    AlertPolicySpec,
    Budgeting,
    DataSource,
    Document,
    MetricSource,
    Objective,
    Op,
    RatioMetric,
    Service,
    Sli,
    SliSpec,
    Slo,
    TimeWindow,
)

MAX_BYTES = 1024 * 1024
MAX_DOCUMENTS = 1_000
_NAME = re.compile(r"[a-zA-Z0-9]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9])?")
_DURATION = re.compile(r"([1-9]\d{0,5})([mhdwMQY])")
_FIXED = {"m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS, "w": 7 * DAY_MS}
_MONTHS = {"M": 1, "Q": 3, "Y": 12}


@dataclass(frozen=True, slots=True)
class Duration:
    """Either a fixed time or calendar months."""

    text: str
    ms: int = 0
    months: int = 0


@dataclass(frozen=True, slots=True)
class Level:
    """One objective of an SLO in exact numbers. ``target`` and ``slice_target`` of 1; ``slice_ms`` 0: occurrences.
    ``edge``: with a threshold metric, what a good value is compared with, and how."""

    name: str
    target: Fraction
    slice_target: Fraction | None = None
    slice_ms: int = 0
    edge: tuple[Op, Fraction] | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition of an alert policy: the burn rate over ``lookback_ms`` compared with ``threshold``, for ``after_ms``.
    ``breaching``, ``no_data``: what it tells of."""

    policy: str
    severity: str
    op: Op
    threshold: Fraction
    lookback_ms: int
    after_ms: int
    breaching: bool
    no_data: bool


@dataclass(frozen=True, slots=True)
class Goal:
    """A checked SLO. ``rolling``: its window moves; else calendar windows follow each other from ``start`` (local time)
    in ``zone``. ``sli``: resolved. ``source``: the type of its data source, lower case."""

    name: str
    service: str
    method: Budgeting
    window: Duration
    rolling: bool
    start: str
    zone: str
    levels: tuple[Level, ...]
    sli: SliSpec
    source: str
    alerts: tuple[Alert, ...]


@dataclass(frozen=True, slots=True)
class Book:
    """Everything in a set of documents."""

    documents: tuple[Document, ...]
    goals: tuple[Goal, ...]


def parse_slos(text: str, source: str) -> Book:
    """Raises ``ConfigError``, one line per fault."""
    size = len(text.encode())
    if size > MAX_BYTES:
        raise ConfigError(f"{source}: {size} bytes; use at most {MAX_BYTES}")
    placed = parse_documents(KINDS, text, source)
    if len(placed) > MAX_DOCUMENTS:
        raise ConfigError(f"{source}: {len(placed)} documents; use at most {MAX_DOCUMENTS}")
    checker = _Checker(source, placed)
    goals = checker.goals()
    if checker.faults:
        raise ConfigError("\n".join(checker.faults))
    return Book(tuple(one.value for one in placed), goals)


def duration(text: str) -> Duration:
    """``12h``, ``4w``, ``1M``. Raises ``ValueError`` with the remedy."""
    matched = _DURATION.fullmatch(text)
    if matched is None:
        raise ValueError(f"{text!r} is no duration; write a whole number and one of m, h, d, w, M, Q, Y, like 4w")
    count, unit = int(matched[1]), matched[2]
    if unit in _FIXED:
        return Duration(text, count * _FIXED[unit])
    return Duration(text, 0, count * _MONTHS[unit])


class _Checker:
    """Collects what is wrong. The line of a fault is that of its document's first."""

    def __init__(self, source: str, placed: Sequence[Placed[Document]]) -> None:
        self.faults: list[str] = []
        self._source = source
        self._placed = placed
        self._named: dict[tuple[type, str], Document] = {}
        self._at = ""
        for one in placed:
            document = one.value
            self._enter(one)
            if document.apiVersion != API:
                self._fault("apiVersion", f"{document.apiVersion!r} is not supported; use {API}")
            name = document.metadata.name
            if not _NAME.fullmatch(name):
                self._fault("metadata.name", f"{name!r} is no name; use letters, digits, '-', '_', '.'")
            key = (type(document), name)
            if key in self._named:
                self._fault("metadata.name", f"there is another {document.kind} {name!r}; rename one")
            self._named[key] = document

    def _enter(self, one: Placed[Document]) -> None:
        self._at = f"{self._source}:{one.line}: {one.value.kind} {one.value.metadata.name}: "

    def _fault(self, field: str, text: str) -> None:
        self.faults.append(f"{self._at}{field}: {text}")

    def goals(self) -> tuple[Goal, ...]:
        found = []
        for one in self._placed:
            self._enter(one)
            match one.value:
                case Slo():
                    goal = self._goal(one.value)
                    found += [goal] if goal is not None else []
                case Sli():
                    self._sli(one.value.spec, "spec")
                case AlertPolicy():
                    list(self._policy(one.value.metadata.name, one.value.spec, "spec"))
                case AlertCondition():
                    list(self._condition(one.value.metadata.name, one.value.spec, AlertPolicySpec(()), "spec"))
                case Service() | DataSource() | AlertNotificationTarget():
                    pass
        return tuple(found)

    def _goal(self, slo: Slo) -> Goal | None:
        before = len(self.faults)
        spec = slo.spec
        sli = self._indicator(slo)
        window = self._window(spec.timeWindow)
        levels = tuple(self._levels(slo, sli)) if sli is not None else ()
        source = self._source_type(sli) if sli is not None else ""
        alerts = tuple(self._alerts(slo))
        if len(self.faults) > before or sli is None or window is None:
            return None
        period, calendar = window
        start, zone = (calendar.calendar.startTime, calendar.calendar.timeZone) if calendar.calendar else ("", "UTC")
        return Goal(
            slo.metadata.name, spec.service, spec.budgetingMethod, period, calendar.isRolling, str(start), zone, levels,
            sli, source, alerts,
        )  # fmt: skip

    def _indicator(self, slo: Slo) -> SliSpec | None:
        spec = slo.spec
        for index, objective in enumerate(spec.objectives):
            for field in ("indicator", "indicatorRef", "compositeWeight"):
                if getattr(objective, field):
                    self._fault(
                        f"spec.objectives[{index}].{field}",
                        "composite SLOs are not supported; write one SLO per indicator",
                    )
        if (spec.indicator is None) is (spec.indicatorRef == ""):
            self._fault("spec.indicator", "give exactly one of indicator and indicatorRef")
            return None
        if spec.indicator is not None:
            self._sli(spec.indicator.spec, "spec.indicator.spec")
            return spec.indicator.spec
        found = self._named.get((Sli, spec.indicatorRef))
        if not isinstance(found, Sli):
            self._fault("spec.indicatorRef", f"there is no SLI {spec.indicatorRef!r} here; add its document")
            return None
        return found.spec

    def _sli(self, spec: SliSpec, at: str) -> None:
        if (spec.thresholdMetric is None) is (spec.ratioMetric is None):
            self._fault(at, "give exactly one of thresholdMetric and ratioMetric")
        ratio = spec.ratioMetric
        if ratio is None:
            return
        parts = (ratio.good is not None, ratio.bad is not None, ratio.total is not None, ratio.raw is not None)
        if parts not in ((True, False, True, False), (False, True, True, False), (False, False, False, True)):
            self._fault(f"{at}.ratioMetric", "give good and total, or bad and total, or raw")
        elif ratio.raw is not None and ratio.rawType is None:
            self._fault(f"{at}.ratioMetric.rawType", "is missing; say success or failure")

    def _window(self, windows: tuple[TimeWindow, ...] | None) -> tuple[Duration, TimeWindow] | None:
        if windows is None or len(windows) != 1:
            self._fault("spec.timeWindow", f"{len(windows or ())} windows; give exactly one")
            return None
        window, at = windows[0], "spec.timeWindow[0]"
        period = self._duration(window.duration, f"{at}.duration")
        if window.isRolling is (window.calendar is not None):
            self._fault(at, "give either isRolling: true or a calendar")
            return None
        if period is None:
            return None
        if window.isRolling and period.months:
            self._fault(
                f"{at}.duration", f"{window.duration!r} has no fixed length, so it cannot roll; use days, like 30d"
            )
            return None
        if window.calendar is not None:
            if window.duration.endswith(("m", "h")):
                self._fault(
                    f"{at}.duration",
                    f"{window.duration!r} is a calendar window of minutes or hours, which is not supported; use d, w, "
                    "M, Q or Y (a month is 1M, 1m is a minute)",
                )
                return None
            try:
                zone_of(window.calendar.timeZone)
            except BadMonth as error:
                self._fault(f"{at}.calendar.timeZone", str(error).removeprefix("zone: "))
            try:
                datetime.strptime(str(window.calendar.startTime), "%Y-%m-%d %H:%M:%S")
            except ValueError:
                self._fault(
                    f"{at}.calendar.startTime",
                    f"{window.calendar.startTime!r} is no local time; write it like 2026-01-01 00:00:00",
                )
        return period, window

    def _levels(self, slo: Slo, sli: SliSpec) -> Iterator[Level]:
        objectives, method = slo.spec.objectives, slo.spec.budgetingMethod
        if not objectives:
            self._fault("spec.objectives", "is an empty list; it needs at least one entry")
        if sli.thresholdMetric is not None and len(objectives) > 1:
            self._fault("spec.objectives", f"{len(objectives)} objectives; with a thresholdMetric there is exactly one")
        for index, objective in enumerate(objectives):
            at = f"spec.objectives[{index}]"
            target = self._target(objective, at)
            slices = method is not Budgeting.OCCURRENCES
            slice_ms = self._slice(objective, at) if slices else 0
            if method is Budgeting.TIMESLICES and objective.timeSliceTarget is None:
                self._fault(f"{at}.timeSliceTarget", "is missing; Timeslices need it")
            if objective.timeSliceTarget is not None and not 0 < objective.timeSliceTarget <= 1:
                self._fault(f"{at}.timeSliceTarget", f"{float(objective.timeSliceTarget)} is not above 0 and at most 1")
            edge = None
            if sli.thresholdMetric is not None:
                if objective.op is None or objective.value is None:
                    self._fault(at, "op and value are needed with a thresholdMetric; add them")
                else:
                    edge = (objective.op, objective.value)
            if target is not None and slice_ms is not None:
                name = objective.displayName or f"objective {index + 1}"
                yield Level(name, target, objective.timeSliceTarget, slice_ms, edge)

    def _target(self, objective: Objective, at: str) -> Fraction | None:
        if (objective.target is None) is (objective.targetPercent is None):
            self._fault(at, "give exactly one of target and targetPercent")
            return None
        field = "target" if objective.target is not None else "targetPercent"
        given = objective.target if objective.target is not None else objective.targetPercent
        assert given is not None
        top = 1 if objective.target is not None else 100
        if not 0 <= given < top:
            self._fault(f"{at}.{field}", f"{float(given)} is not at least 0 and below {top}")
            return None
        return given / top

    def _slice(self, objective: Objective, at: str) -> int | None:
        field = f"{at}.timeSliceWindow"
        if objective.timeSliceWindow is None:
            self._fault(field, "is missing; time slices need it")
            return None
        text = str(objective.timeSliceWindow)
        return self._fixed(f"{text}m" if text.isdecimal() else text, field)  # a bare number is minutes

    def _duration(self, text: str, field: str) -> Duration | None:
        try:
            return duration(text)
        except ValueError as error:
            self._fault(field, str(error))
            return None

    def _source_type(self, sli: SliSpec) -> str:
        kinds = set()
        for metric in metrics_of(sli):
            source = metric.type
            if not source and metric.metricSourceRef:
                found = self._named.get((DataSource, metric.metricSourceRef))
                if not isinstance(found, DataSource):
                    self._fault("metricSourceRef", f"there is no DataSource {metric.metricSourceRef!r} here; add it")
                    continue
                source = found.spec.type
            if not source:
                self._fault("metricSource.type", "is missing; give it, or a metricSourceRef")
                continue
            kinds.add(source.lower())
        if len(kinds) > 1:
            self._fault("metricSource.type", f"{', '.join(sorted(kinds))}: one indicator has one source; use one")
        return next(iter(kinds), "")

    def _alerts(self, slo: Slo) -> Iterator[Alert]:
        for index, reference in enumerate(slo.spec.alertPolicies or ()):
            at = f"spec.alertPolicies[{index}]"
            if reference.spec is not None:
                name = reference.metadata.name if reference.metadata else f"policy-{index + 1}"
                yield from self._policy(name, reference.spec, f"{at}.spec")
                continue
            found = self._named.get((AlertPolicy, reference.alertPolicyRef))
            if isinstance(found, AlertPolicy):
                yield from self._policy(found.metadata.name, found.spec, f"{at}.alertPolicyRef")
            else:
                known = reference.alertPolicyRef
                self._fault(f"{at}.alertPolicyRef", f"there is no AlertPolicy {known!r} here; add it")

    def _policy(self, name: str, spec: AlertPolicySpec, at: str) -> Iterator[Alert]:
        if len(spec.conditions) != 1:
            self._fault(f"{at}.conditions", f"{len(spec.conditions)} conditions; the specification allows exactly one")
        for index, target in enumerate(spec.notificationTargets):
            known = isinstance(self._named.get((AlertNotificationTarget, target.targetRef)), AlertNotificationTarget)
            if target.spec is None and not known:
                self._fault(f"{at}.notificationTargets[{index}].targetRef", f"there is no {target.targetRef!r}; add it")
        for condition in spec.conditions[:1]:
            found = self._named.get((AlertCondition, condition.conditionRef))
            if condition.spec is not None:
                yield from self._condition(name, condition.spec, spec, f"{at}.conditions[0].spec")
            elif isinstance(found, AlertCondition):
                yield from self._condition(name, found.spec, spec, f"{at}.conditions[0].conditionRef")
            else:
                self._fault(f"{at}.conditions[0].conditionRef", f"there is no {condition.conditionRef!r} here; add it")

    def _condition(self, name: str, spec: AlertConditionSpec, policy: AlertPolicySpec, at: str) -> Iterator[Alert]:
        condition = spec.condition
        lookback = self._fixed(condition.lookbackWindow, f"{at}.condition.lookbackWindow")
        after = 0 if condition.alertAfter == "0m" else self._fixed(condition.alertAfter, f"{at}.condition.alertAfter")
        if lookback is not None and after is not None:
            yield Alert(
                name, spec.severity, condition.op, condition.threshold, lookback, after, policy.alertWhenBreaching,
                policy.alertWhenNoData,
            )  # fmt: skip

    def _fixed(self, text: str, field: str) -> int | None:
        found = self._duration(text, field)
        if found is not None and found.months:
            self._fault(field, f"{text!r} has no fixed length; use m, h, d or w")
            return None
        return found.ms if found is not None else None


def metrics_of(sli: SliSpec) -> Iterator[MetricSource]:
    """Every query of an indicator."""
    ratio = sli.ratioMetric or RatioMetric()
    for metric in (sli.thresholdMetric, ratio.good, ratio.bad, ratio.total, ratio.raw):
        if metric is not None:
            yield metric.metricSource
