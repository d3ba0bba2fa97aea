"""Protects: AMD's Python library gives the same rows as its tool, a call that a card does not support costs its section
only, and a library that cannot start is an error with a remedy."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest

from gridkeeper.clock import SystemClock
from gridkeeper.ports.devices import BackendError
from gridkeeper.telemetry import COLUMN
from nodeagent.backends.amd import AmdVendor
from nodeagent.backends.amd_library import LibrarySource
from nodeagent.backends.polled import PolledBackend


class FakeLibrary:
    """The part of ``amdsmi`` that is used, with the shapes of its Python API reference (ROCm 6.4)."""

    class AmdSmiException(Exception): ...

    class AmdSmiTemperatureType(enum.IntEnum):
        EDGE, HOTSPOT, VRAM = 0, 1, 2

    class AmdSmiTemperatureMetric(enum.IntEnum):
        CURRENT, CRITICAL = 0, 5

    class AmdSmiClkType(enum.IntEnum):
        GFX, MEM = 0, 4

    class AmdSmiMemoryPageStatus(enum.IntEnum):
        RESERVED, PENDING, UNRESERVABLE = 0, 1, 2

    class AmdSmiGpuBlock(enum.IntEnum):
        INVALID, UMC, GFX, RESERVED = 0, 1, 4, 1 << 62

    def __init__(self) -> None:
        self.started = 0
        self.uncorrected = 0
        self.pages: list[dict[str, Any]] = []
        self.dead = False

    def amdsmi_init(self) -> None:
        if self.dead:
            raise self.AmdSmiException("AMDSMI_STATUS_DRIVER_NOT_LOADED")
        self.started += 1

    def amdsmi_shut_down(self) -> None:
        self.started -= 1

    def amdsmi_get_processor_handles(self) -> list[str]:
        return ["h0", "h1"]

    def amdsmi_get_gpu_device_bdf(self, handle: str) -> str:
        return {"h0": "0000:05:00.0", "h1": "0000:26:00.0"}[handle]

    def amdsmi_get_gpu_device_uuid(self, handle: str) -> str:
        return f"uuid-{handle}"

    def amdsmi_get_gpu_asic_info(self, handle: str) -> dict[str, Any]:
        return {"market_name": "AMD Instinct MI300X", "asic_serial": f"0x{handle}", "target_graphics_version": "gfx942"}

    def amdsmi_get_gpu_driver_info(self, handle: str) -> dict[str, Any]:
        return {"driver_name": "amdgpu", "driver_version": "6.12.12"}

    def amdsmi_get_pcie_info(self, handle: str) -> dict[str, Any]:
        return {
            "pcie_static": {"max_pcie_width": 16, "max_pcie_speed": 32_000},
            "pcie_metric": {"pcie_width": 8, "pcie_speed": 16_000, "pcie_replay_count": 3},
        }

    def amdsmi_get_power_info(self, handle: str) -> dict[str, Any]:
        return {"current_socket_power": 350, "average_socket_power": "N/A", "power_limit": 750_000_000}

    def amdsmi_get_temp_metric(self, handle: str, kind: int, metric: int) -> int:
        if kind == self.AmdSmiTemperatureType.VRAM:
            raise self.AmdSmiException("AMDSMI_STATUS_NOT_SUPPORTED")
        return 100 if metric == self.AmdSmiTemperatureMetric.CRITICAL else 58

    def amdsmi_get_gpu_vram_usage(self, handle: str) -> dict[str, Any]:
        return {"vram_total": 196_592, "vram_used": 1_024}

    def amdsmi_get_gpu_activity(self, handle: str) -> dict[str, Any]:
        return {"gfx_activity": 45, "umc_activity": 30, "mm_activity": 0}

    def amdsmi_get_clock_info(self, handle: str, kind: int) -> dict[str, Any]:
        return {"clk": 1_900 if kind == self.AmdSmiClkType.GFX else 1_300, "min_clk": 500, "max_clk": 2_100}

    def amdsmi_get_gpu_total_ecc_count(self, handle: str) -> dict[str, Any]:
        return {"correctable_count": 0, "uncorrectable_count": self.uncorrected if handle == "h1" else 0}

    def amdsmi_get_gpu_ecc_count(self, handle: str, block: int) -> dict[str, Any]:
        if block == self.AmdSmiGpuBlock.GFX:
            raise self.AmdSmiException("AMDSMI_STATUS_NOT_SUPPORTED")
        return {**self.amdsmi_get_gpu_total_ecc_count(handle), "deferred_count": 0}

    def amdsmi_get_gpu_process_list(self, handle: str) -> list[dict[str, Any]]:
        return [{"name": "python3", "pid": 4711}] if handle == "h0" else []

    def amdsmi_get_gpu_bad_page_info(self, handle: str) -> list[dict[str, Any]]:
        return self.pages


def test_the_library_is_read_like_the_tool() -> None:
    library = FakeLibrary()
    backend = PolledBackend(AmdVendor(LibrarySource(library)), SystemClock())
    devices = backend.open()
    assert [(d.slot, d.uuid, d.pci_bus_id, d.driver_version, d.memory_mib) for d in devices] == [
        ("gpu0", "uuid-h0", "00000000:05:00.0", "6.12.12", 196_592),
        ("gpu1", "uuid-h1", "00000000:26:00.0", "6.12.12", 196_592),
    ]
    for _ in range(3):
        row = backend.sample(devices)[0]
    expected = {
        "temperature": 58, "temperature_slowdown": 100, "power": 350, "power_limit": 750, "clock_sm": 1_900,
        "clock_sm_max": 2_100, "clock_memory": 1_300, "utilisation": 45, "memory_used": 1_024, "memory_total": 196_592,
        "ecc_uncorrected": 0, "pcie_width": 8, "pcie_width_max": 16, "pcie_generation": 4, "pcie_generation_max": 5,
        "pcie_replays": 3, "processes": 1,
    }  # fmt: skip
    assert {name: float(row[COLUMN[name]]) for name in expected} == expected
    assert np.isnan(row[COLUMN["temperature_memory"]]), "not supported here"
    assert backend.processes(devices) == ((4711, "gpu0"),)
    library.uncorrected = 2
    backend.sample(devices)
    assert [(e.slot, e.code) for e in backend.wait_events(0)] == [("gpu1", 1001)]
    backend.open()
    backend.close()
    assert library.started == 0, "each start has its end"


def test_a_library_without_its_driver_says_so() -> None:
    library = FakeLibrary()
    library.dead = True
    with pytest.raises(BackendError, match="DRIVER_NOT_LOADED; load the amdgpu driver"):
        PolledBackend(AmdVendor(LibrarySource(library)), SystemClock()).open()
