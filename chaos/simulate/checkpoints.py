"""A region's checkpoint store in memory: no threads, no files of its own, faults on order.

Checkpoint directories are read and written through a ``FileTree``: ``MemoryTree`` for simulated hosts, ``DiskTree``
when real directories are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from failover.checkpoint import files
from failover.checkpoint.manifest import (
    CHUNK_BYTES,
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


@dataclass(frozen=True, slots=True)
class FileData:
    """``mode``: permission bits."""

    mode: int
    data: bytes


Tree = Mapping[str, FileData]
"""Relative path, "/" separated -> file."""


class FileTree(Protocol):
    """Directories of hosts."""

    def read(self, directory: Path) -> Tree:
        """All files below a directory. Raises ``CheckpointError`` if it is not there."""
        ...

    def exists(self, directory: Path) -> bool: ...

    def write(self, directory: Path, tree: Tree) -> None:
        """Create a directory, whole."""
        ...


@dataclass(slots=True)
class MemoryTree:
    """Directories by their path; one may be shared by all simulated hosts."""

    directories: dict[Path, dict[str, FileData]] = field(default_factory=dict)

    def read(self, directory: Path) -> Tree:
        try:
            return dict(self.directories[directory])
        except KeyError:
            raise CheckpointError(f"{directory}: cannot be read: there is no such directory") from None

    def exists(self, directory: Path) -> bool:
        return directory in self.directories

    def write(self, directory: Path, tree: Tree) -> None:
        self.directories[directory] = dict(tree)


class DiskTree:
    """Real directories, read and written at once (blocking: small files only)."""

    def read(self, directory: Path) -> Tree:
        return {f.path: FileData(f.mode, (directory / f.path).read_bytes()) for f in files.walk(directory)}

    def exists(self, directory: Path) -> bool:
        return directory.exists()

    def write(self, directory: Path, tree: Tree) -> None:
        partial = directory.with_name(f".{directory.name}.partial")
        partial.mkdir(parents=True)
        for path, file in tree.items():
            target = partial / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.data)
            target.chmod(file.mode)
        partial.rename(directory)


def _nobody(here: int, total: int) -> None:
    """Nobody wants to know how far a copy is."""


class SimCheckpointStore:
    """``CheckpointStore`` in memory. ``clock`` and ``chunk_ms``: simulated time that each chunk takes to store or move;
    ``reachable=False``: every call fails, as when the region is cut off. ``witness``: told of each checkpoint whose
    manifest is there now (job, step, digest)."""

    def __init__(
        self,
        tree: FileTree,
        clock: Clock | None = None,
        chunk_ms: int = 0,
        witness: Callable[[JobId, int, str], None] = lambda job, step, digest: None,
    ) -> None:
        self._tree = tree
        self._clock = clock
        self._chunk_ms = chunk_ms
        self._witness = witness
        self.chunks: dict[str, bytes] = {}
        self.manifests: dict[tuple[JobId, int, str], bytes] = {}
        self.written: list[str] = []
        self.reachable = True
        self._uploads = 0

    async def _pause(self) -> None:
        if not self.reachable:
            raise CheckpointError("the checkpoint store cannot be reached")
        if self._clock is not None:
            await self._clock.sleep(self._chunk_ms)

    async def put(
        self, job: JobId, step: int, epoch: Epoch, directory: Path, part: bool = False
    ) -> tuple[str, Manifest]:
        with self._uploading():
            return await self._put(job, step, epoch, directory)

    async def join(self, job: JobId, step: int, epoch: Epoch, parts: Sequence[str]) -> tuple[str, Manifest]:
        with self._uploading():
            manifest = joined(job, step, epoch, [await self.manifest(job, step, digest) for digest in parts])
            for chunk in chunks_of(manifest):
                if chunk not in self.chunks:
                    raise CheckpointDamaged(f"checkpoint {job} step {step}: chunk {chunk} is missing")
            data = encode(manifest)
            self.manifests[(job, step, digest_of(data))] = data
            self._witness(job, step, digest_of(data))
            return digest_of(data), manifest

    @contextmanager
    def _uploading(self) -> Iterator[None]:
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def _put(self, job: JobId, step: int, epoch: Epoch, directory: Path) -> tuple[str, Manifest]:
        checked_job(job)
        if step < 0:
            raise CheckpointError(f"checkpoint {job}: step {step} is negative; name the directory step-<n> with n ≥ 0")
        await self._pause()
        tree = self._tree.read(directory)
        entries: list[ManifestFile] = []
        for path, file in sorted(tree.items()):
            digests: list[str] = []
            for number, size in enumerate(chunk_sizes(len(file.data))):
                data = file.data[number * CHUNK_BYTES :][:size]
                digests.append(digest_of(data))
                if len(self.chunks.get(digests[-1], b"")) != size:
                    await self._write(digests[-1], data)
            entries.append(ManifestFile(path, len(file.data), file.mode, tuple(digests)))
        if self._tree.read(directory) != tree:
            raise CheckpointError(f"{directory}: it changed while it was stored; rename it to step-<n> when finished")
        manifest = Manifest(job, step, epoch, tuple(entries))
        check(manifest)
        data = encode(manifest)
        self.manifests[(job, step, digest_of(data))] = data
        self._witness(job, step, digest_of(data))
        return digest_of(data), manifest

    async def _write(self, digest: str, data: bytes) -> None:
        await self._pause()
        self.chunks[digest] = data
        self.written.append(digest)

    async def manifest(self, job: JobId, step: int, digest: str) -> Manifest:
        await self._pause()
        checked_digest(f"checkpoint {job} step {step}", digest)
        data = self.manifests.get((checked_job(job), step, digest))
        if data is None:
            raise CheckpointDamaged(f"checkpoint {job} step {step} ({digest}): no manifest")
        try:
            return decode(data, job, step, digest)
        except CheckpointError as error:
            raise CheckpointDamaged(str(error)) from error

    async def verify(self, job: JobId, step: int, digest: str, pace: Pace | None = None) -> Manifest:
        manifest = await self.manifest(job, step, digest)
        for chunk, size in chunks_of(manifest).items():
            if pace is not None:
                await pace.spend(size)
            if len(await self.read_chunk(chunk)) != size:
                raise CheckpointDamaged(f"checkpoint {job} step {step}: chunk {chunk} has another length than {size}")
        return manifest

    async def fetch(self, job: JobId, step: int, digest: str, directory: Path) -> None:
        manifest = await self.manifest(job, step, digest)
        tree: dict[str, FileData] = {}
        for file in manifest.files:
            parts = [await self.read_chunk(chunk) for chunk in file.chunks]
            tree[file.path] = FileData(file.mode, b"".join(parts))
        if not self._tree.exists(directory):
            self._tree.write(directory, tree)
        elif {p: f.data for p, f in self._tree.read(directory).items()} != {p: f.data for p, f in tree.items()}:
            raise CheckpointError(f"{directory}: it exists and holds other files; remove it to fetch step {step}")

    async def copy_from(
        self,
        source: CheckpointStore,
        job: JobId,
        step: int,
        digest: str,
        pace: Pace | None = None,
        told: Told | None = None,
    ) -> int:
        with self._uploading():
            return await self._copy_from(source, job, step, digest, pace, told or _nobody)

    async def _copy_from(
        self, source: CheckpointStore, job: JobId, step: int, digest: str, pace: Pace | None, told: Told
    ) -> int:
        manifest = await source.manifest(job, step, digest)
        data = encode(manifest)
        decode(data, job, step, digest)
        chunks = chunks_of(manifest)
        moved, here, total = 0, 0, sum(chunks.values())
        for chunk, size in chunks.items():
            here += size
            if digest_of(self.chunks.get(chunk, b"")) == chunk:
                continue
            if pace is not None:
                await pace.spend(size)
            content = await source.read_chunk(chunk)
            if len(content) != size or digest_of(content) != chunk:
                raise CheckpointError(f"checkpoint {job} step {step}: the source sent another content for {chunk}")
            await self._write(chunk, content)
            moved += size
            told(here, total)
        await self._pause()
        told(total, total)
        self.manifests[(job, step, digest)] = data
        self._witness(job, step, digest)
        return moved

    async def remove(self, job: JobId, step: int, digest: str) -> None:
        await self._pause()
        checked_digest(f"checkpoint {job} step {step}", digest)
        self.manifests.pop((job, step, digest), None)

    async def sweep(self, orphan: Callable[[Manifest, str], bool]) -> Swept:
        """In one go, but for uploads: while one runs nothing is deleted."""
        await self._pause()
        read = {key: decode(data, *key) for key, data in self.manifests.items()}
        gone = [key for key, manifest in read.items() if orphan(manifest, key[2])]
        for key in gone:
            del self.manifests[key], read[key]
        if self._uploads:
            return Swept(len(gone), 0, 0)
        named = {chunk for manifest in read.values() for chunk in chunks_of(manifest)}
        doomed = {chunk: data for chunk, data in self.chunks.items() if chunk not in named}
        for chunk in doomed:
            del self.chunks[chunk]
        return Swept(len(gone), len(doomed), sum(map(len, doomed.values())))

    async def read_chunk(self, digest: str) -> bytes:
        await self._pause()
        checked_digest("chunk", digest)
        data = self.chunks.get(digest)
        if data is None:
            raise CheckpointDamaged(f"chunk {digest} is missing")
        if digest_of(data) != digest:
            del self.chunks[digest]
            raise CheckpointDamaged(f"chunk {digest} is altered: other content is stored under its name")
        return data
