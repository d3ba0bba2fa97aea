"""Indicators that this grid measures itself: what an SLI of a source of type ``gridkeeper`` may ask for. Pure."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass

from gridkeeper.sla.objectives import Goal
from gridkeeper.sla.openslo import RawType


class Where(enum.StrEnum):
    """Whose leader measures it."""

    REGION = "region"
    GLOBAL = "global"


@dataclass(frozen=True, slots=True)
class Indicator:
    """``share``: good of total at each minute; else values of what happened, to be compared with an edge."""

    where: Where
    share: bool
    meaning: str


INDICATORS: dict[str, Indicator] = {
    "device-availability": Indicator(Where.REGION, True, "devices that are healthy, suspect or degraded, of all"),
    "node-availability": Indicator(Where.REGION, True, "nodes that are alive, of all"),
    "region-availability": Indicator(Where.REGION, True, "1 while the region's account is up or degraded, 0 if down"),
    "capacity": Indicator(Where.REGION, True, "devices whose account is up or degraded, of `sold`; at most all"),
    "time-to-detect": Indicator(Where.REGION, False, "seconds from the first evidence to the incident"),
    "time-to-drain": Indicator(Where.REGION, False, "seconds from the plan of a drain to its end; failed ones are bad"),
    "job-uptime": Indicator(Where.GLOBAL, True, "jobs whose account is up or degraded, of those that should run"),
    "goodput": Indicator(Where.GLOBAL, True, "time between a job's first and last steps less work lost, of its life"),
    "rto": Indicator(Where.GLOBAL, False, "seconds from a fault to the first new step; a move that fails is bad"),
    "rpo": Indicator(Where.GLOBAL, False, "seconds of work that a move lost"),
    "replication-lag": Indicator(Where.GLOBAL, False, "seconds of work that a region's store is behind, each minute"),
}
MISSING = {
    "step-time-p99": "the control plane stores how far jobs have come, not the time of each step",
    "request-latency-p99": "progress lines of services are not stored",
    "time-to-first-token": "progress lines of services are not stored",
    "error-ratio": "progress lines of services are not stored",
    "tokens-per-second": "progress lines' tokens are not stored",
    "cost-per-token": "progress lines' tokens are not stored, and there are no prices per device-hour",
}
"""Indicators that are asked for, and why there is none."""


class NotMeasured(ValueError):
    """This grid cannot measure that SLO. The message names the field and the remedy."""


@dataclass(frozen=True, slots=True)
class Asked:
    """``region``: only there ("": in each). ``sold``: of the capacity. ``failure``: its share is of errors."""

    name: str
    indicator: Indicator
    region: str
    sold: int
    failure: bool


def asked(goal: Goal) -> Asked:
    """Raises ``NotMeasured``."""
    where = f"SLO {goal.name}: metricSource"
    if goal.source != "gridkeeper":
        raise NotMeasured(f"{where}.type: {goal.source!r} is not measured here; use 'gridkeeper slo rules'")
    ratio = goal.sli.ratioMetric
    metric = goal.sli.thresholdMetric or (ratio.raw if ratio else None)
    if metric is None:
        raise NotMeasured(f"SLO {goal.name}: ratioMetric: a share is one indicator here; use raw")
    spec = json.loads(metric.metricSource.spec) if metric.metricSource.spec else {}
    name = spec.get("sli") if isinstance(spec, dict) else None
    if name in MISSING:
        raise NotMeasured(f"{where}.spec.sli: {name} is not measured: {MISSING[name]}")
    if name not in INDICATORS:
        raise NotMeasured(f"{where}.spec.sli: {name!r} is none; there are {', '.join(INDICATORS)}")
    indicator = INDICATORS[name]
    if not indicator.share and goal.sli.thresholdMetric is None:
        raise NotMeasured(f"{where}.spec.sli: {name} has values; use a thresholdMetric with op and value (seconds)")
    unknown = sorted(set(spec) - {"sli", "region", "sold"})
    if unknown:
        raise NotMeasured(f"{where}.spec.{unknown[0]}: there is no such field; use sli, region, sold")
    region, sold = spec.get("region", ""), spec.get("sold", 0)
    if not isinstance(region, str) or (region and indicator.where is not Where.REGION):
        raise NotMeasured(f"{where}.spec.region: {region!r} cannot be chosen for {name}; leave it out")
    if (name == "capacity") is not (type(sold) is int and sold > 0):
        raise NotMeasured(f"{where}.spec.sold: {sold!r}; capacity needs how many devices were sold, others none")
    return Asked(name, indicator, region, sold, ratio is not None and ratio.rawType is RawType.FAILURE)
