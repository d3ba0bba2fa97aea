"""OpenSLO v1 objects, as the specification (github.com/OpenSLO/OpenSLO) writes them: fields have its names, and
``gridkeeper.configfile`` reads them strictly. What a field means is in ``objectives``."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from fractions import Fraction

from gridkeeper.configfile import Verbatim, Written
from gridkeeper.records.common import Label

API = "openslo/v1"


class Budgeting(enum.StrEnum):
    OCCURRENCES = "Occurrences"
    TIMESLICES = "Timeslices"
    RATIO_TIMESLICES = "RatioTimeslices"


class Op(enum.StrEnum):
    LTE = "lte"
    GTE = "gte"
    LT = "lt"
    GT = "gt"


class RawType(enum.StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"


class ConditionKind(enum.StrEnum):
    BURN_RATE = "burnrate"


@dataclass(frozen=True, slots=True)
class Metadata:
    name: str
    displayName: str = ""
    labels: Verbatim | None = None
    annotations: tuple[Label, ...] | None = None


@dataclass(frozen=True, slots=True)
class MetricSource:
    """``spec``: what this kind of source needs, as JSON text."""

    type: str = ""
    metricSourceRef: str = ""
    spec: Verbatim | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    metricSource: MetricSource


@dataclass(frozen=True, slots=True)
class RatioMetric:
    counter: bool = False
    good: Metric | None = None
    bad: Metric | None = None
    total: Metric | None = None
    rawType: RawType | None = None
    raw: Metric | None = None


@dataclass(frozen=True, slots=True)
class SliSpec:
    description: str = ""
    thresholdMetric: Metric | None = None
    ratioMetric: RatioMetric | None = None


@dataclass(frozen=True, slots=True)
class Indicator:
    """An SLI inside an SLO."""

    spec: SliSpec
    metadata: Metadata | None = None


@dataclass(frozen=True, slots=True)
class Calendar:
    startTime: Written
    timeZone: str


@dataclass(frozen=True, slots=True)
class TimeWindow:
    duration: str
    isRolling: bool = False
    calendar: Calendar | None = None


@dataclass(frozen=True, slots=True)
class Objective:
    displayName: str = ""
    op: Op | None = None
    value: Fraction | None = None
    target: Fraction | None = None
    targetPercent: Fraction | None = None
    timeSliceTarget: Fraction | None = None
    timeSliceWindow: Written | None = None
    indicator: Indicator | None = None
    indicatorRef: str = ""
    compositeWeight: Fraction | None = None


@dataclass(frozen=True, slots=True)
class ConditionSpec:
    op: Op
    threshold: Fraction
    lookbackWindow: str
    kind: ConditionKind = ConditionKind.BURN_RATE
    alertAfter: str = "0m"


@dataclass(frozen=True, slots=True)
class AlertConditionSpec:
    severity: str
    condition: ConditionSpec
    description: str = ""


@dataclass(frozen=True, slots=True)
class InlineCondition:
    """A condition in a policy: by reference, or written out."""

    conditionRef: str = ""
    kind: str = "AlertCondition"
    metadata: Metadata | None = None
    spec: AlertConditionSpec | None = None


@dataclass(frozen=True, slots=True)
class TargetSpec:
    target: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class InlineTarget:
    targetRef: str = ""
    kind: str = "AlertNotificationTarget"
    metadata: Metadata | None = None
    spec: TargetSpec | None = None


@dataclass(frozen=True, slots=True)
class AlertPolicySpec:
    conditions: tuple[InlineCondition, ...]
    notificationTargets: tuple[InlineTarget, ...] = ()
    description: str = ""
    alertWhenNoData: bool = False
    alertWhenResolved: bool = False
    alertWhenBreaching: bool = False


@dataclass(frozen=True, slots=True)
class PolicyRef:
    alertPolicyRef: str = ""
    kind: str = "AlertPolicy"
    metadata: Metadata | None = None
    spec: AlertPolicySpec | None = None


@dataclass(frozen=True, slots=True)
class SloSpec:
    service: str
    budgetingMethod: Budgeting
    objectives: tuple[Objective, ...]
    description: str = ""
    indicator: Indicator | None = None
    indicatorRef: str = ""
    timeWindow: tuple[TimeWindow, ...] | None = None
    alertPolicies: tuple[PolicyRef, ...] | None = None


@dataclass(frozen=True, slots=True)
class DataSourceSpec:
    type: str
    description: str = ""
    connectionDetails: Verbatim | None = None


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    description: str = ""


@dataclass(frozen=True, slots=True)
class Slo:
    apiVersion: str
    kind: str
    metadata: Metadata
    spec: SloSpec


@dataclass(frozen=True, slots=True)
class Sli:
    apiVersion: str
    kind: str
    metadata: Metadata
    spec: SliSpec


@dataclass(frozen=True, slots=True)
class Service:
    apiVersion: str
    kind: str
    metadata: Metadata
    spec: ServiceSpec


@dataclass(frozen=True, slots=True)
class DataSource:
    apiVersion: str
    kind: str
    metadata: Metadata
    spec: DataSourceSpec


@dataclass(frozen=True, slots=True)
class AlertPolicy:
    apiVersion: str
    kind: str
    metadata: Metadata
    spec: AlertPolicySpec


@dataclass(frozen=True, slots=True)
class AlertCondition:
    apiVersion: str
    kind: str
    metadata: Metadata
    spec: AlertConditionSpec


@dataclass(frozen=True, slots=True)
class AlertNotificationTarget:
    apiVersion: str
    kind: str
    metadata: Metadata
    spec: TargetSpec


Document = Slo | Sli | Service | DataSource | AlertPolicy | AlertCondition | AlertNotificationTarget

KINDS: dict[str, type[Document]] = {
    "SLO": Slo,
    "SLI": Sli,
    "Service": Service,
    "DataSource": DataSource,
    "AlertPolicy": AlertPolicy,
    "AlertCondition": AlertCondition,
    "AlertNotificationTarget": AlertNotificationTarget,
}
