"""What moves without a record changing: added to an object when it is sent, never part of what a watch compares."""

from __future__ import annotations

import dataclasses
import math

from controlplane.rpc.sources import MetricSample, Views
from gridkeeper import codec
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.records.books import AccountRecord, Totals, UptimeClass
from gridkeeper.v1 import api_pb2, records_pb2
from gridkeeper.v1.api_pb2 import Metric, Object, SlaView


def with_live(item: Object, views: Views, recent: bool = False) -> Object:
    """``item``, or a copy with its live parts. ``recent``: rings for sparklines too."""
    if item.kind == api_pb2.KIND_NODE:
        fresh = _copy(item)
        fresh.node.heard_age_ms = views.heard_age_ms(NodeId(item.name))
        return fresh
    if item.kind == api_pb2.KIND_DEVICE:
        telemetry = views.telemetry(DeviceId(item.name), recent)
        if telemetry is None:
            return item
        fresh = _copy(item)
        fresh.device.metrics_age_ms = telemetry.age_ms
        fresh.device.metrics.extend(_metric(sample) for sample in telemetry.metrics)
        return fresh
    if item.kind == api_pb2.KIND_SLA:
        fresh = _copy(item)
        fresh.sla.CopyFrom(sla_view(codec.from_message(AccountRecord, item.sla.account), views.now().ledger_ms))
        return fresh
    return item


def _copy(item: Object) -> Object:
    fresh = Object()
    fresh.CopyFrom(item)
    return fresh


def _metric(sample: MetricSample) -> Metric:
    known = math.isfinite(sample.value)
    return Metric(
        name=sample.name, unit=sample.unit, value=sample.value if known else 0.0, known=known, recent=sample.recent
    )


def sla_view(account: AccountRecord, now_ms: int) -> SlaView:
    """The account with its open interval up to ``now_ms`` (ledger time), never before the account's own last word."""
    as_of = max(now_ms, account.since_ms)
    totals = totals_at(account, as_of)
    good = totals.up_ms + totals.degraded_ms
    counted = good + totals.down_ms
    return SlaView(
        account=_account(account),
        totals=records_pb2.Totals(**dataclasses.asdict(totals)),
        elapsed_ms=as_of - account.opened_ms,
        as_of_ms=as_of,
        uptime=f"{good}/{counted}" if counted else "",
        uptime_percent=100.0 * good / counted if counted else 0.0,
    )


def _account(account: AccountRecord) -> records_pb2.AccountRecord:
    message = codec.to_message(account)
    assert isinstance(message, records_pb2.AccountRecord)
    return message


def totals_at(account: AccountRecord, at_ms: int) -> Totals:
    """Totals with the open interval [since_ms, at_ms) booked to the class that holds."""
    open_ms = max(0, at_ms - account.since_ms)
    field = {
        UptimeClass.UP: "up_ms",
        UptimeClass.DEGRADED: "degraded_ms",
        UptimeClass.DOWN: "down_ms",
        UptimeClass.EXCLUDED: "excluded_ms",
        UptimeClass.UNKNOWN: "unknown_ms",
    }[account.current]
    return dataclasses.replace(account.totals, **{field: getattr(account.totals, field) + open_ms})
