"""Whether the host's clock is synchronised, by the kernel's own discipline (adjtimex): the NTP or PTP daemon keeps it,
whichever it is. Nothing in Gridkeeper compares wall clocks of hosts; certificates, jobs and logs do."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from gridkeeper.catalogue.codes import HostCode
from nodeagent.conditions import Conditions

LIMIT_MS = 100.0
"""Certificates and Kerberos bear minutes, distributed traces and file systems' time stamps about this much."""

PATIENCE_MS = 600_000
"""So long a clock may be unsynchronised: after the boot, or while its daemon is restarted."""

_STA_UNSYNC, _STA_NANO, _TIME_ERROR = 0x0040, 0x2000, 5  # linux/timex.h


@dataclass(frozen=True, slots=True)
class ClockState:
    synchronised: bool
    offset_ms: float
    estimated_error_ms: float


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("reserved", ctypes.c_char * 256),
    )


def adjtimex() -> ClockState | None:
    """Reads, changes nothing. None where the call is not there or refused."""
    try:
        call = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    timex = _Timex()
    result = call(ctypes.byref(timex))
    if result < 0:
        return None
    per_ms = 1_000_000 if timex.status & _STA_NANO else 1_000
    synchronised = result != _TIME_ERROR and not timex.status & _STA_UNSYNC
    return ClockState(synchronised, timex.offset / per_ms, timex.esterror / 1_000)


class ClockSkew:
    period_ms = 30_000

    def __init__(self, read: Callable[[], ClockState | None] = adjtimex) -> None:
        self._read = read
        self._unsynchronised_since: int | None = None

    def look(self, seen: Conditions, now_ms: int) -> None:
        state = self._read()
        if state is None:
            return
        if state.synchronised:
            self._unsynchronised_since = None
        elif self._unsynchronised_since is None:
            self._unsynchronised_since = now_ms
        since = self._unsynchronised_since
        alone = since is not None and now_ms - since >= PATIENCE_MS
        seen.lasts(
            "", "clock-unsynchronised", alone if since is None or alone else None, int(HostCode.CLOCK_UNSYNCHRONISED),
            "the clock follows no time source (adjtimex)", now_ms, over=int(HostCode.CLOCK_UNSYNCHRONISED_OVER),
        )  # fmt: skip
        off = max(abs(state.offset_ms), state.estimated_error_ms)
        seen.lasts(
            "", "clock-skew", off > LIMIT_MS if state.synchronised else None, int(HostCode.CLOCK_SKEW),
            f"the clock is off by about {off:.0f} ms (adjtimex)", now_ms, over=int(HostCode.CLOCK_SKEW_OVER),
        )  # fmt: skip
