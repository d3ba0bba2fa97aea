"""Prometheus metrics of how far standby regions are behind each job's newest checkpoint."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric

from failover.domain.lag import lags
from gridkeeper.snapshot import GlobalState


def lag_metrics(world: GlobalState) -> Iterable[Metric]:
    """Per job and region where it may run. A region that has no checkpoint of the job: −1 steps and seconds."""
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
    return (steps, seconds, left)
