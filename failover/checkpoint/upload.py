"""The chunks of one upload: which are there, which are handed over, which still wait to be made durable."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from failover.checkpoint.blobs import Blobs, Staged
from failover.checkpoint.chunks import Chunks

BATCH = 32
"""Chunks that are made durable together (128 MiB): one by one, each would wait for the disk alone. What an interrupted
upload sends again is at most two batches."""


class Upload:
    """``async with`` it: at the end everything is published, or, if it failed, what was not yet is discarded. ``have``
    and ``add`` are called by threads, several at once."""

    def __init__(self, blobs: Blobs, chunks: Chunks, threads: Executor) -> None:
        self._blobs = blobs
        self._chunks = chunks
        self._threads = threads
        self._names: dict[str, str] = {}
        self._waiting: list[Staged] = []
        self._publishing: asyncio.Future[None] | None = None

    @property
    def names(self) -> set[str]:
        """Of every chunk that the upload rests on."""
        return set(self._names.values())

    def have(self, digest: str, size: int) -> bool:
        """It is there, as far as its length shows, or was handed over before."""
        if digest in self._names:
            return True
        name = self._chunks.name_of(digest, size)
        if name:
            self._names[digest] = name
        return bool(name)

    def verified(self, digest: str, name: str) -> None:
        """It is there and was read and compared."""
        self._names[digest] = name

    def add(self, digest: str, data: bytes) -> None:
        staged = self._chunks.stage(digest, data)
        self._waiting.append(staged)
        self._names[digest] = staged.name

    async def advance(self) -> None:
        """Publish what has come together, while more is read."""
        if len(self._waiting) >= BATCH:
            await self._publish()

    async def _publish(self) -> None:
        await self._published()
        batch, self._waiting = self._waiting, []
        loop = asyncio.get_running_loop()
        self._publishing = loop.run_in_executor(self._threads, self._blobs.publish, batch)

    async def _published(self) -> None:
        """The batch before; raises what it raised."""
        if self._publishing is not None:
            await asyncio.shield(self._publishing)
            self._publishing = None

    async def __aenter__(self) -> Upload:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                if self._waiting:
                    await self._publish()
                await self._published()
        finally:
            if self._publishing is not None:
                await asyncio.shield(asyncio.gather(self._publishing, return_exceptions=True))
            if self._waiting:
                await asyncio.shield(asyncio.to_thread(self._blobs.discard, self._waiting))
