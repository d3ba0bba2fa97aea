"""The ``DiskLog`` port on files, and the directory in which one log replaces another.

A log is a directory ``<number>-<id>`` of segments named by the sequence of their first record. A segment is a run of
frames: length and CRC-32 (4 bytes each, big endian), then a type byte and the payload; the CRC covers the sequence too,
so that a frame in the wrong place does not pass. A mark frame holds the sequence up to which all is released. At open
the newest segment is cut at its first frame that does not check: such a tail was never acknowledged. The same in an
older segment is damage: its records are read as empty ones, so that sequences stay without gaps.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gridkeeper.ports.clock import Rng
from gridkeeper.ports.disk import DiskError, DiskLog

_FRAME = struct.Struct(">II")
_MARK = struct.Struct(">Q")
_RECORD_TYPE, _MARK_TYPE = b"R", b"M"
_SUFFIX = ".seg"
_UNFINISHED = ".new"
MAX_RECORD = 1 << 20
SEGMENT_BYTES = 1 << 20


class LogSource(Protocol):
    """A disk that holds one log at a time."""

    async def open(self) -> DiskLog:
        """The log that is there, or a new one. Raises ``DiskError``."""
        ...

    async def replace(self, records: list[bytes]) -> DiskLog:
        """A new log, with a new id, that holds ``records`` from sequence 1; the older one is gone. All or nothing.
        Raises ``DiskError``."""
        ...


@dataclass(slots=True)
class _Segment:
    path: Path
    first: int
    records: int
    size: int


def _frame(sequence: int, kind: bytes, payload: bytes) -> bytes:
    body = kind + payload
    return _FRAME.pack(len(body), zlib.crc32(body, sequence & 0xFFFFFFFF)) + body


def _frames(data: bytes, first: int) -> Iterator[tuple[int, bytes, bytes]]:
    """(end offset, type, payload) of the frames that check, in order; ends at the first that does not."""
    offset, sequence = 0, first
    while offset + _FRAME.size <= len(data):
        length, crc = _FRAME.unpack_from(data, offset)
        end = offset + _FRAME.size + length
        if not 1 <= length <= MAX_RECORD + 1 or end > len(data):
            return
        body = data[offset + _FRAME.size : end]
        if zlib.crc32(body, sequence & 0xFFFFFFFF) != crc:
            return
        yield end, body[:1], body[1:]
        sequence += body[:1] == _RECORD_TYPE
        offset = end


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class FileDiskLog:
    """One log. Blocking work runs in a thread, one call at a time."""

    def __init__(self, path: Path, max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Open what is in ``path`` (which exists). Raises ``DiskError``."""
        self._path = path
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._turn = asyncio.Lock()
        self._file: int = -1
        self._segments: list[_Segment] = []
        self._released = 0
        self._mark_written = 0
        self._broken = ""
        try:
            self._load()
        except OSError as error:
            raise DiskError(f"spool {path}: {error}") from error

    @property
    def id(self) -> str:
        return self._path.name.removesuffix(_UNFINISHED).partition("-")[2]

    @property
    def size_bytes(self) -> int:
        return sum(segment.size for segment in self._segments)

    @property
    def last(self) -> int:
        return self._next - 1

    @property
    def _next(self) -> int:
        if not self._segments:
            return 1
        return self._segments[-1].first + self._segments[-1].records

    def _load(self) -> None:
        paths = sorted(self._path.glob("*" + _SUFFIX))
        for index, path in enumerate(paths):
            first = int(path.name.removesuffix(_SUFFIX))
            data = path.read_bytes()
            end, records = 0, 0
            for offset, kind, payload in _frames(data, first):
                end = offset
                if kind == _RECORD_TYPE:
                    records += 1
                elif kind == _MARK_TYPE:
                    self._released = max(self._released, _MARK.unpack(payload)[0])
            if index + 1 < len(paths):
                records = int(paths[index + 1].name.removesuffix(_SUFFIX)) - first
            elif end < len(data):
                os.truncate(path, end)
            self._segments.append(_Segment(path, first, records, end if index + 1 == len(paths) else len(data)))
        if self._segments:
            self._released = max(self._released, self._segments[0].first - 1)
        self._mark_written = self._released

    def read(self) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        try:
            for segment in self._segments:
                good = [p for _, kind, p in _frames(segment.path.read_bytes(), segment.first) if kind == _RECORD_TYPE]
                good += [b""] * (segment.records - len(good))
                found.extend(enumerate(good[: segment.records], segment.first))
        except OSError as error:
            raise DiskError(f"spool {self._path}: {error}") from error
        return [(sequence, payload) for sequence, payload in found if sequence > self._released]

    async def append(self, records: list[bytes]) -> None:
        async with self._turn:
            await asyncio.to_thread(self._append, list(records))

    def _append(self, records: list[bytes]) -> None:
        if self._broken:
            raise DiskError(self._broken)
        frames: list[bytes] = []
        sequence = self._next
        if self._mark_written < self._released:
            frames.append(_frame(sequence, _MARK_TYPE, _MARK.pack(self._released)))
        for payload in records:
            if len(payload) > MAX_RECORD:
                raise DiskError(f"spool {self._path}: a record of {len(payload)} bytes is over {MAX_RECORD}")
            frames.append(_frame(sequence, _RECORD_TYPE, payload))
            sequence += 1
        data = b"".join(frames)
        if self.size_bytes + len(data) > self._max_bytes:
            raise DiskError(f"spool {self._path}: full, {self.size_bytes} of {self._max_bytes} bytes are in use")
        try:
            segment = self._writable()
        except OSError as error:
            raise DiskError(f"spool {self._path}: {error}") from error
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], segment.size + written)
            os.fdatasync(self._file)
        except OSError as error:
            self._undo(segment)
            raise DiskError(f"spool {segment.path}: {error}") from error
        segment.size += len(data)
        segment.records += len(records)
        self._mark_written = self._released

    def _undo(self, segment: _Segment) -> None:
        """Cut off what a failed append may have left; a log of which that fails is not written to again."""
        try:
            os.ftruncate(self._file, segment.size)
            os.fdatasync(self._file)
        except OSError as error:
            self._broken = f"spool {segment.path}: {error}, and the torn tail could not be cut off"

    def _writable(self) -> _Segment:
        """The newest segment, open; a fresh one if it is full or holds nothing that is still needed."""
        last = self._segments[-1] if self._segments else None
        spent = last is not None and last.size > 0 and self._released >= self._next - 1
        if last is not None and last.size < self._segment_bytes and not spent:
            if self._file < 0:
                self._file = os.open(last.path, os.O_RDWR | os.O_CLOEXEC)
            return last
        path = self._path / f"{self._next:020d}{_SUFFIX}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _fsync_directory(self._path)
        except OSError:
            os.close(fd)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file = fd
        segment = _Segment(path, self._next, 0, 0)
        self._segments.append(segment)
        self._drop_spent()
        return segment

    def _drop_spent(self) -> None:
        while len(self._segments) > 1 and self._segments[1].first - 1 <= self._released:
            self._segments[0].path.unlink(missing_ok=True)
            del self._segments[0]

    async def release(self, sequence: int) -> None:
        async with self._turn:
            if sequence <= self._released:
                return
            self._released = min(sequence, self._next - 1)
            try:
                await asyncio.to_thread(self._drop_spent)
            except OSError as error:
                raise DiskError(f"spool {self._path}: {error}") from error

    async def close(self) -> None:
        async with self._turn:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


