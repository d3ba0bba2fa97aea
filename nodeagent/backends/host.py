"""The machine itself as one device: so that every host, with or without accelerators, has something real to watch; and
what is wrong with it (``nodeagent.hostchecks``), as events about the node."""

from __future__ import annotations

import math
import platform
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from gridkeeper.ports.clock import Clock
from gridkeeper.ports.devices import Device, Sighting
from gridkeeper.records.fleet import EventKind
from gridkeeper.telemetry import COLUMN, METRICS
from nodeagent.backends.polled import MAX_PENDING
from nodeagent.conditions import Conditions
from nodeagent.hostchecks.apart import Apart
from nodeagent.hostchecks.check import Check
from nodeagent.hostchecks.clock import ClockSkew
from nodeagent.hostchecks.filesystems import DiskSpace, ReadOnly
from nodeagent.hostchecks.infiniband import Infiniband
from nodeagent.hostchecks.memory import Kernel, Memory, OutOfMemory
from nodeagent.hostchecks.nics import Nics
from nodeagent.hostchecks.pressure import Pressure
from nodeagent.hostchecks.smart import Smart

MIB = 1024 * 1024
SLOT = "host0"
QUICK_MS = 500
"""So long a sample waits for the checks that it began, in all: far below what counts as a hang of the driver. Later
ones tell when they are back."""

_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")  # best first


def all_checks(root: Path) -> tuple[Check, ...]:
    """On a real host. The clock is the kernel's: a tree has none."""
    checks: list[Check] = [
        Memory(root), OutOfMemory(root), Kernel(root), ReadOnly(root), DiskSpace(root), Nics(root), Infiniband(root),
        Pressure(root), Smart(root),
    ]  # fmt: skip
    return (*checks, ClockSkew()) if root == Path("/") else tuple(checks)


class HostBackend:
    """``DeviceBackend`` on psutil and Linux's EDAC counters: processor temperature and clock, utilisation, main memory,
    and its ECC errors since boot. What the machine does not tell stays NaN. ``root``: of /sys, /proc and /etc.
    ``checks``: None for all of them."""

    name = "host"

    def __init__(self, clock: Clock, root: Path = Path("/"), checks: Sequence[Check] | None = None) -> None:
        self._clock = clock
        self._root = root
        self._checks = tuple(
            Apart(check, Conditions(EventKind.HOST, self.name), self._tell)
            for check in (all_checks(root) if checks is None else checks)
        )
        self._pending: list[Sighting] = []
        self._news = threading.Condition()
        self._closed = False

    def open(self) -> tuple[Device, ...]:
        self._closed = False
        psutil.cpu_percent(None)  # the first call only starts the measurement
        return (
            Device(
                slot=SLOT,
                uuid=self._text("etc/machine-id") or platform.node(),
                vendor="host",
                model=self._cpu_model(),
                architecture=platform.machine(),
                pci_bus_id="",
                serial="",
                memory_mib=psutil.virtual_memory().total // MIB,
                driver_version=platform.release(),
            ),
        )

    def sample(self, devices: tuple[Device, ...]) -> NDArray[np.float32]:
        rows = np.full((len(devices), len(METRICS)), np.nan, dtype=np.float32)
        values = self._values()
        for number, device in enumerate(devices):
            if device.slot == SLOT:
                for name, value in values.items():
                    rows[number, COLUMN[name]] = math.nan if value is None else value
        self._look()
        return rows

    def wait_events(self, timeout_ms: int) -> tuple[Sighting, ...]:
        with self._news:
            self._news.wait_for(lambda: self._pending or self._closed, timeout_ms / 1000)
            seen, self._pending = tuple(self._pending), []
        return seen

    def processes(self, devices: tuple[Device, ...]) -> tuple[tuple[int, str], ...]:
        return ()

    def close(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()
        for check in self._checks:
            check.close()

    def _values(self) -> dict[str, float | None]:
        memory = psutil.virtual_memory()
        temperature, limit = self._temperature()
        clock = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
        return {
            "temperature": temperature,
            "temperature_slowdown": limit,
            "clock_sm": clock.current if clock and clock.current else None,
            "clock_sm_max": clock.max if clock and clock.max else None,
            "utilisation": psutil.cpu_percent(None),
            "memory_used": (memory.total - memory.available) / MIB,
            "memory_total": memory.total / MIB,
            "ecc_corrected": self._edac("ce_count"),
            "ecc_uncorrected": self._edac("ue_count"),
        }

    def _temperature(self) -> tuple[float | None, float | None]:
        """The hottest processor sensor and its limit, °C."""
        sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
        for name in _CPU_SENSORS:
            readings = [reading for reading in sensors.get(name, ()) if reading.current and reading.current > 0]
            if readings:
                hottest = max(readings, key=lambda reading: reading.current)
                return hottest.current, hottest.high or hottest.critical or None
        return None, None

    def _edac(self, counter: str) -> float | None:
        """The sum over memory controllers; None without EDAC."""
        texts = [self._text(path) for path in self._root.glob(f"sys/devices/system/edac/mc/mc*/{counter}")]
        numbers = [int(text) for text in texts if text.isdigit()]
        return float(sum(numbers)) if numbers else None

    def _look(self) -> None:
        """Have the checks look that are due, each in its own time; those that are quick are waited for."""
        now_ms = self._clock.mono_ms()
        for check in [check for check in self._checks if check.look(now_ms)]:
            check.wait((now_ms + QUICK_MS - self._clock.mono_ms()) / 1_000)

    def _tell(self, told: tuple[Sighting, ...]) -> None:
        if told:
            with self._news:
                self._pending = [*self._pending, *told][-MAX_PENDING:]
                self._news.notify_all()

    def _cpu_model(self) -> str:
        for line in self._text("proc/cpuinfo").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware") and value.strip():
                return value.strip()
        return platform.processor() or platform.machine()

    def _text(self, path: str | Path) -> str:
        try:
            return (self._root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""
