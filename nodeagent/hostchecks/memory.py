"""Main memory and processors by the kernel's counters: EDAC, out-of-memory kills, thermal throttling, hung tasks."""

from __future__ import annotations

from pathlib import Path

from gridkeeper.catalogue.codes import HostCode
from nodeagent.conditions import Conditions
from nodeagent.hostchecks.check import number, text, total

_CPU = "sys/devices/system/cpu"


class Memory:
    """EDAC's sums over memory controllers since boot."""

    period_ms = 0  # each sample

    def __init__(self, root: Path) -> None:
        self._root = root

    def look(self, seen: Conditions, now_ms: int) -> None:
        for file, words, code in (
            ("ue_count", "uncorrectable", HostCode.MEMORY_UNCORRECTED),
            ("ce_count", "corrected", HostCode.MEMORY_CORRECTED),
        ):
            count = total(sorted(self._root.glob(f"sys/devices/system/edac/mc/mc*/{file}")))
            more = seen.grew("", file, count)
            if more and count is not None:
                message = f"main memory: {more:.0f} {words} errors (EDAC), {count:.0f} since boot"
                seen.say("", int(code), message, now_ms)


class OutOfMemory:
    """vmstat's ``oom_kill`` (Linux 4.13). The kernel log tells the same more exactly, so a kill is told one look later:
    by then its line has been read, and the two are one event."""

    period_ms = 0  # each sample

    def __init__(self, root: Path) -> None:
        self._root = root
        self._held = 0.0

    def look(self, seen: Conditions, now_ms: int) -> None:
        held, self._held = self._held, seen.grew("", "oom_kill", self._count())
        if held:
            message = f"{held:.0f} processes were killed for want of memory (vmstat oom_kill)"
            seen.say("", int(HostCode.OOM_KILL), message, now_ms)

    def _count(self) -> float | None:
        for line in text(self._root / "proc/vmstat").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdigit():
                return float(value)
        return None


class Kernel:
    """Throttled processors (thermal_throttle) and hung tasks (``hung_task_detect_count``, Linux 6.13)."""

    period_ms = 10_000

    def __init__(self, root: Path) -> None:
        self._root = root

    def look(self, seen: Conditions, now_ms: int) -> None:
        files = sorted(self._root.glob(f"{_CPU}/cpu[0-9]*/thermal_throttle/core_throttle_count"))
        more = seen.grew("", "throttle", total(files))
        if more:
            message = f"processors were throttled for heat {more:.0f} times"
            seen.say("", int(HostCode.CPU_THROTTLED), message, now_ms)
        hung = seen.grew("", "hung", number(self._root / "proc/sys/kernel/hung_task_detect_count"))
        if hung:
            seen.say("", int(HostCode.HUNG_TASK), f"{hung:.0f} tasks hang (hung_task_detect_count)", now_ms)
