"""How each telemetry column is read from NVML: a table, so that a driver that lacks one call costs one column."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pynvml
from numpy.typing import NDArray

from gridkeeper.telemetry import COLUMN, METRICS

nv: Any = pynvml  # untyped: one place says so
MIB = 1024 * 1024
_MASK_24 = (1 << 24) - 1

GONE = frozenset({nv.NVML_ERROR_GPU_IS_LOST, nv.NVML_ERROR_GPU_NOT_FOUND})
"""The device is not there any more."""

DRIVER_GONE = frozenset(
    {
        nv.NVML_ERROR_UNINITIALIZED,
        nv.NVML_ERROR_DRIVER_NOT_LOADED,
        nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        nv.NVML_ERROR_LIBRARY_NOT_FOUND,
    }
)
"""No device can be asked at all."""


@dataclass(frozen=True, slots=True)
class Reader:
    """``read(handle)`` gives one value per column, None where the driver gives none."""

    columns: tuple[str, ...]
    read: Callable[[Any], tuple[float | None, ...]]


def _temperature(handle: Any) -> tuple[float | None, ...]:
    try:
        return (nv.nvmlDeviceGetTemperatureV(handle, nv.NVML_TEMPERATURE_GPU),)
    except (nv.NVMLError_FunctionNotFound, nv.NVMLError_ArgumentVersionMismatch):  # drivers before 570
        return (nv.nvmlDeviceGetTemperature(handle, nv.NVML_TEMPERATURE_GPU),)


def _slowdown(handle: Any) -> tuple[float | None, ...]:
    return (nv.nvmlDeviceGetTemperatureThreshold(handle, nv.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),)


def _fields(handle: Any) -> tuple[float | None, ...]:
    values = nv.nvmlDeviceGetFieldValues(handle, [nv.NVML_FI_DEV_MEMORY_TEMP, nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    return tuple(field_number(value) for value in values)


def field_number(value: Any) -> float | None:
    """A field's value; None if the driver has none. Raises ``pynvml.NVMLError`` with a code in ``GONE``."""
    if value.nvmlReturn != nv.NVML_SUCCESS:
        if value.nvmlReturn in GONE:
            raise nv.NVMLError(value.nvmlReturn)
        return None
    names = {
        nv.NVML_VALUE_TYPE_DOUBLE: "dVal",
        nv.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        nv.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        nv.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        nv.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
        nv.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
        nv.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
    }
    name = names.get(value.valueType)
    return None if name is None else float(getattr(value.value, name))


def _memory(handle: Any) -> tuple[float | None, ...]:
    try:
        info = nv.nvmlDeviceGetMemoryInfo(handle, nv.nvmlMemory_v2)
    except (nv.NVMLError_FunctionNotFound, nv.NVMLError_ArgumentVersionMismatch):  # drivers before 510
        info = nv.nvmlDeviceGetMemoryInfo(handle)
    return info.used / MIB, info.total / MIB


def _throttle(handle: Any) -> tuple[float | None, ...]:
    try:
        mask = nv.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except nv.NVMLError_FunctionNotFound:  # drivers before 535
        mask = nv.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return (mask & _MASK_24,)


def _ecc(kind: int) -> Callable[[Any], tuple[float | None, ...]]:
    return lambda handle: (nv.nvmlDeviceGetTotalEccErrors(handle, kind, nv.NVML_VOLATILE_ECC),)


def _retired(cause: int) -> Callable[[Any], tuple[float | None, ...]]:
    return lambda handle: (len(nv.nvmlDeviceGetRetiredPages(handle, cause)),)


def compute_pids(handle: Any) -> tuple[int, ...]:
    """Compute processes on the device. Raises ``pynvml.NVMLError``."""
    try:
        found = nv.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    except nv.NVMLError_FunctionNotFound:  # drivers before 510
        found = nv.nvmlDeviceGetComputeRunningProcesses_v2(handle)
    return tuple(int(process.pid) for process in found)


READERS: tuple[Reader, ...] = (
    Reader(("temperature",), _temperature),
    Reader(("temperature_slowdown",), _slowdown),
    Reader(("temperature_memory", "recovery_action"), _fields),
    Reader(("power",), lambda h: (nv.nvmlDeviceGetPowerUsage(h) / 1000,)),
    Reader(("power_limit",), lambda h: (nv.nvmlDeviceGetEnforcedPowerLimit(h) / 1000,)),
    Reader(("clock_sm",), lambda h: (nv.nvmlDeviceGetClockInfo(h, nv.NVML_CLOCK_SM),)),
    Reader(("clock_sm_max",), lambda h: (nv.nvmlDeviceGetMaxClockInfo(h, nv.NVML_CLOCK_SM),)),
    Reader(("clock_memory",), lambda h: (nv.nvmlDeviceGetClockInfo(h, nv.NVML_CLOCK_MEM),)),
    Reader(("throttle_reasons",), _throttle),
    Reader(("utilisation",), lambda h: (nv.nvmlDeviceGetUtilizationRates(h).gpu,)),
    Reader(("memory_used", "memory_total"), _memory),
    Reader(("ecc_corrected",), _ecc(nv.NVML_MEMORY_ERROR_TYPE_CORRECTED)),
    Reader(("ecc_uncorrected",), _ecc(nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)),
    Reader(("retired_pages_sbe",), _retired(nv.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS)),
    Reader(("retired_pages_dbe",), _retired(nv.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR)),
    Reader(("retired_pending",), lambda h: (nv.nvmlDeviceGetRetiredPagesPendingStatus(h),)),
    Reader(
        ("remapped_corrected", "remapped_uncorrected", "remap_pending", "remap_failed"), nv.nvmlDeviceGetRemappedRows
    ),
    Reader(("pcie_generation",), lambda h: (nv.nvmlDeviceGetCurrPcieLinkGeneration(h),)),
    Reader(("pcie_generation_max",), lambda h: (nv.nvmlDeviceGetMaxPcieLinkGeneration(h),)),
    Reader(("pcie_width",), lambda h: (nv.nvmlDeviceGetCurrPcieLinkWidth(h),)),
    Reader(("pcie_width_max",), lambda h: (nv.nvmlDeviceGetMaxPcieLinkWidth(h),)),
    Reader(("pcie_replays",), lambda h: (nv.nvmlDeviceGetPcieReplayCounter(h),)),
    Reader(("processes",), lambda h: (len(compute_pids(h)),)),
)


def read_row(handle: Any) -> NDArray[np.float32]:
    """One device's row of ``METRICS``. A call that the driver lacks, the card does not support, or that fails, leaves
    NaN. Raises ``pynvml.NVMLError`` only with a code in ``GONE`` or ``DRIVER_GONE``."""
    row = np.full(len(METRICS), math.nan, dtype=np.float32)
    reset_required = False
    for reader in READERS:
        try:
            values = reader.read(handle)
        except nv.NVMLError as error:
            if error.value in GONE or error.value in DRIVER_GONE:
                raise
            if error.value == nv.NVML_ERROR_RESET_REQUIRED:  # the driver's own verdict, given instead of a value
                reset_required = True
            continue
        for column, value in zip(reader.columns, values, strict=True):
            if value is not None:
                row[COLUMN[column]] = value
    action = COLUMN["recovery_action"]
    if reset_required and not row[action] >= nv.NVML_GPU_RECOVERY_ACTION_GPU_RESET:
        row[action] = nv.NVML_GPU_RECOVERY_ACTION_GPU_RESET
    return row