class FileLogs:
    """``LogSource`` on a directory. ``max_bytes`` bounds each log."""

    def __init__(self, path: Path, max_bytes: int, rng: Rng, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._rng = rng
        self._segment_bytes = segment_bytes
        self._turn = threading.Lock()

    def _logs(self) -> list[Path]:
        return sorted(p for p in self._path.iterdir() if p.is_dir() and p.name.partition("-")[0].isdecimal())

    async def open(self) -> FileDiskLog:
        try:
            return await asyncio.to_thread(self._open)
        except OSError as error:
            raise DiskError(f"spool {self._path}: {error}") from error

    def _open(self) -> FileDiskLog:
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
        whole = []
        for log in self._logs():
            if log.name.endswith(_UNFINISHED):
                shutil.rmtree(log)
            else:
                whole.append(log)
        for older in whole[:-1]:
            shutil.rmtree(older)
        if whole:
            return FileDiskLog(whole[-1], self._max_bytes, self._segment_bytes)
        return self._create([])

    async def replace(self, records: list[bytes]) -> FileDiskLog:
        try:
            return await asyncio.to_thread(self._replace, list(records))
        except OSError as error:
            raise DiskError(f"spool {self._path}: {error}") from error

    def _replace(self, records: list[bytes]) -> FileDiskLog:
        """One at a time: what nobody waits for any more, on a disk that hung, must not come after a newer one."""
        if not self._turn.acquire(blocking=False):
            raise DiskError(f"spool {self._path}: the disk has not finished an earlier log")
        try:
            return self._create(records)
        finally:
            self._turn.release()

    def _create(self, records: list[bytes]) -> FileDiskLog:
        older = self._logs()
        number = int(older[-1].name.partition("-")[0]) + 1 if older else 1
        path = self._path / f"{number:012d}-{self._rng.token(8)}"
        scratch = path.with_name(path.name + _UNFINISHED)
        scratch.mkdir(mode=0o700)
        try:
            log = FileDiskLog(scratch, self._max_bytes, self._segment_bytes)
            if records:
                log._append(records)
                os.close(log._file)
            _fsync_directory(scratch)
            os.rename(scratch, path)
            _fsync_directory(self._path)
        except (OSError, DiskError):
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        for log_path in older:
            shutil.rmtree(log_path, ignore_errors=True)
        return FileDiskLog(path, self._max_bytes, self._segment_bytes)
