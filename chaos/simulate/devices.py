"""Simulated accelerators behind the ``DeviceBackend`` port: steered by a script, never blocking."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gridkeeper.ports.clock import Clock
from gridkeeper.ports.devices import BackendError, Device, Sighting
from gridkeeper.records.fleet import EventKind
from gridkeeper.telemetry import COLUMN, METRICS

HEALTHY: dict[str, float] = {
    "temperature": 45,
    "temperature_slowdown": 90,
    "power": 300,
    "power_limit": 700,
    "clock_sm": 1700,
    "clock_sm_max": 1980,
    "clock_memory": 2619,
    "throttle_reasons": 0,
    "utilisation": 80,
    "memory_used": 40_000,
    "memory_total": 81_920,
    "ecc_corrected": 0,
    "ecc_uncorrected": 0,
    "remapped_corrected": 0,
    "remapped_uncorrected": 0,
    "remap_pending": 0,
    "remap_failed": 0,
    "pcie_generation": 5,
    "pcie_generation_max": 5,
    "pcie_width": 16,
    "pcie_width_max": 16,
    "pcie_replays": 0,
    "processes": 0,
    "recovery_action": 0,
    "nvlink_tx": 90_000,
    "nvlink_rx": 90_000,
    "pcie_tx": 2_000,
    "pcie_rx": 6_000,
}


@dataclass(slots=True)
class SimBackend:
    """``count`` cards of one host. ``values[slot]`` may be changed at any time; ``xid`` posts an event."""

    node: str
    clock: Clock
    count: int = 8
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    pending: list[Sighting] = field(default_factory=list)
    dead: bool = False
    name: str = "sim"

    def __post_init__(self) -> None:
        self.values = {f"gpu{i}": dict(HEALTHY) for i in range(self.count)}

    def set(self, slot: str, **values: float) -> None:
        """Metric names of ``gridkeeper.telemetry``; a name that is none raises ``KeyError``."""
        for name in values:
            COLUMN[name]
        self.values[slot].update(values)

    def xid(self, slot: str, code: int, source: str = "nvml") -> None:
        text = f"XID {code} on {slot}"
        self.pending.append(Sighting(slot, EventKind.XID, code, text, source, self.clock.mono_ms()))

    def open(self) -> tuple[Device, ...]:
        if self.dead:
            raise BackendError("open: the driver is gone")
        return tuple(
            Device(
                slot=slot,
                uuid=f"GPU-{self.node}-{slot}",
                vendor="nvidia",
                model="H100",
                architecture="hopper",
                pci_bus_id=f"00000000:{16 + i:02x}:00.0",
                serial=f"{i:04d}",
                memory_mib=81_920,
                driver_version="570.0",
            )
            for i, slot in enumerate(sorted(self.values))
        )

    def sample(self, devices: tuple[Device, ...]) -> NDArray[np.float32]:
        rows = np.full((len(devices), len(METRICS)), np.nan, dtype=np.float32)
        for row, device in enumerate(devices):
            for name, value in self.values.get(device.slot, {}).items():
                rows[row, COLUMN[name]] = value
        return rows

    def wait_events(self, timeout_ms: int) -> tuple[Sighting, ...]:
        seen, self.pending = tuple(self.pending), []
        return seen

    def processes(self, devices: tuple[Device, ...]) -> tuple[tuple[int, str], ...]:
        return ()

    def close(self) -> None:
        self.pending = []
