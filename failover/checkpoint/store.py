"""The checkpoint store of a region: chunks named by their content, manifests written last (``layout``)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from failover.checkpoint import files
from failover.checkpoint.blobs import BlobMissing, Blobs
from failover.checkpoint.chunks import Chunks
from failover.checkpoint.directory import DirectoryBlobs
from failover.checkpoint.formats import refuse_incomplete
from failover.checkpoint.layout import MANIFESTS, manifest_name
from failover.checkpoint.manifest import (
    CHUNK_BYTES,
    MAX_MANIFEST_BYTES,
    check,
    checked_digest,
    checked_job,
    chunk_sizes,
    chunks_of,
    decode,
    digest_of,
    encode,
    joined,
)
from failover.checkpoint.objects import ObjectBlobs
from failover.checkpoint.parallel import each, in_order, together
from failover.checkpoint.sweep import Sweep
from failover.checkpoint.target import Target, compare
from failover.checkpoint.upload import Upload
from gridkeeper.clock import SystemClock
from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import (
    CheckpointDamaged,
    CheckpointError,
    CheckpointStore,
    Manifest,
    ManifestFile,
    Pace,
    Swept,
    Told,
)

T = TypeVar("T")

WIDTH = 4
"""Chunks at hand at once in a directory: one is read and hashed while others wait for the disk. About 4 × 10 MiB."""
WIDTH_REMOTE = 8
"""In an object store, where each request takes a round trip."""


def open_store(place: str, clock: Clock | None = None) -> BlobCheckpointStore:
    """The store at an absolute path or a URL (see ``ObjectBlobs``). Nothing is asked of it yet. Raises
    ``CheckpointError`` for a URL that cannot be understood."""
    if "://" in place:
        return BlobCheckpointStore(ObjectBlobs(place), WIDTH_REMOTE, clock or SystemClock())
    return BlobCheckpointStore(DirectoryBlobs(Path(place)), WIDTH, clock or SystemClock())


class BlobCheckpointStore:
    """Implements ``CheckpointStore``. ``width``: how many chunks it holds in memory and moves at once."""

    def __init__(self, blobs: Blobs, width: int, clock: Clock) -> None:
        self._clock = clock
        self._blobs = blobs
        self._chunks = Chunks(blobs)
        self._width = width
        self._threads = ThreadPoolExecutor(width, "checkpoint")

    async def _blocking(self, work: Callable[[], T]) -> T:
        return (await each(self._threads, 1, lambda w: w(), (work,)))[0]

    # -- the port ----------------------------------------------------------------------------------------------------

    async def put(
        self, job: JobId, step: int, epoch: Epoch, directory: Path, part: bool = False
    ) -> tuple[str, Manifest]:
        """See ``CheckpointStore.put``. Chunks that are there already are not sent again, so a put that was interrupted
        goes on where it was."""
        checked_job(job)
        if step < 0:
            raise CheckpointError(f"checkpoint {job}: step {step} is negative; name the directory step-<n> with n ≥ 0")
        await self._blocking(self._blobs.prepare)
        found = await self._blocking(lambda: files.walk(directory))
        if not part:
            await self._blocking(lambda: refuse_incomplete(directory, found))
        pieces = ((f, number * CHUNK_BYTES, n) for f in found for number, n in enumerate(chunk_sizes(f.size_bytes)))
        digests: list[str] = []
        async with Upload(self._blobs, self._chunks, self._threads, self._clock) as upload:
            work = partial(_put_part, upload, directory)
            async with aclosing(in_order(self._threads, self._width, work, pieces)) as stored:
                async for one in stored:
                    digests.append(one)
                    await upload.advance()
            await self._unchanged(directory, found)
            following = iter(digests)
            manifest = Manifest(job, step, epoch, tuple(_entry(file, following) for file in found))
            check(manifest)
            return await self._finish(upload, manifest), manifest

    async def join(self, job: JobId, step: int, epoch: Epoch, parts: Sequence[str]) -> tuple[str, Manifest]:
        """See ``CheckpointStore.join``. It is an upload that sends nothing, so that no sweep takes a chunk of it."""
        found = [await self.manifest(job, step, digest) for digest in parts]
        manifest = joined(job, step, epoch, found)
        async with Upload(self._blobs, self._chunks, self._threads, self._clock) as upload:
            sizes = tuple(chunks_of(manifest).items())
            there = await each(self._threads, self._width, lambda chunk: upload.have(*chunk), sizes)
            missing = [chunk for (chunk, _), here in zip(sizes, there, strict=True) if not here]
            if missing:
                raise CheckpointDamaged(f"checkpoint {job} step {step}: chunk {missing[0]} is missing")
            return await self._finish(upload, manifest), manifest

    async def _unchanged(self, directory: Path, found: tuple[files.Found, ...]) -> None:
        if await self._blocking(lambda: files.walk(directory)) != found:
            raise CheckpointError(f"{directory}: it changed while it was stored; rename it to step-<n> when finished")

    async def _finish(self, upload: Upload, manifest: Manifest) -> str:
        """The digest of the manifest, which is written now."""
        await upload.publish()
        one_each = {name.rpartition("/")[0]: name for name in upload.names}  # of each directory, fsynced as a whole
        await each(self._threads, self._width, lambda name: self._blobs.settle((name,)), one_each.values())
        data = encode(manifest)
        digest = digest_of(data)
        await self._blocking(lambda: self._seal(manifest.job, manifest.step, digest, data))
        await upload.confirm()
        return digest

    async def manifest(self, job: JobId, step: int, digest: str) -> Manifest:
        """See ``CheckpointStore.manifest``."""
        return await self._blocking(lambda: self._manifest(job, step, digest))

    async def verify(self, job: JobId, step: int, digest: str, pace: Pace | None = None) -> Manifest:
        """See ``CheckpointStore.verify``."""
        manifest = await self.manifest(job, step, digest)
        what = f"checkpoint {job} step {step}"

        def look(chunk: tuple[str, int]) -> int:
            return len(self._chunks.read(*chunk, what)[1])

        async with aclosing(in_order(self._threads, self._width, look, chunks_of(manifest).items())) as sizes:
            async for size in sizes:
                if pace is not None:
                    await pace.spend(size)
        return manifest

    async def fetch(self, job: JobId, step: int, digest: str, directory: Path) -> None:
        """See ``CheckpointStore.fetch``. A directory that is there already must hold this very checkpoint."""
        manifest = await self.manifest(job, step, digest)
        if await self._blocking(lambda: os.path.lexists(directory)):
            await self._blocking(lambda: compare(manifest, directory))
            return
        target = Target(directory)

        def bring(piece: tuple[ManifestFile, int, int]) -> None:
            file, number, size = piece
            what = f"checkpoint {job} step {step}, {file.path}"
            target.write(file, number * CHUNK_BYTES, self._chunks.read(file.chunks[number], size, what)[1])

        try:
            await self._blocking(lambda: target.begin(manifest.files))
            pieces = ((f, number, n) for f in manifest.files for number, n in enumerate(chunk_sizes(f.size_bytes)))
            await each(self._threads, self._width, bring, pieces)
            await each(self._threads, self._width, target.finish, manifest.files)
            await self._blocking(target.appear)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(target.discard))
            raise

    async def copy_from(
        self,
        source: CheckpointStore,
        job: JobId,
        step: int,
        digest: str,
        pace: Pace | None = None,
        told: Told | None = None,
    ) -> int:
        """See ``CheckpointStore.copy_from``. Chunks that are here are read and compared, not trusted."""
        await self._blocking(self._blobs.prepare)
        manifest = await source.manifest(job, step, digest)
        decode(encode(manifest), job, step, digest)  # the source may have sent another
        chunks = chunks_of(manifest)
        moved, here, total = 0, 0, sum(chunks.values())
        wanted = iter(chunks.items())
        async with Upload(self._blobs, self._chunks, self._threads, self._clock) as upload:
            while batch := tuple(islice(wanted, self._width)):
                moved += sum(await together(self._bring(upload, source, *chunk, pace) for chunk in batch))
                await upload.advance()
                here += sum(size for _, size in batch)
                if told is not None:
                    told(here, total)
            await self._finish(upload, manifest)
        return moved

    async def _bring(self, upload: Upload, source: CheckpointStore, chunk: str, size: int, pace: Pace | None) -> int:
        """How many bytes the source sent for a chunk."""
        present = await self._blocking(lambda: self._present(chunk, size))
        if present:
            upload.verified(chunk, present)
            return 0
        if pace is not None:
            await pace.spend(size)
        content = await source.read_chunk(chunk)
        if len(content) != size or digest_of(content) != chunk:
            raise CheckpointError(f"the source sent another content for chunk {chunk}")
        await self._blocking(lambda: upload.add(chunk, content))
        return size

    async def read_chunk(self, digest: str) -> bytes:
        """See ``CheckpointStore.read_chunk``."""
        checked_digest("chunk", digest)
        return await self._blocking(lambda: self._chunks.read(digest, -1, "chunk")[1])

    async def remove(self, job: JobId, step: int, digest: str) -> None:
        """See ``CheckpointStore.remove``."""
        name = manifest_name(job, step, digest)
        await self._blocking(lambda: self._blobs.remove(name))

    async def sweep(self, orphan: Callable[[Manifest, str], bool]) -> Swept:
        """See ``CheckpointStore.sweep``."""
        await self._blocking(self._blobs.prepare)
        return await Sweep(self._blobs, self._threads, self._width, self._clock).run(orphan)

    # -- blocking parts, each about one chunk long -------------------------------------------------------------------

    def _present(self, digest: str, size: int) -> str:
        """The name of a chunk that is here and has the content of its digest, else ""."""
        try:
            return self._chunks.read(digest, size, "copy")[0]
        except CheckpointError:
            return ""

    def _seal(self, job: JobId, step: int, digest: str, data: bytes) -> None:
        """The manifest appears; all its chunks are durable."""
        name = manifest_name(job, step, digest)
        try:
            if self._blobs.size(name) != len(data) or self._blobs.read(name, len(data)) != data:
                self._blobs.publish((self._blobs.stage(name, data),))
            self._blobs.settle((name,))
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint {job} step {step}: its manifest cannot be stored: {error}") from error

    def _manifest(self, job: JobId, step: int, digest: str) -> Manifest:
        name = manifest_name(job, step, digest)
        try:
            data = self._blobs.read(name, MAX_MANIFEST_BYTES)
        except BlobMissing as error:
            missing = f"checkpoint {job} step {step} ({digest}): no manifest: {error}"
            if any(True for _ in self._blobs.walk(MANIFESTS)):
                raise CheckpointDamaged(missing) from error
            raise CheckpointError(f"{missing}; the store is empty: is it the right one?") from error
        try:
            return decode(data, job, step, digest)
        except CheckpointError as error:
            raise CheckpointDamaged(str(error)) from error


def _put_part(upload: Upload, directory: Path, piece: tuple[files.Found, int, int]) -> str:
    """The digest of one chunk of a file, which is there or handed over now."""
    file, offset, size = piece
    try:
        data = files.read_part(directory, file.path, offset, size)
    except OSError as error:
        raise CheckpointError(f"{directory / file.path}: cannot be read: {error}") from error
    if len(data) != size:
        raise CheckpointError(f"{directory / file.path}: it became shorter while it was stored")
    digest = digest_of(data)
    if not upload.have(digest, size):
        upload.add(digest, data)
    return digest


def _entry(file: files.Found, digests: Iterator[str]) -> ManifestFile:
    chunks = tuple(next(digests) for _ in chunk_sizes(file.size_bytes))
    return ManifestFile(file.path, file.size_bytes, file.mode, chunks)
