"""One upload: which chunks are there, which are handed over, which wait to be made durable; and its note for sweeps."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from failover.checkpoint.blobs import Blobs, Staged
from failover.checkpoint.chunks import Chunks
from failover.checkpoint.layout import DEAD, UPLOADS
from failover.checkpoint.parallel import each
from failover.checkpoint.sweep import BEAT_MS, condemned_digests
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import CheckpointError

T = TypeVar("T")

BATCH = 32
"""Chunks that are made durable together (128 MiB): one by one, each would wait for the disk alone. What an interrupted
upload sends again is at most two batches."""


class Upload:
    """``async with`` it. ``have``, ``verified`` and ``add`` are called by threads, several at once; at the end
    ``publish``, the manifest, ``confirm``. What was not published when it fails is discarded. See ``sweep`` for the
    note."""

    def __init__(self, blobs: Blobs, chunks: Chunks, threads: Executor, clock: Clock) -> None:
        self._blobs = blobs
        self._chunks = chunks
        self._threads = threads
        self._clock = clock
        self._note = f"{UPLOADS}{secrets.token_hex(16)}"
        self._condemned: frozenset[str] = frozenset()
        self._names: dict[str, str] = {}
        self._waiting: list[Staged] = []
        self._publishing: asyncio.Future[None] | None = None
        self._beating: asyncio.Task[None] | None = None

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
            self.verified(digest, name)
        return bool(name)

    def verified(self, digest: str, name: str) -> None:
        """It is there."""
        if digest in self._condemned:
            raise CheckpointError(f"chunk {digest} is being deleted just now; what needs it is stored again later")
        self._names[digest] = name

    def add(self, digest: str, data: bytes) -> None:
        staged = self._chunks.stage(digest, data)
        self._waiting.append(staged)
        self.verified(digest, staged.name)

    async def advance(self) -> None:
        """Publish what has come together, while more is read."""
        if len(self._waiting) >= BATCH:
            await self._publish()

    async def publish(self) -> None:
        """All of it; it is durable then."""
        if self._waiting:
            await self._publish()
        await self._published()

    async def confirm(self) -> None:
        """The manifest is written. Raises ``CheckpointError`` if a sweep has taken the upload for dead meanwhile."""
        if await self._call(lambda: self._blobs.size(self._note + DEAD)) >= 0:
            raise CheckpointError("the upload was silent for so long that a sweep did not wait for it; store it again")

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

    async def _call(self, work: Callable[[], T]) -> T:
        return (await each(self._threads, 1, lambda w: w(), (work,)))[0]

    def _write_note(self, beat: int) -> None:
        self._blobs.publish((self._blobs.stage(self._note, b"%d" % beat),))

    async def _beat(self) -> None:
        beat = 0
        while True:
            await self._clock.sleep(BEAT_MS)
            beat += 1
            with contextlib.suppress(CheckpointError):  # the next one may succeed; if none does, ``confirm`` says so
                await self._call(lambda b=beat: self._write_note(b))  # type: ignore[misc]

    async def __aenter__(self) -> Upload:
        try:
            await self._call(lambda: self._write_note(0))
            self._condemned = await self._call(lambda: condemned_digests(self._blobs))
        except BaseException:
            await self._unnote()
            raise
        self._beating = asyncio.ensure_future(self._beat())
        return self

    async def _unnote(self) -> None:
        """A note that stays costs the next sweep ten minutes."""

        def remove() -> None:
            with contextlib.suppress(CheckpointError):
                self._blobs.remove(self._note)

        await asyncio.shield(asyncio.to_thread(remove))

    async def __aexit__(self, *_: object) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        if self._publishing is not None:
            await asyncio.shield(asyncio.gather(self._publishing, return_exceptions=True))
        if self._waiting:
            await asyncio.shield(asyncio.to_thread(self._blobs.discard, self._waiting))
        await self._unnote()
