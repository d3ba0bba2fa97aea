"""``Blobs`` in a directory: each file is written aside, fsynced and renamed, each name fsynced in its directory.

obstore has a local store too; it renames without fsync, so after a power cut a name may stand for nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from failover.checkpoint import files
from failover.checkpoint.blobs import Blob, BlobMissing, Staged
from gridkeeper.ports.jobs import CheckpointError

STALE_S = 24 * 3600


class DirectoryBlobs:
    """Implements ``Blobs``. ``root`` is created when first needed. Several processes may use it at the same time. What
    is being written is in ``staging/``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = root / "staging"

    def __str__(self) -> str:
        return str(self._root)

    def prepare(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            files.make_directory(self._staging)
        except OSError as error:
            raise CheckpointError(f"{self._root}: the checkpoint store cannot be written: {error}") from error

    def read(self, name: str, limit: int) -> bytes:
        try:
            return files.read_part(self._root, name, 0, limit + 1)
        except FileNotFoundError as error:
            raise BlobMissing(f"{self._root / name}: {error.strerror}") from error
        except OSError as error:
            raise CheckpointError(f"{self._root / name}: cannot be read: {error}") from error

    def size(self, name: str) -> int:
        try:
            return files.regular_size(self._root / name)
        except OSError as error:
            raise CheckpointError(f"{self._root / name}: cannot be looked at: {error}") from error

    def stage(self, name: str, data: bytes) -> Staged:
        """The disk begins to write it at once."""
        try:
            return Staged(name, files.write_aside(self._staging, data))
        except OSError as error:
            raise CheckpointError(f"{self._root / name}: cannot be stored: {error}") from error

    def publish(self, staged: Sequence[Staged]) -> None:
        """One commit of the file system's journal serves the whole batch."""
        try:
            for one in staged:
                files.sync_file(one.held)
            for one in staged:
                self._make_parents(one.name)
                os.replace(one.held, self._root / one.name)
        except OSError as error:
            self.discard(staged)
            where = self._root / staged[0].name
            raise CheckpointError(f"{where} and {len(staged) - 1} more: cannot be stored: {error}") from error

    def discard(self, staged: Sequence[Staged]) -> None:
        for one in staged:
            with contextlib.suppress(OSError):
                os.unlink(one.held)

    def _make_parents(self, name: str) -> None:
        directory = self._root
        for part in name.split("/")[:-1]:
            directory /= part
            files.make_directory(directory)

    def settle(self, names: Iterable[str]) -> None:
        try:
            for directory in sorted({(self._root / name).parent for name in names}):
                files.sync_directory(directory)
        except OSError as error:
            raise CheckpointError(f"{self._root}: names cannot be made durable: {error}") from error

    def move(self, name: str, to: str) -> None:
        try:
            self._make_parents(to)
            os.replace(self._root / name, self._root / to)
        except FileNotFoundError as error:
            raise BlobMissing(f"{self._root / name}: {error.strerror}") from error
        except OSError as error:
            raise CheckpointError(f"{self._root / name}: cannot be moved to {to}: {error}") from error

    def remove(self, name: str) -> None:
        try:
            (self._root / name).unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self._root / name}: cannot be removed: {error}") from error

    def tidy(self) -> None:
        """What was staged more than a day ago, by the file system's own clock."""
        try:
            probe = files.write_aside(self._staging, b"")
            now = os.stat(probe).st_mtime
            os.unlink(probe)
            for path in self._staging.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if now - path.lstat().st_mtime > STALE_S:
                        path.unlink()
        except OSError as error:
            raise CheckpointError(f"{self._staging}: cannot be tidied: {error}") from error

    def walk(self, prefix: str) -> Iterator[Blob]:
        try:
            for directory, _, names in os.walk(self._root / prefix, onerror=_unless_absent):
                for name in names:
                    path = Path(directory, name)
                    size = files.regular_size(path)
                    if size >= 0:
                        yield Blob(path.relative_to(self._root).as_posix(), size)
        except OSError as error:
            raise CheckpointError(f"{self._root / prefix}: cannot be listed: {error}") from error


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
