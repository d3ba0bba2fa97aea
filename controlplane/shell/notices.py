"""Tells people about incidents, once per change, without ever holding up a decision."""

from __future__ import annotations

import logging

from gridkeeper.ports.notify import Notifier
from gridkeeper.records.faults import IncidentRecord, IncidentState
from gridkeeper.snapshot import RegionState

log = logging.getLogger("gridkeeper.incident")


class LogNotifier:
    """``Notifier`` into the log."""

    async def incident(self, incident: IncidentRecord) -> None:
        level = logging.INFO if incident.state is IncidentState.RESOLVED else logging.WARNING
        log.log(level, "incident %s %s: %s", incident.id, incident.state.value, incident.title)


class Notices:
    """Remembers what it told; a new leader tells open incidents again (at least once)."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._told: dict[str, tuple[str, str]] = {}

    async def look(self, state: RegionState) -> None:
        for name, versioned in state.incidents.items():
            incident = versioned.record
            said = (incident.state.value, incident.severity.value)
            first = name not in self._told
            if self._told.get(name) == said:
                continue
            self._told[name] = said
            if not (first and incident.state is IncidentState.RESOLVED):
                await self._notifier.incident(incident)
