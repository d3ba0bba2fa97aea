"""The stream between an agent and a control-plane replica, from both ends."""

from __future__ import annotations

from typing import Protocol

from gridkeeper.v1.agent_pb2 import AgentFrame, ControlFrame


class LinkClosed(Exception):
    """The stream is over; the message says why. Connect again, with jitter."""


class LinkRefused(LinkClosed):
    """The other side will not have this agent (identity, malformed hello). Trying again at once is pointless."""


class AgentSession(Protocol):
    """The agent's end."""

    async def send(self, frame: AgentFrame) -> None:
        """Raises ``LinkClosed``."""
        ...

    async def receive(self) -> ControlFrame:
        """Raises ``LinkClosed``."""
        ...

    async def close(self) -> None: ...


class Transport(Protocol):
    """Opens a stream to one replica. ``address`` is ``host:port`` (or a name in the simulation)."""

    async def connect(self, address: str) -> AgentSession:
        """Raises ``LinkClosed``."""
        ...


class ControlSession(Protocol):
    """The replica's end. ``node``/``region``: from the verified certificate."""

    @property
    def node(self) -> str: ...

    @property
    def region(self) -> str: ...

    async def send(self, frame: ControlFrame) -> None:
        """Raises ``LinkClosed``."""
        ...

    async def receive(self) -> AgentFrame:
        """Raises ``LinkClosed``."""
        ...

    async def refuse(self, reason: str) -> None:
        """End the stream for a fault of the agent: INVALID_ARGUMENT with ``reason``."""
        ...
