"""Files that survive a power cut: written aside, fsynced, renamed. Blocking; callers use a thread.

Nothing here follows a symbolic link: each open says so, and a directory is entered only through a descriptor of its
parent.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gridkeeper.ports.jobs import CheckpointError

READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
DIRECTORY_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file of a checkpoint directory. ``mtime_ns`` and ``size_bytes`` as of when it was listed."""

    path: str  # relative, "/" separated
    size_bytes: int
    mode: int
    mtime_ns: int


def walk(directory: Path) -> tuple[Found, ...]:
    """All files below ``directory``, in order of path. Raises ``CheckpointError`` for a link or special file: left out,
    it would be missing at the resume; followed, it could lead anywhere."""
    try:
        return tuple(sorted(_walk(directory, ""), key=lambda f: f.path))
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read: {error}") from error


def _walk(directory: Path, prefix: str) -> Iterator[Found]:
    with os.scandir(directory) as entries:
        for entry in entries:
            path = f"{prefix}{entry.name}"
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                yield from _walk(directory / entry.name, f"{path}/")
            elif stat.S_ISREG(info.st_mode):
                yield Found(path, info.st_size, info.st_mode & 0o777, info.st_mtime_ns)
            else:
                raise CheckpointError(
                    f"{directory / entry.name}: it is a link or a special file; a checkpoint holds regular files only"
                )


def open_below(root: Path, path: str) -> int:
    """A descriptor of the file ``path`` below ``root``, no part of it a link. Raises ``OSError``."""
    *parents, name = path.split("/")
    held = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parents:
            below = os.open(part, DIRECTORY_FLAGS, dir_fd=held)
            os.close(held)
            held = below
        return os.open(name, READ_FLAGS, dir_fd=held)
    finally:
        os.close(held)


def read_part(root: Path, path: str, offset: int, size: int) -> bytes:
    """Up to ``size`` bytes at ``offset``. Raises ``OSError``."""
    fd = open_below(root, path)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{root / path} is not a regular file")
        parts: list[bytes] = []
        while size > 0:
            data = os.pread(fd, size, offset)
            if not data:
                break
            parts.append(data)
            offset += len(data)
            size -= len(data)
        return b"".join(parts)
    finally:
        os.close(fd)


def regular_size(path: Path) -> int:
    """Size of a regular file; -1 if there is none of that name."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return -1
    return info.st_size if stat.S_ISREG(info.st_mode) else -1


def write_aside(staging: Path, data: bytes) -> str:
    """Write ``data`` to a new file in ``staging``; its path. It is durable after ``sync_file``; the disk begins now.
    Nothing is left behind on failure."""
    fd, name = tempfile.mkstemp(dir=staging)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # Linux starts to write dirty pages back
        finally:
            os.close(fd)
    except BaseException:
        os.unlink(name)
        raise
    return name


def sync_file(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(directory: Path) -> None:
    """Make renames and new names in it durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(directory: Path) -> None:
    """Create it, and make its name durable, if it is not there. Raises ``OSError``, also if it is a link."""
    if directory.is_symlink():
        raise OSError(f"{directory} is a symbolic link")
    if not directory.is_dir():
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync_tree(directory: Path) -> None:
    """Make the names in a directory and all below durable."""
    for path, _, _ in os.walk(directory):
        sync_directory(Path(path))


def remove_tree(directory: Path) -> None:
    """Whatever is at that name, without following links."""
    if directory.is_symlink() or directory.is_file():
        directory.unlink()
    else:
        shutil.rmtree(directory, ignore_errors=True)
