"""Named bytes in a directory or in an object store: what a checkpoint store is built on.

Blocking; the checkpoint store calls it from its own threads. A name is relative, "/" separated, and made by
``failover.checkpoint.layout`` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gridkeeper.ports.jobs import CheckpointError


class BlobMissing(CheckpointError):
    """There is nothing of that name; names it."""


@dataclass(frozen=True, slots=True)
class Blob:
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Staged:
    """Content that was handed over. ``held``: where it waits; "" in an object store."""

    name: str
    held: str = ""


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

    def stage(self, name: str, data: bytes) -> Staged:
        """Hand over the content of a name; it is there after ``publish``, whole, replacing what is there now."""
        ...

    def publish(self, staged: Sequence[Staged]) -> None:
        """Make these contents durable, then let them appear. Many at once are cheaper than one by one."""
        ...

    def discard(self, staged: Sequence[Staged]) -> None:
        """They will not be published. An object store may have them already, which is as good: they are inert."""
        ...

    def settle(self, names: Iterable[str]) -> None:
        """Make published names durable."""
        ...

    def move(self, name: str, to: str) -> None:
        """Give it another name, replacing what is there. Raises ``BlobMissing``."""
        ...

    def remove(self, name: str) -> None:
        """Idempotent."""
        ...

    def tidy(self) -> None:
        """Remove what dead writers left behind."""
        ...

    def walk(self, prefix: str) -> Iterator[Blob]:
        """Every name below ``prefix`` (which ends in "/"), in no order; never the whole list in memory. One written or
        removed meanwhile may be there or not."""
        ...
