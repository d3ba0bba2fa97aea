"""What moves without a record changing: added to an object when it is sent, never part of what a watch compares."""

from __future__ import annotations

import dataclasses
import math

from controlplane.domain.sla import elapsed, totals_at, uptime_of
from controlplane.rpc.sources import MetricSample, Views
from gridkeeper import codec
from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.records.books import AccountRecord
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
    uptime = uptime_of(totals)
    return SlaView(
        account=_account(account),
        totals=records_pb2.Totals(**dataclasses.asdict(totals)),
        elapsed_ms=elapsed(totals),
        as_of_ms=as_of,
        uptime="" if uptime is None else f"{uptime.numerator}/{uptime.denominator}",
        uptime_percent=0.0 if uptime is None else float(100 * uptime),
    )


def _account(account: AccountRecord) -> records_pb2.AccountRecord:
    message = codec.to_message(account)
    assert isinstance(message, records_pb2.AccountRecord)
    return message
