"""Telling people."""

from __future__ import annotations

from typing import Protocol

from gridkeeper.records.faults import IncidentRecord


class Notifier(Protocol):
    async def incident(self, incident: IncidentRecord) -> None:
        """Called when an incident opens, escalates or resolves; at least once."""
        ...
