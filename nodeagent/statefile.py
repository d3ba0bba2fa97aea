"""A small file that is replaced whole, and the lock on the agent's state directory."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from pathlib import Path
from typing import Protocol

from gridkeeper.ports.disk import DiskError


class StateFile(Protocol):
    def load(self) -> bytes | None:
        """None: there was never one. Raises ``DiskError``."""
        ...

    async def save(self, data: bytes) -> None:
        """Durable on return, all or nothing. Raises ``DiskError``."""
        ...


class MemoryState:
    """``StateFile`` that forgets when the process ends: for hosts on which nothing needs remembering."""

    def __init__(self) -> None:
        self._data: bytes | None = None

    def load(self) -> bytes | None:
        return self._data

    async def save(self, data: bytes) -> None:
        self._data = data


class FileState:
    """``StateFile`` at a path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DiskError(f"{self._path}: {error}") from error

    async def save(self, data: bytes) -> None:
        try:
            await asyncio.to_thread(self._save, data)
        except OSError as error:
            raise DiskError(f"{self._path}: {error}") from error

    def _save(self, data: bytes) -> None:
        scratch = self._path.with_name(self._path.name + ".new")
        # Orders carry the environment of jobs: nobody else may read them.
        with open(scratch, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class StateDirInUse(RuntimeError):
    """Another agent runs on this state directory."""


class StateDirLock:
    """Held as long as the process lives, or until ``release``."""

    def __init__(self, directory: Path) -> None:
        """Raises ``StateDirInUse`` and ``OSError``."""
        self._fd = os.open(directory / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise StateDirInUse(
                f"state_dir: {directory} is used by another agent (pid {holder or 'unknown'}); "
                "stop that one, or give this one a directory of its own"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)
