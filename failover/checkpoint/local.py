"""A checkpoint store on a directory that stands for a region's object store.

::

    chunks/<2 hex>/<64 hex>               content, named by its BLAKE3
    manifests/<job>/<step>.<64 hex>.json  a checkpoint, named by the BLAKE3 of these bytes; written last
    staging/                              what is being written; renamed when it is durable
    damaged/                              chunks that no longer had the content of their name

Chunks and manifests are never changed in place, so agents and replicas may use the same directory at the same time. A
chunk that is found altered is moved aside: the next ``put`` or copy of the same content heals it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from failover.checkpoint import files
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
)
from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.jobs import CheckpointError, CheckpointStore, Manifest, ManifestFile

log = logging.getLogger("gridkeeper.checkpoint")


class LocalCheckpointStore:
    """Implements ``CheckpointStore``. ``root`` is created when first needed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = root / "staging"

    # -- ports -----------------------------------------------------------------------------------------------------

    async def put(self, job: JobId, step: int, epoch: Epoch, directory: Path) -> tuple[str, Manifest]:
        """See ``CheckpointStore.put``. Chunks that are there already are not written again."""
        checked_job(job)
        if step < 0:
            raise CheckpointError(f"checkpoint {job}: step {step} is negative; name the directory step-<n> with n ≥ 0")
        await asyncio.to_thread(self._prepare)
        found = await asyncio.to_thread(files.walk, directory)
        fans: set[Path] = set()
        entries: list[ManifestFile] = []
        for file in found:
            digests = []
            for number, size in enumerate(chunk_sizes(file.size_bytes)):
                digest, fan = await asyncio.to_thread(self._put_part, directory, file, number * CHUNK_BYTES, size)
                digests.append(digest)
                fans.add(fan)
            entries.append(ManifestFile(file.path, file.size_bytes, file.mode, tuple(digests)))
        if await asyncio.to_thread(files.walk, directory) != found:
            raise CheckpointError(f"{directory}: it changed while it was stored; rename it to step-<n> when finished")
        manifest = Manifest(job, step, epoch, tuple(entries))
        check(manifest)
        data = encode(manifest)
        digest = digest_of(data)
        await asyncio.to_thread(self._seal, job, step, digest, data, fans)
        return digest, manifest

    async def manifest(self, job: JobId, step: int, digest: str) -> Manifest:
        """See ``CheckpointStore.manifest``."""
        return await asyncio.to_thread(self._manifest, job, step, digest)

    async def verify(self, job: JobId, step: int, digest: str) -> Manifest:
        """See ``CheckpointStore.verify``."""
        manifest = await self.manifest(job, step, digest)
        for chunk, size in chunks_of(manifest).items():
            await asyncio.to_thread(self._chunk, chunk, size, f"checkpoint {job} step {step}")
        return manifest

    async def fetch(self, job: JobId, step: int, digest: str, directory: Path) -> None:
        """See ``CheckpointStore.fetch``. A directory that is there already must hold this very checkpoint."""
        manifest = await self.manifest(job, step, digest)
        if await asyncio.to_thread(os.path.lexists, directory):
            await self._compare(manifest, directory)
            return
        partial = directory.with_name(f".{directory.name}.partial")
        await asyncio.to_thread(_fresh, partial)
        try:
            for file in manifest.files:
                await asyncio.to_thread(_touch, partial, file)
                for number, size in enumerate(chunk_sizes(file.size_bytes)):
                    await asyncio.to_thread(self._fetch_part, manifest, partial, file, number, size)
                await asyncio.to_thread(_finish, partial, file)
            await asyncio.to_thread(_appear, partial, directory)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(files.remove_tree, partial))
            raise

    async def copy_from(self, source: CheckpointStore, job: JobId, step: int, digest: str) -> int:
        """See ``CheckpointStore.copy_from``. Chunks that are here are read and compared, not trusted."""
        await asyncio.to_thread(self._prepare)
        manifest = await source.manifest(job, step, digest)
        data = await asyncio.to_thread(_canonical, manifest, job, step, digest)
        fans: set[Path] = set()
        moved = 0
        for chunk, size in chunks_of(manifest).items():
            fans.add(self._fan(chunk))
            if await asyncio.to_thread(self._has, chunk, size, f"checkpoint {job} step {step}"):
                continue
            content = await source.read_chunk(chunk)
            if len(content) != size or digest_of(content) != chunk:
                raise CheckpointError(f"checkpoint {job} step {step}: the source sent another content for {chunk}")
            await asyncio.to_thread(self._write_chunk, chunk, content)
            moved += size
        await asyncio.to_thread(self._seal, job, step, digest, data, fans)
        return moved

    async def read_chunk(self, digest: str) -> bytes:
        """See ``CheckpointStore.read_chunk``."""
        checked_digest("chunk", digest)
        return await asyncio.to_thread(self._chunk, digest, -1, "chunk")

    # -- blocking parts, each at most one chunk long -------------------------------------------------------------------

    def _prepare(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            for name in ("chunks", "manifests", "staging", "damaged"):
                files.make_directory(self._root / name)
        except OSError as error:
            raise CheckpointError(f"{self._root}: the checkpoint store cannot be written: {error}") from error

    def _fan(self, digest: str) -> Path:
        return self._root / "chunks" / digest[:2]

    def _put_part(self, directory: Path, file: files.Found, offset: int, size: int) -> tuple[str, Path]:
        data = _read(directory, file.path, offset, size)
        if len(data) != size:
            raise CheckpointError(f"{directory / file.path}: it became shorter while it was stored")
        digest = digest_of(data)
        if files.regular_size(self._fan(digest) / digest) != size:
            self._write_chunk(digest, data)
        return digest, self._fan(digest)

    def _write_chunk(self, digest: str, data: bytes) -> None:
        self._store(self._fan(digest), digest, data)

    def _store(self, directory: Path, name: str, data: bytes) -> None:
        try:
            files.make_directory(directory)
            staged = files.write_aside(self._staging, data)
            os.replace(staged, directory / name)
        except OSError as error:
            raise CheckpointError(f"{directory / name}: cannot be stored: {error}") from error

    def _seal(self, job: JobId, step: int, digest: str, data: bytes, fans: set[Path]) -> None:
        """All chunks are durable before the manifest appears."""
        directory, name = self._manifest_place(job, step, digest)
        try:
            for fan in sorted(fans):
                files.sync_directory(fan)
            present = directory / name
            if files.regular_size(present) != len(data) or present.read_bytes() != data:
                self._store(directory, name, data)
            files.sync_directory(directory)
        except OSError as error:
            raise CheckpointError(f"checkpoint {job} step {step}: its manifest cannot be stored: {error}") from error

    def _manifest_place(self, job: JobId, step: int, digest: str) -> tuple[Path, str]:
        checked_digest(f"checkpoint {job} step {step}", digest)
        if not 0 <= step < 10**20:
            raise CheckpointError(f"checkpoint {job}: step {step} is out of range")
        return self._root / "manifests" / checked_job(job), f"{step:020d}.{digest}.json"

    def _manifest(self, job: JobId, step: int, digest: str) -> Manifest:
        directory, name = self._manifest_place(job, step, digest)
        try:
            data = files.read_part(self._root, f"manifests/{directory.name}/{name}", 0, MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            raise CheckpointError(f"checkpoint {job} step {step} ({digest}): no manifest: {error}") from error
        return decode(data, job, step, digest)

    def _chunk(self, digest: str, size: int, what: str) -> bytes:
        """The content of a chunk, compared with its name (and ``size``, unless -1)."""
        try:
            data = files.read_part(self._root, f"chunks/{digest[:2]}/{digest}", 0, CHUNK_BYTES + 1)
        except OSError as error:
            raise CheckpointError(f"{what}: chunk {digest} is missing: {error}") from error
        found = digest_of(data)
        if found != digest or size not in (-1, len(data)):
            self._set_aside(digest)
            raise CheckpointError(
                f"{what}: chunk {digest} is altered: {len(data)} bytes with BLAKE3 {found} are stored under its name"
            )
        return data

    def _set_aside(self, digest: str) -> None:
        """An altered chunk leaves its name, so that the next writer of the same content stores it anew."""
        try:
            os.replace(self._fan(digest) / digest, self._root / "damaged" / digest)
        except OSError as error:
            log.error("The altered chunk %s cannot be moved aside: %s", digest, error)
        else:
            log.error("Chunk %s is altered and was moved to %s.", digest, self._root / "damaged")

    def _has(self, digest: str, size: int, what: str) -> bool:
        try:
            self._chunk(digest, size, what)
        except CheckpointError:
            return False
        return True

    def _fetch_part(self, manifest: Manifest, partial: Path, file: ManifestFile, number: int, size: int) -> None:
        data = self._chunk(file.chunks[number], size, f"checkpoint {manifest.job} step {manifest.step}, {file.path}")
        try:
            with (partial / file.path).open("ab") as out:
                out.write(data)
        except OSError as error:
            raise CheckpointError(f"{partial / file.path}: cannot be written: {error}") from error

    async def _compare(self, manifest: Manifest, directory: Path) -> None:
        """Raises ``CheckpointError`` unless ``directory`` holds exactly this checkpoint."""
        found = await asyncio.to_thread(files.walk, directory)
        wanted = {(f.path, f.size_bytes) for f in manifest.files}
        if {(f.path, f.size_bytes) for f in found} != wanted:
            raise CheckpointError(
                f"{directory}: it exists and holds other files; remove it to fetch step {manifest.step}"
            )
        for file in manifest.files:
            for number, size in enumerate(chunk_sizes(file.size_bytes)):
                data = await asyncio.to_thread(files.read_part, directory, file.path, number * CHUNK_BYTES, size)
                if digest_of(data) != file.chunks[number]:
                    raise CheckpointError(
                        f"{directory / file.path}: it exists with another content; remove {directory}"
                    )


def _canonical(manifest: Manifest, job: JobId, step: int, digest: str) -> bytes:
    """The manifest's bytes, if they are what ``digest`` names."""
    data = encode(manifest)
    decode(data, job, step, digest)
    return data


def _read(directory: Path, path: str, offset: int, size: int) -> bytes:
    try:
        return files.read_part(directory, path, offset, size)
    except OSError as error:
        raise CheckpointError(f"{directory / path}: cannot be read: {error}") from error


def _fresh(partial: Path) -> None:
    try:
        files.remove_tree(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(mode=0o700)
    except OSError as error:
        raise CheckpointError(f"{partial}: cannot be created: {error}") from error


def _touch(partial: Path, file: ManifestFile) -> None:
    try:
        target = partial / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch(exist_ok=False)
    except OSError as error:
        raise CheckpointError(f"{partial / file.path}: cannot be created: {error}") from error


def _finish(partial: Path, file: ManifestFile) -> None:
    try:
        fd = os.open(partial / file.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(fd, file.mode)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise CheckpointError(f"{partial / file.path}: cannot be made durable: {error}") from error


def _appear(partial: Path, directory: Path) -> None:
    try:
        files.sync_tree(partial)
        partial.chmod(0o755)
        os.rename(partial, directory)
        files.sync_directory(directory.parent)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be put in place: {error}") from error
