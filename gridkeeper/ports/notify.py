"""Telling people."""

from __future__ import annotations

from typing import Protocol

from gridkeeper.records.faults import IncidentRecord


class Notifier(Protocol):
    async def incident(self, incident: IncidentRecord) -> None:
        """Called when an incident opens, escalates or resolves; at least once."""
        ...


class PagerUnavailable(Exception):
    """It was not taken, or nobody knows whether it was. Say it again under the same key; the message says why."""


class Pager(Protocol):
    async def post(self, url: str, key: str, body: bytes) -> None:
        """POST ``body`` (JSON). ``key``: the same message for ever, whoever says it how often; "": it is known by its
        content. Raises ``PagerUnavailable``."""
        ...
