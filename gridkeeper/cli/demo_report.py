"""The report at the end of a story: incident, drain, migration with RPO and RTO by stage, SLA. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from gridkeeper.cli.demo_checks import Verdict
from gridkeeper.cli.narrate import outcome
from gridkeeper.cli.text import span
from gridkeeper.records.common import Stamp
from gridkeeper.records.faults import DrainRecord, IncidentRecord
from gridkeeper.records.jobs import MigrationRecord
from gridkeeper.v1.api_pb2 import SlaView

INDENT = "  "


def incident_lines(incidents: Iterable[IncidentRecord]) -> list[str]:
    lines = []
    for incident in incidents:
        lines.append(f"incident   {incident.id}: {incident.title}")
        lines.append(f"           {incident.severity}, {incident.state}, {len(incident.findings)} finding(s)")
    return lines


def drain_lines(drains: Iterable[DrainRecord]) -> list[str]:
    lines = []
    for drain in drains:
        lines.append(f"drain      {drain.id}: {drain.device} {drain.state}")
        lines.append(f"           reason: {drain.reason}")
        lines.append(
            f"           budgets: {', '.join(drain.budgets)}; stages: {_stages(drain.stages, drain.planned_ms)}"
        )
    return lines


def migration_lines(migrations: Iterable[MigrationRecord]) -> list[str]:
    lines = []
    for move in migrations:
        source = f"{move.source_node} ({move.source_region}) at epoch {move.source_epoch}"
        target = f"{move.target_node} ({move.target_region}) at epoch {move.target_epoch}"
        lines.append(f"migration  {move.id} ({move.kind}): from {source} to {target}: {move.state}")
        lines.append(f"           reason: {move.reason}")
        lines.append(f"           {outcome(move)}; resumed from step {move.resume_step}")
        lines.append(f"           RTO by stage, since the fault: {_stages(move.stages, move.fault_ms)}")
    return lines


def sla_lines(slas: Iterable[SlaView]) -> list[str]:
    """Uptime of each scope; what is not up is named."""
    lines = []
    for sla in slas:
        totals = sla.totals
        parts = [
            f"{name} {span(ms)}"
            for name, ms in (
                ("up", totals.up_ms),
                ("degraded", totals.degraded_ms),
                ("down", totals.down_ms),
                ("excluded", totals.excluded_ms),
                ("unknown", totals.unknown_ms),
            )
            if ms
        ]
        percent = f"{sla.uptime_percent:.3f} %" if sla.uptime else "no uptime yet"
        lines.append(f"SLA        {sla.account.scope}: {percent} ({', '.join(parts)})")
    return lines


def verdict_lines(verdicts: Iterable[Verdict]) -> list[str]:
    return [f"{'true ' if verdict.true else 'FALSE'}      {verdict.claim}: {verdict.detail}" for verdict in verdicts]


def _stages(stages: tuple[Stamp, ...], since_ms: int) -> str:
    return ", ".join(f"{stamp.name.replace('_', ' ')} +{span(max(0, stamp.at_ms - since_ms))}" for stamp in stages)
