"""Opening a ticket with whoever replaces hardware."""

from __future__ import annotations

from typing import Protocol


class TicketRefused(Exception):
    """The desk has answered that it will not have it; asking again is pointless. The message says why."""


class TicketUnavailable(Exception):
    """No answer, or one that says "later": it may or may not have arrived. Ask again under the same key."""


class TicketDesk(Protocol):
    async def open_ticket(self, url: str, key: str, body: bytes) -> str:
        """POST ``body`` (JSON) to ``url``. ``key``: the same ticket for ever, whoever asks how often. Returns what the
        desk calls it ("" if it does not say). Raises ``TicketRefused`` and ``TicketUnavailable``."""
        ...
