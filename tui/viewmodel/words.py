"""The states of things: word, glyph and tone. Glyph and word alone tell states apart; the tone only helps the eye.

A number that this version does not know (a newer server), an unset field and a missing record all read ``unknown``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from gridkeeper.v1 import records_pb2 as pb
from tui.viewmodel.text import Span, Spans, Tone


@dataclass(frozen=True, slots=True)
class Mark:
    """How one state is shown."""

    word: str
    glyph: str
    tone: Tone

    def spans(self) -> Spans:
        return (Span(f"{self.glyph} {self.word}", self.tone),)


UNKNOWN = Mark("unknown", "?", Tone.UNKNOWN)


def _marks(wrapper: Any, prefix: str, looks: dict[str, tuple[str, Tone]]) -> dict[int, Mark]:
    marks: dict[int, Mark] = {}
    for name, number in wrapper.items():
        word = re.sub(f"^{prefix}_", "", name).lower()
        if word in looks:
            glyph, tone = looks[word]
            marks[number] = Mark(word.replace("_", " "), glyph, tone)
    return marks


HEALTH = _marks(
    pb.HealthState,
    "HEALTH_STATE",
    {
        "healthy": ("■", Tone.GOOD),
        "suspect": ("s", Tone.WARN),
        "degraded": ("d", Tone.WARN),
        "draining": ("▼", Tone.BAD),
        "drained": ("▽", Tone.BAD),
        "repairing": ("r", Tone.INFO),
        "probation": ("p", Tone.INFO),
        "retired": ("×", Tone.DIM),
    },
)
NODE = _marks(
    pb.NodeState,
    "NODE_STATE",
    {"alive": ("●", Tone.GOOD), "unreachable": ("◌", Tone.WARN), "failed": ("×", Tone.BAD)},
)
SEVERITY = _marks(
    pb.Severity,
    "SEVERITY",
    {
        "info": ("·", Tone.INFO),
        "warning": ("▲", Tone.WARN),
        "error": ("■", Tone.BAD),
        "fatal": ("◆", Tone.FATAL),
    },
)
INCIDENT = _marks(
    pb.IncidentState,
    "INCIDENT_STATE",
    {"open": ("!", Tone.BAD), "acknowledged": ("○", Tone.WARN), "resolved": ("✓", Tone.DIM)},
)
DRAIN = _marks(
    pb.DrainState,
    "DRAIN_STATE",
    {
        "planned": ("…", Tone.INFO),
        "admitted": ("▼", Tone.INFO),
        "evacuating": ("▼", Tone.WARN),
        "drained": ("✓", Tone.GOOD),
        "refused": ("×", Tone.BAD),
        "cancelled": ("–", Tone.DIM),
        "failed": ("×", Tone.BAD),
        "expired": ("!", Tone.BAD),
        "shadow": ("·", Tone.DIM),
    },
)
REPAIR = _marks(
    pb.RepairState,
    "REPAIR_STATE",
    {
        "proposed": ("?", Tone.WARN),
        "approved": ("…", Tone.INFO),
        "running": ("▶", Tone.INFO),
        "done": ("✓", Tone.GOOD),
        "failed": ("×", Tone.BAD),
        "rejected": ("–", Tone.DIM),
        "expired": ("–", Tone.DIM),
        "lost": ("?", Tone.UNKNOWN),
    },
)
MAINTENANCE = _marks(
    pb.MaintenanceState,
    "MAINTENANCE_STATE",
    {
        "planned": ("…", Tone.INFO),
        "active": ("▶", Tone.WARN),
        "ended": ("✓", Tone.DIM),
        "cancelled": ("–", Tone.DIM),
    },
)
JOB = _marks(
    pb.JobState,
    "JOB_STATE",
    {
        "pending": ("…", Tone.WARN),
        "starting": ("▸", Tone.INFO),
        "running": ("●", Tone.GOOD),
        "stopping": ("◌", Tone.WARN),
        "stopped": ("–", Tone.DIM),
        "succeeded": ("✓", Tone.GOOD),
        "failed": ("×", Tone.BAD),
    },
)
MIGRATION = _marks(
    pb.MigrationState,
    "MIGRATION_STATE",
    {
        "planned": ("…", Tone.INFO),
        "pre_copying": ("▸", Tone.INFO),
        "stopping": ("▸", Tone.WARN),
        "fencing": ("▸", Tone.WARN),
        "source_fenced": ("▸", Tone.WARN),
        "copying": ("▸", Tone.WARN),
        "verified": ("▸", Tone.WARN),
        "ownership_moved": ("▸", Tone.WARN),
        "starting": ("▸", Tone.INFO),
        "running": ("●", Tone.GOOD),
        "done": ("✓", Tone.GOOD),
        "cancelled": ("–", Tone.DIM),
        "rolled_back": ("↩", Tone.WARN),
        "failed": ("×", Tone.BAD),
    },
)
UPTIME = _marks(
    pb.UptimeClass,
    "UPTIME_CLASS",
    {
        "up": ("●", Tone.GOOD),
        "degraded": ("d", Tone.WARN),
        "down": ("×", Tone.BAD),
        "excluded": ("–", Tone.DIM),
        "unknown": ("?", Tone.UNKNOWN),
    },
)
EVENT_KIND = _marks(
    pb.EventKind,
    "EVENT_KIND",
    {
        "xid": ("x", Tone.BAD),
        "sxid": ("x", Tone.BAD),
        "device_missing": ("-", Tone.BAD),
        "device_found": ("+", Tone.GOOD),
        "driver_hang": ("!", Tone.BAD),
        "overflow": ("≈", Tone.WARN),
        "boot": ("↻", Tone.INFO),
        "host": ("h", Tone.INFO),
        "replay": ("»", Tone.DIM),
    },
)
MIGRATION_KIND = _marks(
    pb.MigrationKind,
    "MIGRATION_KIND",
    {"start": ("+", Tone.INFO), "planned": ("→", Tone.INFO), "recovery": ("↯", Tone.WARN)},
)


def mark(marks: dict[int, Mark], number: int) -> Mark:
    """How ``number`` is shown; ``unknown`` for one that has no place here."""
    return marks.get(number, UNKNOWN)


def health_of(view: Message) -> Mark:
    """Of a ``DeviceView``: a device without a health record is unknown."""
    return mark(HEALTH, view.health.state) if view.HasField("health") else UNKNOWN  # type: ignore[attr-defined]
