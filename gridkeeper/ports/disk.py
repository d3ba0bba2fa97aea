"""An append-only log on disk with a mark: what the agent's spool is built on."""

from __future__ import annotations

from typing import Protocol


class DiskError(Exception):
    """The disk does not take it (full, read-only, gone). The message names path and cause."""


class DiskLog(Protocol):
    """Records are opaque bytes. What ``append`` returned for survives a power cut; a torn tail is dropped at open."""

    @property
    def id(self) -> str:
        """Random id of this log, born with its file; a new file gets a new one."""
        ...

    @property
    def last(self) -> int:
        """Sequence of the newest record ever appended, released or not; 0: none."""
        ...

    async def append(self, records: list[bytes]) -> None:
        """Durable (fsynced) on return. Raises ``DiskError``; then none of them is kept."""
        ...

    def read(self) -> list[tuple[int, bytes]]:
        """All records kept, oldest first, as ``(sequence, bytes)``; sequences start at 1 and have no gaps."""
        ...

    async def release(self, sequence: int) -> None:
        """Everything up to and including ``sequence`` may be dropped. Durable before a later ``append`` returns."""
        ...

    @property
    def size_bytes(self) -> int: ...

    async def close(self) -> None: ...
