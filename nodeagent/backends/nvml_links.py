"""NVLink's state and errors, the NVSwitch fabric's state, and whether a card is partitioned (MIG)."""

from __future__ import annotations

import ctypes
from typing import Any

import pynvml

from nodeagent.backends.nvml_metrics import DRIVER_GONE, GONE, field_number

nv: Any = pynvml  # untyped

_ERRORS = (
    nv.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
    nv.NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL,
    nv.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
    nv.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
)
"""Sums over all links of a card. CRC errors are repaired by a replay, and are counted apart from repairs."""


class Links:
    """Keeps the most links that each device had up, so that one that is down is told from one that is not wired.
    Used from the sampling thread only."""

    def __init__(self) -> None:
        self._most: dict[str, int] = {}

    def read(self, slot: str, handle: Any) -> dict[str, float]:
        """Telemetry column -> value, without what the driver or the card does not have. Raises ``pynvml.NVMLError``
        only with a code in ``GONE`` or ``DRIVER_GONE``."""
        found: dict[str, float] = {}
        up = self._up(handle)
        if up is not None:
            self._most[slot] = max(up, self._most.get(slot, 0))
            found |= {"nvlink_up": up, "nvlink_up_max": self._most[slot]}
        values = _or_none(nv.nvmlDeviceGetFieldValues, handle, list(_ERRORS))
        if values is not None:
            counts = [field_number(value) for value in values]
            found |= _sum("nvlink_crc_errors", counts[:2]) | _sum("nvlink_recoveries", counts[2:])
        fabric = nv.c_nvmlGpuFabricInfo_v2_t()
        known = _or_none(nv.nvmlDeviceGetGpuFabricInfoV, handle, ctypes.byref(fabric)) is not None
        if known and int(fabric.state) != nv.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED:
            found["fabric_state"] = int(fabric.state)
        mode = _or_none(nv.nvmlDeviceGetMigMode, handle)
        if mode is not None:
            found["mig_enabled"] = int(mode[0])
        return found

    def _up(self, handle: Any) -> int | None:
        """How many links are up; None for a card without NVLink. Links are numbered without gaps."""
        up: int | None = None
        for link in range(nv.NVML_NVLINK_MAX_LINKS):
            state = _or_none(nv.nvmlDeviceGetNvLinkState, handle, link)
            if state is None:
                break
            up = (up or 0) + (state == nv.NVML_FEATURE_ENABLED)
        return up


def _sum(column: str, counts: list[float | None]) -> dict[str, float]:
    known = [count for count in counts if count is not None]
    return {column: sum(known)} if known else {}


def _or_none(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except nv.NVMLError as error:
        if error.value in GONE or error.value in DRIVER_GONE:
            raise
        return None
