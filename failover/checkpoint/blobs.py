"""Named bytes in a directory or in an object store: what a checkpoint store is built on.

Blocking; the checkpoint store calls it from its own threads. A name is relative, "/" separated, and made by
``failover.checkpoint.layout`` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from gridkeeper.ports.jobs import CheckpointError


class BlobMissing(CheckpointError):
    """There is nothing of that name; names it."""


@dataclass(frozen=True, slots=True)
class Blob:
    name: str
    size_bytes: int


class Blobs(Protocol):
    """``DirectoryBlobs`` and ``ObjectBlobs``. Every call raises ``CheckpointError`` if the store cannot do it."""

    def prepare(self) -> None:
        """Before the first write."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """All of it if it has up to ``limit`` bytes, else its first ``limit`` + 1. Raises ``BlobMissing``."""
        ...

    def size(self, name: str) -> int:
        """In bytes; -1: there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Whole or not at all, replacing what is there. The content is durable, the name after ``settle``."""
        ...

    def settle(self, names: Iterable[str]) -> None:
        """Make these names durable."""
        ...

    def move(self, name: str, to: str) -> None:
        """Give it another name, replacing what is there. Raises ``BlobMissing``."""
        ...

    def remove(self, name: str) -> None:
        """Idempotent."""
        ...

    def walk(self, prefix: str) -> Iterator[Blob]:
        """Every name below ``prefix`` (which ends in "/"), in no order; never the whole list in memory. One written or
        removed meanwhile may be there or not."""
        ...
