"""AMD's Python library ``amdsmi`` as a source of the rows that ``amd-smi --json`` prints: no process is started for a
reading. It comes with ROCm (``/opt/rocm/share/amd_smi``), not from a package index, and is used if it can be imported.

Calls and their results: AMD SMI Python API reference, ROCm 6.2 to 7.1. A call that fails costs its section.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

from gridkeeper.ports.devices import BackendError
from nodeagent.backends.values import number, part
from nodeagent.kernel.amd import BLOCKS

log = logging.getLogger("gridkeeper.agent.amd")


def find() -> Any:
    """The module. Raises ``ImportError`` if it is not there, or cannot load its own shared library."""
    try:
        return importlib.import_module("amdsmi")
    except (OSError, KeyError, AttributeError) as error:  # what its loader raises without ROCm
        raise ImportError(f"amdsmi: {error}") from error


class LibrarySource:
    """``Source`` on ``import amdsmi``."""

    period_ms = 1_000

    def __init__(self, library: Any) -> None:
        """``library``: see ``find``."""
        self._smi = library
        self._handles: list[Any] = []
        self._open = False

    def static(self) -> list[dict[str, Any]]:
        smi = self._smi
        self.close()
        try:
            smi.amdsmi_init()
            self._open = True
            self._handles = list(smi.amdsmi_get_processor_handles())
        except smi.AmdSmiException as error:
            raise BackendError(f"amdsmi: amdsmi_init: {error}; load the amdgpu driver") from error
        return [self._static(index, handle) for index, handle in enumerate(self._handles)]

    def _static(self, index: int, handle: Any) -> dict[str, Any]:
        smi = self._smi
        driver = self._ask(smi.amdsmi_get_gpu_driver_info, handle)
        pcie = self._ask(smi.amdsmi_get_pcie_info, handle)
        power = self._ask(smi.amdsmi_get_power_info, handle)
        hotspot = getattr(smi.AmdSmiTemperatureType, "HOTSPOT", None)
        slowdown = self._ask(smi.amdsmi_get_temp_metric, handle, hotspot, smi.AmdSmiTemperatureMetric.CRITICAL)
        limit = number(part(power, "power_limit"))
        return {
            "gpu": index,
            "uuid": self._ask(smi.amdsmi_get_gpu_device_uuid, handle),
            "asic": self._ask(smi.amdsmi_get_gpu_asic_info, handle),
            "bus": {
                "bdf": self._ask(smi.amdsmi_get_gpu_device_bdf, handle),
                "max_pcie_width": part(pcie, "pcie_static", "max_pcie_width"),
                "max_pcie_speed": _gigatransfers(part(pcie, "pcie_static", "max_pcie_speed")),
            },
            "vram": {"size": part(self._ask(smi.amdsmi_get_gpu_vram_usage, handle), "vram_total")},
            "driver": {"version": part(driver, "driver_version")},
            "limit": {"socket_power": _watts(limit), "slowdown_hotspot_temperature": slowdown},
        }

    def metric(self) -> list[dict[str, Any]]:
        if not self._open:
            raise BackendError("amdsmi: not open; call open() first")
        return [self._metric(index, handle) for index, handle in enumerate(self._handles)]

    def _metric(self, index: int, handle: Any) -> dict[str, Any]:
        smi = self._smi
        kinds, now = smi.AmdSmiTemperatureType, smi.AmdSmiTemperatureMetric.CURRENT
        power = self._ask(smi.amdsmi_get_power_info, handle)
        memory = self._ask(smi.amdsmi_get_gpu_vram_usage, handle)
        pcie = part(self._ask(smi.amdsmi_get_pcie_info, handle), "pcie_metric")
        total = self._ask(smi.amdsmi_get_gpu_total_ecc_count, handle)
        blocks = {}
        for block in getattr(smi, "AmdSmiGpuBlock", ()):
            if block.name.lower() in BLOCKS:
                counts = self._ask(smi.amdsmi_get_gpu_ecc_count, handle, block)
                if counts is not None:
                    blocks[block.name] = counts
        current = [part(power, name) for name in ("socket_power", "current_socket_power", "average_socket_power")]
        clocks = {
            f"{name}_0": self._ask(smi.amdsmi_get_clock_info, handle, getattr(smi.AmdSmiClkType, name.upper()))
            for name in ("gfx", "mem")
        }
        return {
            "gpu": index,
            "usage": self._ask(smi.amdsmi_get_gpu_activity, handle),
            "power": {"socket_power": next((watts for watts in current if number(watts) is not None), None)},
            "clock": clocks,
            "temperature": {
                "hotspot": self._ask(smi.amdsmi_get_temp_metric, handle, kinds.HOTSPOT, now),
                "mem": self._ask(smi.amdsmi_get_temp_metric, handle, kinds.VRAM, now),
            },
            "pcie": {
                "width": part(pcie, "pcie_width"),
                "speed": _gigatransfers(part(pcie, "pcie_speed")),
                "replay_count": part(pcie, "pcie_replay_count"),
            },
            "ecc": {
                "total_correctable_count": part(total, "correctable_count"),
                "total_uncorrectable_count": part(total, "uncorrectable_count"),
            },
            "ecc_blocks": blocks,
            "mem_usage": {"total_vram": part(memory, "vram_total"), "used_vram": part(memory, "vram_used")},
        }

    def processes(self) -> list[dict[str, Any]]:
        found = []
        for index, handle in enumerate(self._handles):
            listed = self._ask(self._smi.amdsmi_get_gpu_process_list, handle) or []
            entries = [{"process_info": entry} for entry in listed if isinstance(entry, dict)]
            found.append({"gpu": index, "process_list": entries})
        return found

    def bad_pages(self) -> list[dict[str, Any]]:
        status = self._smi.AmdSmiMemoryPageStatus
        names = {status.RESERVED: "retired", status.PENDING: "pending", status.UNRESERVABLE: "un_res"}
        found = []
        for index, handle in enumerate(self._handles):
            pages = self._ask(self._smi.amdsmi_get_gpu_bad_page_info, handle)
            row: dict[str, Any] = {"gpu": index}
            if isinstance(pages, list):
                row |= {name: [page for page in pages if page.get("status") == kind] for kind, name in names.items()}
            found.append(row)
        return found

    def cper(self) -> str:
        raise BackendError("amdsmi: CPER records are read by the tool only")

    def close(self) -> None:
        if self._open:
            self._open, self._handles = False, []
            try:
                self._smi.amdsmi_shut_down()
            except self._smi.AmdSmiException as error:
                log.debug("amdsmi did not shut down cleanly: %s", error)

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """None where the card does not give it."""
        try:
            return call(*arguments)
        except self._smi.AmdSmiException:
            return None


def _gigatransfers(speed: Any) -> float | None:
    """The library counts MT/s, 32,000 for generation 5; older ones GT/s."""
    found = number(speed)
    return None if found is None else found / 1000 if found > 100 else found


def _watts(power: float | None) -> float | None:
    """The library's limit is in microwatts; of some releases in watts."""
    return None if power is None else power / 1e6 if power > 100_000 else power
