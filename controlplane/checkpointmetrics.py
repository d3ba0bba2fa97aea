"""Prometheus metrics of checkpoints: how many there are, and how far standby regions are behind the newest ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric

from failover.domain.lag import lags
from gridkeeper.records.jobs import CheckpointRecord
from gridkeeper.snapshot import GlobalState


def checkpoint_metrics(world: GlobalState) -> Iterable[Metric]:
    """Lags per job and region where it may run; a region that has no checkpoint of the job: −1 steps and seconds."""
    yield _counts(world)
    steps = GaugeMetricFamily(
        "gridkeeper_checkpoint_lag_steps",
        "steps from the region's checkpoint to the newest",
        labels=["job", "region"],
    )
    seconds = GaugeMetricFamily(
        "gridkeeper_checkpoint_lag_seconds", "time between their commits", labels=["job", "region"]
    )
    left = GaugeMetricFamily("gridkeeper_checkpoint_lag_bytes", "still to be copied, at most", labels=["job", "region"])
    for lag in lags(world):
        labels = [lag.job, lag.region]
        steps.add_metric(labels, lag.steps)
        seconds.add_metric(labels, lag.work_ms / 1000 if lag.work_ms >= 0 else -1)
        left.add_metric(labels, lag.bytes)
    yield from (steps, seconds, left)


def _counts(world: GlobalState) -> Metric:
    family = GaugeMetricFamily("gridkeeper_checkpoints", "checkpoints by state", labels=["state"])
    counts = Counter(_state(v.record) for v in world.checkpoints.values())
    for state in ("kept", "suspect", "damaged", "expiring"):
        family.add_metric([state], counts[state])
    return family


def _state(record: CheckpointRecord) -> str:
    if record.expires_ms:
        return "expiring"
    if record.damage:
        return "damaged"
    return "suspect" if record.suspect else "kept"
