"""The columns of the fleet table as rules and queries name them: a metric's name with its unit, and the labels.

One mapping for both languages: ``temperature`` in Cel is ``temperature_c``, ``power`` in W is ``power_w``.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from gridkeeper.telemetry import METRICS, MetricSpec


class Type(enum.Enum):
    """What a value is, and how an error calls it."""

    NUMBER = "a number"
    TRUTH = "a truth value"
    TEXT = "a text"


SUFFIX: dict[str, str] = {"1": "", "Cel": "_c", "%": "_percent", "MBy/s": "_mb_s"}
"""UCUM unit of a metric -> ending of its column, where that is not simply the unit in lower case."""


@dataclass(frozen=True, slots=True)
class Column:
    """``metric``: the metric behind it, "" for a label or a column made here. ``counter``: it has a growth."""

    name: str
    type: Type
    help: str
    metric: str = ""
    counter: bool = False


def column_name(metric: MetricSpec) -> str:
    """``clock_sm`` in MHz -> ``clock_sm_mhz``."""
    ending = SUFFIX.get(metric.unit)
    return metric.name + (f"_{re.sub('[^a-z0-9]+', '_', metric.unit.lower())}" if ending is None else ending)


LABELS: tuple[Column, ...] = (
    Column("device", Type.TEXT, "the device's id, <node>/<slot>"),
    Column("node", Type.TEXT, "its node"),
    Column("region", Type.TEXT, "its region"),
    Column("zone", Type.TEXT, "its zone"),
    Column("rack", Type.TEXT, "its rack"),
    Column("vendor", Type.TEXT, "nvidia, amd, …"),
    Column("model", Type.TEXT, "as its driver names it"),
    Column("architecture", Type.TEXT, "as its driver names it"),
    Column("job", Type.TEXT, "the job that holds it; '' when it is free"),
    Column("health", Type.TEXT, "healthy, suspect, degraded, draining, …"),
)
"""Labels of a device that are columns too; the node's own labels are for ``select`` only."""

AGE = Column("age_ms", Type.NUMBER, "since the sample was taken")

COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        *(Column(column_name(m), Type.NUMBER, m.help, m.name, m.counter) for m in METRICS),
        AGE,
        *LABELS,
    )
}
"""Name -> column, of everything that a rule may look at."""
