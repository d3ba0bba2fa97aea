"""The few Linux calls that the standard library lacks, and the process tree as /proc shows it."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator

_LIBC = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CLOCK_BOOTTIME = 7
_TFD_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000
_TFD_TIMER_ABSTIME = 1
_GONE = (FileNotFoundError, ProcessLookupError)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def boot_ms() -> int:
    """CLOCK_BOOTTIME in ms: the clock that deadlines are on."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def become_subreaper() -> None:
    """From now on orphaned descendants become children of this process."""
    _check(_LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent(signal: int) -> None:
    """This process gets ``signal`` when the thread that forked it ends. Check ``getppid`` afterwards."""
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


class BootTimer:
    """A file descriptor that becomes readable at a boot-time moment, also right after a suspend."""

    def __init__(self) -> None:
        self._fd = _check(_LIBC.timerfd_create(_CLOCK_BOOTTIME, _TFD_NONBLOCK_CLOEXEC), "timerfd_create")

    def fileno(self) -> int:
        return self._fd

    def arm(self, at_ms: int | None) -> None:
        """Fire at ``at_ms`` (at once if it is past); None: never."""
        at = 0 if at_ms is None else max(1, at_ms)
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(at // 1000, at % 1000 * 1_000_000))
        _check(_LIBC.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None), "timerfd_settime")

    def clear(self) -> None:
        """Consume an expiry, if there is one."""
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return


def birth(pid: int) -> int:
    """When the process began, in clock ticks since boot: with its pid, its name for ever. 0 if it has ended, a zombie
    without other threads included."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            words = file.read().rpartition(")")[2].split()
        if words[0] in ("Z", "X") and len(os.listdir(f"/proc/{pid}/task")) <= 1:
            return 0
    except _GONE:
        return 0
    return int(words[19])


def children(pid: int) -> list[int]:
    """Children of all threads of ``pid``, zombies included; empty if it is gone. Raises ``OSError`` if that cannot be
    told (no descriptors left)."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except _GONE:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found.extend(int(word) for word in file.read().split())
        except _GONE:
            continue
    return found


def descendants(pid: int) -> list[int]:
    """The tree below ``pid``, without ``pid`` itself, parents first."""
    found: list[int] = []
    seen = {pid}
    queue = [pid]
    while queue:
        for child in children(queue.pop()):
            if child not in seen:
                seen.add(child)
                found.append(child)
                queue.append(child)
    return found


def _pids() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            yield int(name)


def tagged(variable: str, values: set[str]) -> dict[str, list[int]]:
    """Processes whose environment has ``variable`` set to one of ``values``: value -> pids. Zombies have none.
    Raises ``OSError`` if that cannot be told."""
    prefix = variable.encode() + b"="
    found: dict[str, list[int]] = {value: [] for value in values}
    for pid in _pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                entries = file.read().split(b"\0")
        except (*_GONE, PermissionError):  # ended, or not ours
            continue
        for entry in entries:
            if entry.startswith(prefix):
                value = entry[len(prefix) :].decode(errors="replace")
                if value in found:
                    found[value].append(pid)
    return found


def send_signal(pid: int, number: int) -> None:
    """``kill`` that does not mind if the process has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
