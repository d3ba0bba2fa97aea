"""The columns of ``gridkeeper get``, kind by kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gridkeeper.cli.text import age, moment, size, span
from gridkeeper.client.plain import word
from gridkeeper.v1 import api_pb2, records_pb2
from gridkeeper.v1.api_pb2 import Object


@dataclass(frozen=True, slots=True)
class Column:
    """``cell(object, now_ms)``. ``wide``: only with ``-o wide``. ``state``: coloured by what it says."""

    title: str
    cell: Callable[[Object, int], str]
    wide: bool = False
    state: bool = False


def _name(item: Object, now: int) -> str:
    return item.name


def _region(item: Object, now: int) -> str:
    return item.region or "-"


def or_dash(text: str) -> str:
    return text or "-"


def _label(key: str) -> Callable[[Object, int], str]:
    return lambda item, now: item.labels.get(key, "") or "-"


def epoch(value: records_pb2.Epoch) -> str:
    return f"{value.generation}.{value.number}" if value.number or value.generation else "-"


def _cordons(record: records_pb2.CordonRecord) -> str:
    return "; ".join(f"{reason.owner}: {reason.reason}" for reason in record.reasons)


def _metric(name: str, unit: str) -> Callable[[Object, int], str]:
    def cell(item: Object, now: int) -> str:
        for metric in item.device.metrics:
            if metric.name == name and metric.known and math.isfinite(metric.value):
                return f"{metric.value:.0f}{unit}"
        return "-"

    return cell


def _budgets(item: Object, now: int) -> str:
    held = (
        f"{b.name} {len({h.device for h in b.holds}) + len(b.begun_ms)}/{b.limit}" for b in item.region_view.budgets
    )
    return ", ".join(held) or "-"


def _step(item: Object, now: int) -> str:
    run = item.job.run
    return str(run.last_step) if item.job.HasField("run") and run.last_step >= 0 else "-"


def _checkpoint(item: Object, now: int) -> str:
    return str(item.job.head.step) if item.job.HasField("head") else "-"


def _rpo(item: Object, now: int) -> str:
    migration = item.migration
    first = migration.kind == records_pb2.MIGRATION_KIND_START  # nothing ran before that could be lost
    least = "≥ " if migration.rpo_at_least else ""
    return "-" if first or migration.rpo_steps < 0 else f"{least}{migration.rpo_steps} steps"


def route(region: str, node: str) -> str:
    return f"{region}/{node}" if region and node else region or "-"


def _loss(item: Object, now: int) -> str:
    return f"{item.job.run.last_loss:.6g}" if item.job.run.last_step >= 0 and item.job.HasField("run") else "-"


def _percent(item: Object, now: int) -> str:
    return uptime(item.sla)


def uptime(view: api_pb2.SlaView) -> str:
    """For display only; the exact figure is the rational ``uptime``. Never rounded up to 100."""
    if not view.uptime:
        return "-"
    return f"{math.floor(view.uptime_percent * 10_000) / 10_000:.4f} %"


COLUMNS: dict[int, tuple[Column, ...]] = {
    api_pb2.KIND_REGION: (
        Column("NAME", _name),
        Column("LEADER", lambda o, now: or_dash(o.region_view.leader)),
        Column("NODES", lambda o, now: f"{o.region_view.record.nodes_alive}/{o.region_view.record.nodes}"),
        Column("DEVICES", lambda o, now: str(o.region_view.record.devices)),
        Column("USABLE", lambda o, now: str(o.region_view.record.usable)),
        Column("FREE", lambda o, now: str(o.region_view.record.free)),
        Column("IN-DOUBT", _label("in_doubt"), state=True),
        Column("LOST", _label("lost"), state=True),
        Column("BUDGETS", _budgets, wide=True),
        Column("REPLICAS", lambda o, now: ", ".join(r.id for r in o.region_view.replicas) or "-", wide=True),
        Column("EXTENDED", lambda o, now: age(o.region_view.grant.extended_ms, now), wide=True),
        Column("UPDATED", lambda o, now: age(o.region_view.record.updated_ms, now), wide=True),
    ),
    api_pb2.KIND_LOSS: (
        Column("REGION", _name),
        Column("STATE", _label("state"), state=True),
        Column("SILENT", lambda o, now: age(o.loss.silent_ms, now)),
        Column("JOBS", lambda o, now: str(o.loss.jobs)),
        Column("DECIDED-BY", lambda o, now: or_dash(o.loss.decided_by)),
        Column("VETO-WINDOW", lambda o, now: span(o.loss.veto_window_ms), wide=True),
        Column("REASON", lambda o, now: o.loss.reason),
    ),
    api_pb2.KIND_NODE: (
        Column("NAME", _name),
        Column("REGION", _region),
        Column("RACK", _label("rack")),
        Column("STATE", _label("state"), state=True),
        Column("USABLE", lambda o, now: f"{o.node.devices_usable}/{len(o.node.record.devices)}"),
        Column("CORDONED", _label("cordoned")),
        Column("SINCE", lambda o, now: age(o.node.liveness.since_ms, now)),
        Column("REPLICA", lambda o, now: or_dash(o.node.replica), wide=True),
        Column("HEARD", lambda o, now: span(o.node.heard_age_ms), wide=True),
        Column("AGENT", lambda o, now: or_dash(o.node.record.agent_version), wide=True),
        Column("BACKENDS", lambda o, now: ",".join(o.node.record.backends) or "-", wide=True),
        Column("CORDONS", lambda o, now: or_dash(_cordons(o.node.cordon)), wide=True),
        Column("REASON", lambda o, now: or_dash(o.node.liveness.reason), wide=True),
    ),
    api_pb2.KIND_DEVICE: (
        Column("NAME", _name),
        Column("REGION", _region),
        Column("MODEL", _label("model")),
        Column("HEALTH", _label("health"), state=True),
        Column("CORDONED", _label("cordoned")),
        Column("JOB", _label("job")),
        Column("TEMP", _metric("temperature", "°C")),
        Column("UTIL", _metric("utilisation", "%")),
        Column("SINCE", lambda o, now: age(o.device.health.since_ms, now)),
        Column("VENDOR", _label("vendor"), wide=True),
        Column("UUID", lambda o, now: or_dash(o.device.record.uuid), wide=True),
        Column("PCI", lambda o, now: or_dash(o.device.record.pci_bus_id), wide=True),
        Column("DRIVER", lambda o, now: or_dash(o.device.record.driver_version), wide=True),
        Column("MEMORY", lambda o, now: f"{o.device.record.memory_mib} MiB", wide=True),
        Column("INCIDENT", lambda o, now: or_dash(o.device.health.incident), wide=True),
        Column("DRAIN", lambda o, now: or_dash(o.device.health.drain), wide=True),
        Column("CORDONS", lambda o, now: or_dash(_cordons(o.device.cordon)), wide=True),
        Column("REASON", lambda o, now: or_dash(o.device.health.reason), wide=True),
    ),
    api_pb2.KIND_INCIDENT: (
        Column("NAME", _name),
        Column("REGION", _region),
        Column("SUBJECT", lambda o, now: o.incident.subject),
        Column("CLASS", _label("class")),
        Column("SEVERITY", _label("severity"), state=True),
        Column("STATE", _label("state"), state=True),
        Column("AGE", lambda o, now: age(o.incident.opened_ms, now)),
        Column("DRAIN", _label("drain")),
        Column("COUNT", lambda o, now: str(o.incident.count), wide=True),
        Column("ACKNOWLEDGED-BY", lambda o, now: or_dash(o.incident.acknowledged_by), wide=True),
        Column("RESOLUTION", lambda o, now: or_dash(o.incident.resolution), wide=True),
        Column("TITLE", lambda o, now: o.incident.title),
    ),
    api_pb2.KIND_DRAIN: (
        Column("NAME", _name),
        Column("REGION", _region),
        Column("DEVICE", _label("device")),
        Column("STATE", _label("state"), state=True),
        Column("AGE", lambda o, now: age(o.drain.planned_ms, now)),
        Column("JOBS", lambda o, now: ",".join(o.drain.jobs) or "-"),
        Column("INCIDENT", _label("incident")),
        Column("BUDGETS", lambda o, now: ",".join(o.drain.budgets) or "-", wide=True),
        Column("REQUESTED-BY", lambda o, now: or_dash(o.drain.requested_by), wide=True),
        Column("REASON", lambda o, now: o.drain.reason, wide=True),
    ),
    api_pb2.KIND_JOB: (
        Column("NAME", _name),
        Column("STATE", _label("state"), state=True),
        Column("REGION", _region),
        Column("NODE", _label("node")),
        Column("DEVICES", lambda o, now: str(o.job.record.spec.devices * max(1, o.job.record.spec.nodes))),
        Column("EPOCH", lambda o, now: epoch(o.job.ownership.epoch)),
        Column("STEP", _step),
        Column("CHECKPOINT", _checkpoint),
        Column("RESTARTS", lambda o, now: str(o.job.record.restarts)),
        Column("AGE", lambda o, now: age(o.job.record.submitted_ms, now)),
        Column("LOSS", _loss, wide=True),
        Column("DESIRED", _label("desired"), wide=True),
        Column("NAMESPACE", _label("namespace"), wide=True),
        Column("MIGRATION", lambda o, now: or_dash(o.job.record.migration), wide=True),
        Column("SUBMITTED-BY", lambda o, now: or_dash(o.job.record.submitted_by), wide=True),
        Column("REASON", lambda o, now: or_dash(o.job.record.reason), wide=True),
    ),
    api_pb2.KIND_MIGRATION: (
        Column("NAME", _name),
        Column("JOB", _label("job")),
        Column("KIND", _label("kind")),
        Column("STATE", _label("state"), state=True),
        Column("FROM", lambda o, now: route(o.migration.source_region, o.migration.source_node)),
        Column("TO", lambda o, now: route(o.migration.target_region, o.migration.target_node)),
        Column("RTO", lambda o, now: span(o.migration.rto_ms)),
        Column("RPO", _rpo),
        Column("AGE", lambda o, now: age(o.migration.requested_ms, now)),
        Column("EPOCH", lambda o, now: epoch(o.migration.target_epoch), wide=True),
        Column("DEVICES", lambda o, now: ",".join(o.migration.target_devices) or "-", wide=True),
        Column("DRAIN", _label("drain"), wide=True),
        Column("INCIDENT", _label("incident"), wide=True),
        Column("REFUSED", lambda o, now: "; ".join(o.migration.refused) or "-", wide=True),
        Column("REQUESTED-BY", lambda o, now: or_dash(o.migration.requested_by), wide=True),
        Column("REASON", lambda o, now: o.migration.reason, wide=True),
    ),
    api_pb2.KIND_CHECKPOINT: (
        Column("NAME", _name),
        Column("EPOCH", lambda o, now: epoch(o.checkpoint.record.epoch)),
        Column("SIZE", lambda o, now: size(o.checkpoint.record.size_bytes)),
        Column("HEAD", _label("head")),
        Column("SUSPECT", _label("suspect")),
        Column("DAMAGED", _label("damaged")),
        Column("REGIONS", lambda o, now: ",".join(o.checkpoint.regions)),
        Column("AGE", lambda o, now: age(o.checkpoint.record.committed_ms, now)),
        Column("DIGEST", lambda o, now: o.checkpoint.record.digest, wide=True),
    ),
    api_pb2.KIND_SLA: (
        Column("SCOPE", _name),
        Column("UPTIME", _percent),
        Column("NOW", _label("current"), state=True),
        Column("UP", lambda o, now: span(o.sla.totals.up_ms)),
        Column("DEGRADED", lambda o, now: span(o.sla.totals.degraded_ms)),
        Column("DOWN", lambda o, now: span(o.sla.totals.down_ms)),
        Column("EXCLUDED", lambda o, now: span(o.sla.totals.excluded_ms)),
        Column("UNKNOWN", lambda o, now: span(o.sla.totals.unknown_ms)),
        Column("MONTH", lambda o, now: o.sla.account.month, wide=True),
        Column("EXACT", lambda o, now: or_dash(o.sla.uptime), wide=True),
        Column("REASON", lambda o, now: o.sla.account.reason, wide=True),
    ),
    api_pb2.KIND_EVENT: (
        Column("SEEN", lambda o, now: moment(o.event.observed_ms)),
        Column("NODE", _label("node")),
        Column("DEVICE", _label("device")),
        Column("KIND", lambda o, now: word(o.event, "kind")),
        Column("CODE", lambda o, now: str(o.event.code)),
        Column("COUNT", lambda o, now: str(o.event.count)),
        Column("SOURCES", lambda o, now: ",".join(o.event.sources)),
        Column("NAME", _name, wide=True),
        Column("PID", lambda o, now: str(o.event.pid or "-"), wide=True),
        Column("JOB", _label("job"), wide=True),
        Column("MESSAGE", lambda o, now: or_dash(o.event.message)),
    ),
    api_pb2.KIND_AUDIT: (
        Column("AT", lambda o, now: moment(o.audit.at_ms)),
        Column("ACTOR", lambda o, now: o.audit.actor),
        Column("VERB", lambda o, now: o.audit.verb),
        Column("OBJECT", lambda o, now: or_dash(o.audit.object)),
        Column("RESULT", lambda o, now: o.audit.result, state=True),
        Column("NAME", _name, wide=True),
        Column("REVISION", lambda o, now: str(o.audit.revision), wide=True),
        Column("FROM", lambda o, now: or_dash(o.audit.origin), wide=True),
        Column("TRACE", lambda o, now: or_dash(o.audit.trace), wide=True),
        Column("SENTENCE", lambda o, now: o.audit.sentence),
    ),
    api_pb2.KIND_REPAIR: (
        Column("NAME", _name),
        Column("SUBJECT", lambda o, now: o.repair.device or o.repair.node),
        Column("KIND", _label("kind")),
        Column("STATE", _label("state"), state=True),
        Column("ATTEMPT", lambda o, now: str(o.repair.attempt)),
        Column("AGE", lambda o, now: age(o.repair.proposed_ms, now)),
        Column("DECIDED-BY", lambda o, now: or_dash(o.repair.decided_by)),
        Column("DRAIN", _label("drain"), wide=True),
        Column("RESULT", lambda o, now: or_dash(o.repair.result)),
        Column("REASON", lambda o, now: o.repair.reason, wide=True),
    ),
    api_pb2.KIND_MAINTENANCE: (
        Column("NAME", _name),
        Column("REGION", _region),
        Column("TARGET", _label("target")),
        Column("STATE", _label("state"), state=True),
        Column("FROM", lambda o, now: moment(o.maintenance.from_ms)),
        Column("UNTIL", lambda o, now: moment(o.maintenance.until_ms)),
        Column("LEAD", lambda o, now: span(o.maintenance.lead_ms)),
        Column("ANNOUNCED-BY", lambda o, now: or_dash(o.maintenance.announced_by), wide=True),
        Column("REASON", lambda o, now: o.maintenance.reason),
    ),
    api_pb2.KIND_FINDING: (
        Column("NAME", _name),
        Column("SUBJECT", lambda o, now: o.finding.device or o.finding.node),
        Column("SEVERITY", _label("severity"), state=True),
        Column("CLASS", _label("class")),
        Column("CODE", _label("code")),
        Column("ACTION", _label("action")),
        Column("ACTIVE", _label("active")),
        Column("AGE", lambda o, now: age(o.finding.observed_ms, now)),
        Column("RULE", lambda o, now: f"{o.finding.rule} v{o.finding.rule_version}", wide=True),
        Column("EVIDENCE", lambda o, now: ",".join(o.finding.evidence), wide=True),
        Column("SENTENCE", lambda o, now: o.finding.sentence),
    ),
    api_pb2.KIND_BREAKER: (
        Column("NAME", _name),
        Column("STATE", _label("state"), state=True),
        Column("SINCE", lambda o, now: age(o.breaker.since_ms, now)),
        Column("TRIPS", lambda o, now: str(o.breaker.trips)),
        Column("PASSED", lambda o, now: str(len(o.breaker.passed_ms)), wide=True),
        Column("REASON", lambda o, now: or_dash(o.breaker.reason)),
    ),
}


def columns(kind: int, wide: bool) -> tuple[Column, ...]:
    return tuple(column for column in COLUMNS[kind] if wide or not column.wide)
