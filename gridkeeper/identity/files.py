"""Reading and writing key material: keys are 0600 from their first byte on, and a wider one is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MAX_PEM = 1024 * 1024


class TlsError(ValueError):
    """Key material that is missing, unreadable or no PEM of the expected kind; names the file and the remedy."""


class InsecureKey(TlsError):
    """Others than its owner can read the key."""


def read_file(field: str, path: str | os.PathLike[str], *, secret: bool = False) -> bytes:
    """The first bytes of the file, at most ``MAX_PEM + 1``. ``secret``: refuse it (``InsecureKey``) when group or
    others have any right. The mode is that of the file which is read, not of a name looked up before. Raises
    ``TlsError``."""
    if not os.fspath(path):
        raise TlsError(f"{field}: no file is given")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise TlsError(f"{field}: {os.fspath(path)}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise TlsError(f"{field}: {os.fspath(path)} is no regular file")
        if secret and status.st_mode & 0o077:
            raise InsecureKey(
                f"{field}: {os.fspath(path)} has mode {stat.S_IMODE(status.st_mode):04o}, so others than its owner can "
                f"use it; run: chmod 600 {os.fspath(path)}"
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_PEM + 1)
    finally:
        os.close(descriptor)


def read_pem(field: str, path: str | os.PathLike[str], *, secret: bool = False) -> bytes:
    """As ``read_file``, of a file that holds PEM. Raises ``TlsError``."""
    data = read_file(field, path, secret=secret)
    if len(data) > MAX_PEM or b"-----BEGIN " not in data:
        raise TlsError(f"{field}: {os.fspath(path)} is no PEM file; write it with 'gridkeeper ca issue'")
    return data


def write_pem(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Write the file whole or not at all, durably; ``secret``: 0600, else 0644."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    mode = 0o600 if secret else 0o644
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    os.replace(scratch, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
