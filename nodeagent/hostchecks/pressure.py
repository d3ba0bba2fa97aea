"""Pressure stall information: the share of time in which work waited for memory, disks or processors ("full": all
of it did; processors have no "full" for a whole system)."""

from __future__ import annotations

import re
from pathlib import Path

from gridkeeper.catalogue.codes import HostCode
from nodeagent.conditions import Conditions
from nodeagent.hostchecks.check import text

LIMITS: tuple[tuple[str, str, int, float, HostCode, HostCode], ...] = (
    ("memory", "full", 60, 10.0, HostCode.MEMORY_PRESSURE, HostCode.MEMORY_PRESSURE_OVER),
    ("io", "full", 60, 40.0, HostCode.IO_PRESSURE, HostCode.IO_PRESSURE_OVER),
    ("cpu", "some", 300, 95.0, HostCode.CPU_PRESSURE, HostCode.CPU_PRESSURE_OVER),
)
"""Resource, line, seconds, percent of them. A busy host has some task wait for a processor nearly always, hence the
long time. systemd-oomd acts at 60 % memory "full"; at 10 % training already stalls.
It is over below half of it."""


class Pressure:
    period_ms = 10_000

    def __init__(self, root: Path) -> None:
        self._root = root
        self._under: set[str] = set()

    def look(self, seen: Conditions, now_ms: int) -> None:
        for resource, line, seconds, limit, code, over in LIMITS:
            share = _average(text(self._root / "proc/pressure" / resource), line, seconds)
            on = None
            if share is not None:
                on = share >= (limit / 2 if resource in self._under else limit)
                self._under = self._under | {resource} if on else self._under - {resource}
            message = f"{resource} pressure: {line} {share or 0:.0f} % of the last {seconds} s"
            seen.lasts("", f"pressure-{resource}", on, int(code), message, now_ms, over=int(over))


def _average(said: str, line: str, seconds: int) -> float | None:
    match = re.search(rf"^{line} .*\bavg{seconds}=([0-9]{{1,3}}\.[0-9]{{1,2}})\b", said, re.MULTILINE)
    return float(match.group(1)) if match else None
