"""What is measured of objectives, and the alerts that come of it. In the store that the indicator is read from: a
region's, or the global one. Written by its leader, a minute at a time."""

from __future__ import annotations

from dataclasses import dataclass

from gridkeeper.records.common import Label


@dataclass(frozen=True, slots=True)
class SloHourRecord:
    """slo-hours/<slo>/<objective>/<hour, 10 digits>: the minutes of one hour that were measured, in order: ``minutes``
    are 0 to 59, ``good`` of ``total`` in the indicator's unit. A minute that is not there was not measured."""

    slo: str
    objective: int
    hour: int  # since the Unix epoch
    minutes: tuple[int, ...]
    good: tuple[int, ...]
    total: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SloAlertRecord:
    """slo-alerts/<slo>/<objective>/<name>: an alert that fires, is about to, or has ended and not everybody was told.
    ``told``: the places that know of the state as it is."""

    slo: str
    objective: int
    name: str
    alert: str  # as the written Prometheus rules call it
    labels: tuple[Label, ...]
    summary: str
    firing: bool
    pending_ms: int  # since when its condition holds; 0: it does not
    since_ms: int  # when it began to fire; 0: not yet
    ended_ms: int  # when it ceased; 0: it has not
    told: tuple[str, ...] = ()
