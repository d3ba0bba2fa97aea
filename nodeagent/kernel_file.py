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

from nodeagent.kernel.line import MAX_LINE, read_line
from nodeagent.kernel_log import Entry, Gap, KernelLogError, whole

_CHUNK = 1024 * 1024
_MARK_BYTES = 256
_MAX_PARTIAL = 4 * MAX_LINE  # of a line whose end has not come; what is longer is cut there
_PATIENCE = 50  # polls (5 s) for which a renamed file is still read: its writer may hold it open that long


@dataclass(frozen=True, slots=True)
class _Place:
    inode: int
    offset: int
    mark: str

    def __str__(self) -> str:
        return f"{self.inode}:{self.offset}:{self.mark}"


_NOWHERE = _Place(0, 0, "")


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
        self._newest = 0  # inode of the newest rotated sibling
        self._seen: set[int] = set()  # inodes of rotated siblings that are not news
        try:
            self._begin(saved)
        except OSError as error:
            raise self._unreadable(error) from error

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
            raise self._unreadable(error) from error
        return tuple(entries)

    def position(self) -> Mapping[str, str | int]:
        current = str(_at(self._current)) if self._current else str(_NOWHERE)
        return {"places": " ".join([*(str(_at(file)) for file in self._old), current]), "newest": self._newest}

    def close(self) -> None:
        for file in (*self._old, self._current):
            if file:
                os.close(file.descriptor)
        self._old, self._current = [], None

    def _unreadable(self, error: OSError) -> KernelLogError:
        path = error.filename or self._path
        return KernelLogError(f"kernel_log {path}: cannot be read ({error.strerror}); name a readable log file")

    # -- finding the place --

    def _begin(self, saved: Mapping[str, str | int] | None) -> None:
        self._current = self._open(self._path)
        places = _places(saved)
        if not places:
            if self._current:
                self._move(self._current, os.fstat(self._current.descriptor).st_size)
        else:
            *earlier, last = places
            self._resume(last)
            if last.offset == 0 and self._current and last.inode == self._current.inode:
                self._catch_copies(whole(saved or {}, "newest", 0))
            for place in reversed(earlier):
                self._linger(place)
        self._remember_siblings()

    def _remember_siblings(self) -> None:
        siblings = self._siblings(held_too=True)
        self._seen = {file.inode for file in siblings}
        self._newest = siblings[0].inode if siblings else 0
        _close(siblings)

    def _catch_copies(self, newest: int) -> None:
        """Nothing of the current file was read, so nothing tells whether it was truncated since. Copies made after
        the one that was the newest then (0: there was none) are read first."""
        held = {file.inode for file in self._old}
        siblings = self._siblings(held_too=True)
        known = [n for n, file in enumerate(siblings) if file.inode == newest or file.inode in held]
        count = known[0] if known else len(siblings) * (newest == 0)
        if count:
            self._old.extend(reversed(siblings[:count]))
            self._patience = _PATIENCE
        _close(siblings[count:])

    def _resume(self, place: _Place) -> None:
        """Go on at ``place``, which is in the current file or in a rotated sibling."""
        if self._current and _is_at(self._current, place):
            self._move(self._current, place.offset)
            return
        if place.offset == 0 and place.inode == 0:
            return  # there was no file: the current one from its start
        siblings = self._siblings()
        for number, sibling in enumerate(siblings):  # newest first
            if _is_at(sibling, place):
                self._move(sibling, place.offset)
                self._old.extend(reversed(siblings[: number + 1]))
                self._patience = _PATIENCE
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

    def _siblings(self, held_too: bool = False) -> list[_Open]:
        """Rotated copies beside the file, newest first: by number (".1" is the newest), or else by time and name.
        Compressed ones cannot be read and are left out."""
        current = self._current.inode if self._current else 0
        held = {current} if held_too else {current, *(file.inode for file in self._old)}
        found: list[tuple[str, int, _Open]] = []
        for path in self._path.parent.glob(self._path.name + "[.-]*"):
            if path.suffix in (".gz", ".xz", ".zst", ".bz2", ".lz4"):
                continue
            file = self._open(path)
            if file and file.inode not in held:
                held.add(file.inode)
                suffix = path.name[len(self._path.name) + 1 :]
                found.append((suffix, os.fstat(file.descriptor).st_mtime_ns, file))
            elif file:
                os.close(file.descriptor)
        if all(suffix.isdecimal() for suffix, _, _ in found):
            return [file for _, _, file in sorted(found, key=lambda item: int(item[0]))]
        return [file for _, _, file in sorted(found, key=lambda item: (item[1], item[0]), reverse=True)]

    def _open(self, path: Path) -> _Open | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(error) from error
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
                self._remember_siblings()
            return
        place = _at(self._current)
        if place.offset == 0:
            before = len(self._old)
            self._catch_copies(self._newest)
            if len(self._old) > before:
                self._remember_siblings()
        elif not _is_at(self._current, place):  # truncated, and perhaps grown again
            self._move(self._current, 0)
            self._resume(_Place(0, place.offset, place.mark))
            self._remember_siblings()

    def _rotate(self, before: _Open, fresh: _Open) -> None:
        """``before`` was renamed. Files that came and went since the last poll lie between it and ``fresh``."""
        self._current = fresh
        place = _at(before)
        if not _is_at(before, place):  # truncated first, then renamed
            os.close(before.descriptor)
            self._resume(_Place(0, place.offset, place.mark))
            return
        self._old.append(before)
        self._patience = _PATIENCE
        last_write = os.fstat(before.descriptor).st_mtime_ns
        siblings = self._siblings()
        between = [
            file
            for file in reversed(siblings)
            if file.inode not in self._seen or os.fstat(file.descriptor).st_mtime_ns > last_write
        ]
        self._old.extend(between)
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


def _at(file: _Open) -> _Place:
    return _Place(file.inode, file.offset, file.mark)


def _places(saved: Mapping[str, str | int] | None) -> list[_Place]:
    """Of the rotated files still being read, and last of the current one; empty if none is saved."""
    found = []
    for text in str((saved or {}).get("places", "")).split():
        inode, _, rest = text.partition(":")
        offset, _, mark = rest.partition(":")
        if not (inode.isdecimal() and offset.isdecimal()):
            return []
        found.append(_Place(int(inode), int(offset), mark))
    return found


def _close(files: Iterable[_Open]) -> None:
    for file in files:
        os.close(file.descriptor)
