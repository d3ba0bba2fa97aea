"""``Archive`` in a directory or an object store: what checkpoints are kept in, under a place of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from failover.checkpoint.blobs import Blobs
from failover.checkpoint.directory import DirectoryBlobs
from failover.checkpoint.objects import ObjectBlobs
from gridkeeper.ports.archive import ArchiveUnavailable
from gridkeeper.ports.jobs import CheckpointError

MAX_BYTES = 1 << 30


def open_archive(place: str) -> BlobArchive:
    """At an absolute path or a URL (``ObjectBlobs``). Nothing is asked of it yet. Raises ``CheckpointError`` for a URL
    that cannot be understood."""
    return BlobArchive(ObjectBlobs(place) if "://" in place else DirectoryBlobs(Path(place)))


class BlobArchive:
    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def keep(self, name: str, data: bytes) -> None:
        def write() -> None:
            self._blobs.prepare()
            self._blobs.publish([self._blobs.stage(name, data)])
            self._blobs.settle([name])

        try:
            await asyncio.to_thread(write)
        except CheckpointError as error:
            raise ArchiveUnavailable(f"archive: {error}") from error

    async def read(self, name: str) -> bytes:
        try:
            data = await asyncio.to_thread(self._blobs.read, name, MAX_BYTES)
        except CheckpointError as error:
            raise ArchiveUnavailable(f"archive: {error}") from error
        if len(data) > MAX_BYTES:
            raise ArchiveUnavailable(f"archive: {name} has more than {MAX_BYTES} bytes; none of ours is so large")
        return data
