"""Follows a growing file through rotation, whatever the rotator does: rename and create, truncate, copy and truncate.

A position is (inode, offset, mark), where the mark is a hash of the bytes just before the offset. It tells a file that
only grew from one that was truncated and has grown again, and finds the same place in a rotated copy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nodeagent.kernel_log import Entry, Gap, KernelLogError, whole
from nodeagent.kernel_parse import MAX_LINE, read_line

_CHUNK = 1024 * 1024
_MARK_BYTES = 256
_MAX_PARTIAL = 4 * MAX_LINE  # of a line whose end has not come; what is longer is cut there
_PATIENCE = 50  # polls (5 s) for which a renamed file is still read: its writer may hold it open that long


@dataclass(frozen=True, slots=True)
class _Place:
    inode: int
    offset: int
    mark: str


@dataclass(slots=True, eq=False)
class _Open:
    """A file being read. ``offset``: behind the last whole line taken."""

    descriptor: int
    inode: int
    offset: int
    mark: str
    skipping: bool = False  # inside a line that was too long and has been cut


class FileSource:
    """``Source`` over a file. ``saved`` None: an existing file is read from its end, one that appears later from its
    start. A saved position is found again in the file, or in a rotated sibling (``<name>.1``, ``<name>-2026…``),
    and everything written since is read; if it is nowhere, a ``Gap`` says so and the current file is read whole."""

    def __init__(self, path: Path, saved: Mapping[str, str | int] | None = None) -> None:
        self._path = path
        self._current: _Open | None = None
        self._old: list[_Open] = []  # rotated files still to be read, oldest first
        self._patience = 0
        self._gap = ""
        self._seen: set[int] = set()  # inodes of rotated siblings that are not news
        self._begin(saved)

    # -- Source --

    def poll(self, limit: int) -> tuple[Entry, ...]:
        entries: list[Entry] = []
        try:
            self._notice_rotation()
            if self._gap:
                entries.append(Gap(self._gap, certain=False))
                self._gap = ""
            while self._old and len(entries) < limit:
                file = self._old[0]
                got = self._lines(file, limit - len(entries))
                entries.extend(got)
                if got:
                    self._patience = _PATIENCE
                elif len(self._old) > 1 or self._patience <= 0:
                    entries.extend(self._rest(file))
                    os.close(self._old.pop(0).descriptor)
                    self._patience = _PATIENCE
                else:
                    self._patience -= 1
                    break
            if self._current and len(entries) < limit:
                entries.extend(self._lines(self._current, limit - len(entries)))
        except OSError as error:
            raise KernelLogError(
                f"kernel_log {self._path}: cannot be read ({error.strerror}); make it readable for the agent"
            ) from error
        return tuple(entries)

    def position(self) -> Mapping[str, str | int]:
        file = self._old[0] if self._old else self._current
        if file is None:
            return {"inode": 0, "offset": 0, "mark": ""}
        position: dict[str, str | int] = {"inode": file.inode, "offset": file.offset, "mark": file.mark}
        if len(self._old) == 1 and self._current and self._current.offset:
            # A renamed file lingers while the new one is read already. (With several, the new one waits its turn.)
            current = self._current
            position |= {"next_inode": current.inode, "next_offset": current.offset, "next_mark": current.mark}
        return position

    def close(self) -> None:
        for file in (*self._old, self._current):
            if file:
                os.close(file.descriptor)
        self._old, self._current = [], None

    # -- finding the place --

    def _begin(self, saved: Mapping[str, str | int] | None) -> None:
        self._current = self._open(self._path)
        if saved is None or "offset" not in saved:
            if self._current:
                self._move(self._current, os.fstat(self._current.descriptor).st_size)
        elif "next_offset" in saved:
            self._resume(_place(saved, "next_"))
            self._linger(_place(saved, ""))
        else:
            self._resume(_place(saved, ""))
        siblings = self._siblings()
        self._seen = {file.inode for file in siblings}
        _close(siblings)

    def _resume(self, place: _Place) -> None:
        """Go on at ``place``, which is in the current file or in a rotated sibling."""
        if self._current and _is_at(self._current, place):
            self._move(self._current, place.offset)
            return
        if place.offset == 0:
            return  # nothing had been read: the current file from its start
        siblings = self._siblings()
        for number, sibling in enumerate(siblings):  # newest first
            if _is_at(sibling, place):
                self._move(sibling, place.offset)
                self._old.extend(reversed(siblings[: number + 1]))
                self._patience = 0
                _close(siblings[number + 1 :])
                return
        _close(siblings)
        self._gap = f"{self._path.name} was truncated or rotated and the place read up to is gone; lines may be missing"

    def _linger(self, place: _Place) -> None:
        """Read the renamed file at ``place`` to its end, before the others."""
        siblings = [file for file in self._old if _is_at(file, place)] or self._siblings()
        for sibling in siblings:
            if _is_at(sibling, place):
                self._move(sibling, place.offset)
                self._old = [sibling, *(file for file in self._old if file is not sibling)]
                self._patience = _PATIENCE
                break
        _close([file for file in siblings if file not in self._old])

    def _move(self, file: _Open, offset: int) -> None:
        file.offset, file.mark, file.skipping = offset, _mark(file.descriptor, offset), False

    def _siblings(self) -> list[_Open]:
        """Rotated copies beside the file, newest first; compressed ones cannot be read and are left out."""
        current = self._current.inode if self._current else 0
        held = {file.inode for file in self._old} | {current}
        found: list[tuple[int, _Open]] = []
        for path in self._path.parent.glob(self._path.name + "[.-]*"):
            if path.suffix in (".gz", ".xz", ".zst", ".bz2", ".lz4"):
                continue
            file = self._open(path)
            if file and file.inode not in held:
                held.add(file.inode)
                found.append((os.fstat(file.descriptor).st_mtime_ns, file))
            elif file:
                os.close(file.descriptor)
        return [file for _, file in sorted(found, key=lambda pair: pair[0], reverse=True)]

    def _open(self, path: Path) -> _Open | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KernelLogError(
                f"kernel_log {path}: cannot be opened ({error.strerror}); make it readable for the agent"
            ) from error
        return _Open(descriptor, os.fstat(descriptor).st_ino, 0, "")

    # -- rotation while running --

    def _notice_rotation(self) -> None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return  # between rename and create
        if self._current is None:
            self._current = self._open(self._path)
            return
        if status.st_ino != self._current.inode:
            fresh = self._open(self._path)
            if fresh:
                self._rotate(self._current, fresh)
            return
        place = _Place(self._current.inode, self._current.offset, self._current.mark)
        if not _is_at(self._current, place):  # truncated, and perhaps grown again
            self._move(self._current, 0)
            self._resume(_Place(0, place.offset, place.mark))

    def _rotate(self, before: _Open, fresh: _Open) -> None:
        """``before`` was renamed. Files that came and went since the last poll lie between it and ``fresh``."""
        self._old.append(before)
        self._current = fresh
        self._patience = _PATIENCE
        last_write = os.fstat(before.descriptor).st_mtime_ns
        siblings = self._siblings()
        between = [
            file
            for file in reversed(siblings)
            if file.inode not in self._seen or os.fstat(file.descriptor).st_mtime_ns > last_write
        ]
        self._old.extend(between)
        self._seen = {file.inode for file in (*siblings, before)}
        _close([file for file in siblings if file not in between])

    # -- reading --

    def _lines(self, file: _Open, limit: int) -> list[Entry]:
        """Whole lines behind ``file.offset``; a last line without its end stays there."""
        data = os.pread(file.descriptor, _CHUNK, file.offset)
        taken = 0
        entries: list[Entry] = []
        while len(entries) < limit:
            end = data.find(b"\n", taken)
            if end < 0:
                break
            if file.skipping:
                file.skipping = False
            elif end > taken:
                entries.append(read_line(data[taken : end + 1]))
            taken = end + 1
        if taken == 0 and len(data) > _MAX_PARTIAL:  # no end in sight: keep what can be used, skip to the end
            if not file.skipping:
                entries.append(read_line(data[:_MAX_PARTIAL]))
            file.skipping = True
            taken = len(data)
        if taken:
            file.offset += taken
            file.mark = _mark(file.descriptor, file.offset)
        return entries

    def _rest(self, file: _Open) -> list[Entry]:
        """The last line of a file that nobody writes any more, though it has no end."""
        data = os.pread(file.descriptor, _MAX_PARTIAL, file.offset)
        return [read_line(data)] if data.strip() and not file.skipping else []


def _mark(descriptor: int, offset: int) -> str:
    """A hash of the up to 256 bytes before ``offset``."""
    start = max(0, offset - _MARK_BYTES)
    data = os.pread(descriptor, offset - start, start)
    return hashlib.sha256(data).hexdigest()[:32] if len(data) == offset - start else ""


def _is_at(file: _Open, place: _Place) -> bool:
    """Whether ``place`` is in this file: it is long enough, and the bytes before the offset are the same. The inode
    alone proves nothing (copies have another, and numbers are used again)."""
    if place.offset == 0:
        return place.inode == file.inode
    return os.fstat(file.descriptor).st_size >= place.offset and _mark(file.descriptor, place.offset) == place.mark


def _place(saved: Mapping[str, str | int], prefix: str) -> _Place:
    return _Place(
        whole(saved, prefix + "inode", 0), max(0, whole(saved, prefix + "offset", 0)), str(saved.get(prefix + "mark"))
    )


def _close(files: Iterable[_Open]) -> None:
    for file in files:
        os.close(file.descriptor)
