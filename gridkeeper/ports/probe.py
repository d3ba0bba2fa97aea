"""Whether one agent reaches another: what a peer's probe comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gridkeeper.ids import NodeId


class CannotProbe(Exception):
    """This host could not even try (no route of its own, a name that does not resolve, no sockets left): that says
    nothing of the other one."""


@dataclass(frozen=True, slots=True)
class Probed:
    """``refused``: the host answered, but not as that node's agent. ``rtt_us`` -1: not reached. ``boot_id``: as the
    reached agent says."""

    reached: bool
    detail: str = ""
    rtt_us: int = -1
    refused: bool = False
    boot_id: str = ""


class Prober(Protocol):
    """One attempt to reach a node's agent and to hear from it that it is that node."""

    async def probe(self, node: NodeId, address: str, timeout_ms: int) -> Probed:
        """Raises ``CannotProbe``."""
        ...


class ProbeAnswerer(Protocol):
    """Where peers' probes of this agent are answered."""

    async def run(self) -> None:
        """For ever."""
        ...
