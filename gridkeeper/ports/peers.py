"""What one region asks another directly while it does not reach the global store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gridkeeper.ids import Extent, RegionId, ReplicaId


@dataclass(frozen=True, slots=True)
class Ask:
    """``seen``: how much of the global store the asker has in view. ``alive``: what it asked for until now was granted
    by all, so its jobs live."""

    region: RegionId
    replica: ReplicaId
    seen: Extent
    alive: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """``region``: of the replica that answers, by its own word; it promises for that one and for no other. ``refusal``:
    why it does not promise; "": it does."""

    region: RegionId
    refusal: str


class NoAnswer(Exception):
    """Nobody of the region could be asked in time; the message says why. It has promised nothing."""


class OtherRegions(Protocol):
    """The way to the replicas of other regions."""

    async def ask(self, region: RegionId, address: str, ask: Ask, timeout_ms: int) -> Answer:
        """What the replica at ``address`` says, which must prove to be one of ``region``. Raises ``NoAnswer``."""
        ...
