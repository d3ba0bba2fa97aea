"""What is kept for ever: files that are written once, outside of the stores."""

from __future__ import annotations

from typing import Protocol


class ArchiveUnavailable(Exception):
    """It could not be read or written now; names the file and the cause. Try again later."""


class Archive(Protocol):
    """Names hold the digest of their content, so writing one twice changes nothing."""

    async def keep(self, name: str, data: bytes) -> None:
        """Durable when it returns. Raises ``ArchiveUnavailable``."""
        ...

    async def read(self, name: str) -> bytes:
        """Raises ``ArchiveUnavailable``, also when there is none of that name."""
        ...
