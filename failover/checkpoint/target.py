"""The directory that a checkpoint is fetched into: it appears whole and durable, or not at all. Blocking."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from failover.checkpoint import files
from failover.checkpoint.manifest import CHUNK_BYTES, chunk_sizes, digest_of
from gridkeeper.ports.jobs import CheckpointError, Manifest, ManifestFile


class Target:
    """Written beside ``directory`` and renamed by ``appear``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._partial = directory.with_name(f".{directory.name}.partial")

    def begin(self, wanted: Iterable[ManifestFile]) -> None:
        """All files, empty."""
        try:
            files.remove_tree(self._partial)
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(mode=0o700)
            for file in wanted:
                path = self._partial / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(exist_ok=False)
        except OSError as error:
            raise CheckpointError(f"{self._partial}: cannot be created: {error}") from error

    def _open(self, file: ManifestFile) -> int:
        return os.open(self._partial / file.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def write(self, file: ManifestFile, offset: int, data: bytes) -> None:
        """A part of a file."""
        try:
            fd = self._open(file)
            try:
                view = memoryview(data)
                while view:
                    written = os.pwrite(fd, view, offset)
                    view, offset = view[written:], offset + written
            finally:
                os.close(fd)
        except OSError as error:
            raise CheckpointError(f"{self._partial / file.path}: cannot be written: {error}") from error

    def finish(self, file: ManifestFile) -> None:
        """All parts are written: its mode, and to the disk."""
        try:
            fd = self._open(file)
            try:
                os.fchmod(fd, file.mode)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise CheckpointError(f"{self._partial / file.path}: cannot be made durable: {error}") from error

    def appear(self) -> None:
        try:
            files.sync_tree(self._partial)
            self._partial.chmod(0o755)
            os.rename(self._partial, self._directory)
            files.sync_directory(self._directory.parent)
        except OSError as error:
            raise CheckpointError(f"{self._directory}: cannot be put in place: {error}") from error

    def discard(self) -> None:
        files.remove_tree(self._partial)


def compare(manifest: Manifest, directory: Path) -> None:
    """Raises ``CheckpointError`` unless ``directory`` holds exactly this checkpoint."""
    found = files.walk(directory)
    if {(f.path, f.size_bytes) for f in found} != {(f.path, f.size_bytes) for f in manifest.files}:
        raise CheckpointError(f"{directory}: it exists and holds other files; remove it to fetch step {manifest.step}")
    for file in manifest.files:
        for number, size in enumerate(chunk_sizes(file.size_bytes)):
            try:
                data = files.read_part(directory, file.path, number * CHUNK_BYTES, size)
            except OSError as error:
                raise CheckpointError(f"{directory / file.path}: cannot be read: {error}") from error
            if digest_of(data) != file.chunks[number]:
                raise CheckpointError(f"{directory / file.path}: it exists with another content; remove {directory}")
