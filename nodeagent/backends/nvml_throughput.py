"""Rates of NVLink and PCIe traffic from the driver's byte counters: what was moved between two samples.

NVML also has ``nvmlDeviceGetPcieThroughput``, but that call blocks for 20 ms per direction and device."""

from __future__ import annotations

from typing import Any

import pynvml

from nodeagent.backends.nvml_metrics import GONE, field_number

nv: Any = pynvml  # untyped

ALL_LINKS = 0xFFFFFFFF
"""As the scope of an NVLink field: the sum over all links (nvml.h)."""
_KIB = 1024

COUNTERS: dict[str, tuple[int, int, int]] = {
    "nvlink_tx": (nv.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ALL_LINKS, _KIB),
    "nvlink_rx": (nv.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, ALL_LINKS, _KIB),
    "pcie_tx": (nv.NVML_FI_DEV_PCIE_COUNT_TX_BYTES, 0, 1),
    "pcie_rx": (nv.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, 0, 1),
}
"""Telemetry column -> (field, scope, bytes per count)."""


class Throughput:
    """Keeps each device's last counts. Used from the sampling thread only."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    def forget(self) -> None:
        """Counts taken before the driver was opened anew say nothing."""
        self._last.clear()

    def read(self, slot: str, handle: Any) -> dict[str, float]:
        """Column -> MB/s since the call before; without those that are not known: the first time, after a counter was
        reset or wrapped, or where the driver has none. Raises ``pynvml.NVMLError`` only with a code in ``GONE``."""
        try:
            values = nv.nvmlDeviceGetFieldValues(handle, [(field, scope) for field, scope, _ in COUNTERS.values()])
        except nv.NVMLError as error:
            if error.value in GONE:
                raise
            return {}
        rates: dict[str, float] = {}
        for (column, (_, _, size)), value in zip(COUNTERS.items(), values, strict=True):
            count, at_us = field_number(value), int(value.timestamp)
            if count is None:
                self._last.pop((slot, column), None)
                continue
            before = self._last.get((slot, column))
            if before is not None and at_us == before[1]:
                continue  # the driver has not counted anew
            self._last[slot, column] = (count, at_us)
            if before is not None and at_us > before[1] and count >= before[0]:
                rates[column] = (count - before[0]) * size / (at_us - before[1])  # bytes per µs are MB per s
        return rates
