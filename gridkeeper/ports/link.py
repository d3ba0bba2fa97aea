"""The stream between an agent and a control-plane replica, from both ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from gridkeeper.v1.agent_pb2 import AgentFrame, ControlFrame

F = TypeVar("F", AgentFrame, ControlFrame)
TOGETHER_BYTES = 256 << 10
"""Nothing is added to a message that holds this much."""


def parts(message: F) -> Iterator[F]:
    """What a message holds, in the order in which it is to be taken."""
    yield message
    yield from message.more


def together(frames: Iterable[ControlFrame]) -> Iterator[ControlFrame]:
    """As few messages as ``TOGETHER_BYTES`` allows: what a message costs does not depend on how much is in it."""
    message: ControlFrame | None = None
    size = 0
    for frame in frames:
        if message is not None and size < TOGETHER_BYTES:
            message.more.append(frame)
        else:
            if message is not None:
                yield message
            message, size = frame, 0
        size += frame.ByteSize()
    if message is not None:
        yield message


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
