"""Reads the kernel log: /dev/kmsg, or a file that is followed through rotation. Remembers how far it got.

Lines are handed on before the position is saved, so after a crash in between they come once more (the spool's
deduplication counts them); a line is never passed over without a ``Gap`` that says so.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gridkeeper.ports.clock import Clock
from gridkeeper.ports.devices import Sighting
from gridkeeper.records.fleet import EventKind
from nodeagent.kernel.line import LogLine, read_line

log = logging.getLogger("gridkeeper.agent.kernellog")

POLL_MS = 100
"""A read of nothing costs two system calls; the NVML event thread is what makes faults immediate."""

_BATCH = 2_000  # records or lines per poll, so that a flood does not hold the event loop


@dataclass(frozen=True, slots=True)
class Gap:
    """Lines are missing before the next one. ``certain=False``: they may be (the log was truncated and no copy was
    left to look into); True: they are, and the node's picture has a hole."""

    reason: str
    certain: bool = True


LINES_LOST = 1
"""Code of the ``OVERFLOW`` event "lines of the kernel log were lost"."""


def gap_sighting(gap: Gap, now_ms: int) -> Sighting | None:
    """The node event that a certain gap is; an uncertain one is only worth a line in the agent's own log."""
    if not gap.certain:
        return None
    return Sighting("", EventKind.OVERFLOW, LINES_LOST, f"kernel log: {gap.reason}", "kmsg", now_ms)


Entry = LogLine | Gap
Handle = Callable[[tuple[Entry, ...]], Awaitable[None]]


class KernelLogError(Exception):
    """The log cannot be opened or read; names path, cause and remedy."""


class Source(Protocol):
    """A place to read from. ``position`` is what ``Memory`` keeps: JSON values only."""

    def poll(self, limit: int) -> tuple[Entry, ...]:
        """What is new, at most about ``limit`` entries; empty when there is nothing. Raises ``KernelLogError``."""
        ...

    def position(self) -> Mapping[str, str | int]: ...

    def close(self) -> None: ...


def whole(position: Mapping[str, str | int], name: str, otherwise: int) -> int:
    """A number of a saved position."""
    value = position.get(name)
    return value if isinstance(value, int) else otherwise


class Memory:
    """Keeps a position in a file (``path`` None: nowhere)."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._saved: Mapping[str, str | int] | None = None

    def load(self) -> Mapping[str, str | int] | None:
        """The saved position; None if there is none. One that does not decode is none, and is logged."""
        if self._path is None:
            return None
        try:
            position = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning(
                "The kernel log position %s is unreadable (%s); reading goes on from the end.", self._path, error
            )
            return None
        return position if isinstance(position, dict) else None

    def save(self, position: Mapping[str, str | int]) -> None:
        """Durable on return. A disk that does not take it is logged: lines may then be read twice after a restart."""
        if self._path is None or position == self._saved:
            return
        scratch = self._path.with_name(self._path.name + ".new")
        try:
            with open(scratch, "w", encoding="utf-8") as file:
                json.dump(dict(position), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self._path)
            self._saved = dict(position)
        except OSError as error:
            log.warning("The kernel log position could not be saved to %s: %s.", self._path, error)


class KmsgSource:
    """/dev/kmsg: one record per read. ``saved`` of the same boot: goes on after that record; of an earlier boot:
    everything since this boot; none: from now on, as faults of days ago are no news."""

    def __init__(self, path: Path, boot_id: str, saved: Mapping[str, str | int] | None = None) -> None:
        self._path = path
        self._boot_id = boot_id
        self._last = -1
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise KernelLogError(
                f"kernel_log {path}: cannot be opened ({error.strerror}); run the agent with CAP_SYSLOG, "
                "or name a file that a syslog daemon writes"
            ) from error
        if saved is None or "boot_id" not in saved:
            os.lseek(self._file, 0, os.SEEK_END)
        elif saved["boot_id"] == boot_id:
            self._last = whole(saved, "sequence", -1)

    def poll(self, limit: int) -> tuple[Entry, ...]:
        entries: list[Entry] = []
        while len(entries) < limit:
            try:
                raw = os.read(self._file, 8192)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                    break
                if error.errno == errno.EPIPE:  # overwritten before it was read; the next read goes on
                    entries.append(Gap("the kernel's ring buffer overran before it was read"))
                    continue
                if error.errno == errno.EINVAL:  # the record is larger than the buffer, and is skipped
                    entries.append(Gap("a kernel record was too long to read"))
                    continue
                raise KernelLogError(f"kernel_log {self._path}: cannot be read ({error.strerror})") from error
            if not raw:
                break
            line = read_line(raw)
            if line.sequence > self._last or line.sequence < 0:
                self._last = max(self._last, line.sequence)
                entries.append(line)
        return tuple(entries)

    def position(self) -> Mapping[str, str | int]:
        return {"boot_id": self._boot_id, "sequence": self._last}

    def close(self) -> None:
        os.close(self._file)


class KernelLog:
    """Polls a source and hands entries on. ``open_source(saved)`` makes the source from the saved position."""

    def __init__(
        self,
        open_source: Callable[[Mapping[str, str | int] | None], Source],
        memory: Memory,
        clock: Clock,
        poll_ms: int = POLL_MS,
    ) -> None:
        self._open_source = open_source
        self._memory = memory
        self._clock = clock
        self._poll_ms = poll_ms
        self.error = ""  # why nothing is being read just now; "" while it is

    async def run(self, handle: Handle) -> None:
        """For ever. ``handle`` gets each batch of entries; when it returns, they are taken care of and the position
        behind them is saved. A log that cannot be read is logged once and tried again every 5 s."""
        while True:
            try:
                await self._follow(handle)
            except KernelLogError as error:
                if str(error) != self.error:
                    log.error("%s.", error)
                self.error = str(error)
                await self._clock.sleep(5_000)

    async def _follow(self, handle: Handle) -> None:
        source = self._open_source(self._memory.load())
        try:
            self._memory.save(source.position())
            while True:
                entries = source.poll(_BATCH)
                self.error = ""
                if entries:
                    await handle(entries)
                self._memory.save(source.position())
                await self._clock.sleep(self._poll_ms if len(entries) < _BATCH else 0)
        finally:
            source.close()


def open_kernel_log(path: str, clock: Clock, boot_id: str, state_dir: Path | None) -> KernelLog | None:
    """The kernel log of ``AgentConfig.kernel_log``: a character device is read as /dev/kmsg, anything else is followed
    as a file; "" gives None."""
    if not path:
        return None
    from nodeagent.kernel_file import FileSource

    where = Path(path)

    def open_source(saved: Mapping[str, str | int] | None) -> Source:
        if where.is_char_device():
            return KmsgSource(where, boot_id, saved)
        return FileSource(where, saved)

    return KernelLog(open_source, Memory(state_dir / "kernel-log.json" if state_dir else None), clock)
