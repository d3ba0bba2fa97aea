"""The column order of telemetry. Agents send rows in it, the fleet table keeps columns in it.

A version names the order for ever: new metrics are appended under a new version, and nothing is renumbered.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """``unit`` is UCUM-like; ``counter``: only grows until the driver reloads."""

    name: str
    unit: str
    counter: bool
    help: str


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("temperature", "Cel", False, "GPU die temperature"),
    MetricSpec("temperature_memory", "Cel", False, "memory temperature"),
    MetricSpec("temperature_slowdown", "Cel", False, "the card's own limit at which hardware slows down"),
    MetricSpec("power", "W", False, "power draw"),
    MetricSpec("power_limit", "W", False, "enforced power limit"),
    MetricSpec("clock_sm", "MHz", False, "SM clock"),
    MetricSpec("clock_sm_max", "MHz", False, "highest SM clock"),
    MetricSpec("clock_memory", "MHz", False, "memory clock"),
    MetricSpec("throttle_reasons", "1", False, "NVML clocks-event-reasons bit mask (low 24 bits)"),
    MetricSpec("utilisation", "%", False, "share of time a kernel ran"),
    MetricSpec("memory_used", "MiB", False, "device memory in use"),
    MetricSpec("memory_total", "MiB", False, "device memory"),
    MetricSpec("ecc_corrected", "1", True, "corrected memory errors since driver load (volatile)"),
    MetricSpec("ecc_uncorrected", "1", True, "uncorrected memory errors since driver load (volatile)"),
    MetricSpec("retired_pages_sbe", "1", True, "pages retired for single-bit errors"),
    MetricSpec("retired_pages_dbe", "1", True, "pages retired for double-bit errors"),
    MetricSpec("retired_pending", "1", False, "1: page retirement waits for a reset"),
    MetricSpec("remapped_corrected", "1", True, "rows remapped for corrected errors"),
    MetricSpec("remapped_uncorrected", "1", True, "rows remapped for uncorrected errors"),
    MetricSpec("remap_pending", "1", False, "1: a row remap waits for a reset"),
    MetricSpec("remap_failed", "1", False, "1: a row remap failed (RMA)"),
    MetricSpec("pcie_generation", "1", False, "PCIe generation now"),
    MetricSpec("pcie_generation_max", "1", False, "PCIe generation possible"),
    MetricSpec("pcie_width", "1", False, "PCIe lanes now"),
    MetricSpec("pcie_width_max", "1", False, "PCIe lanes possible"),
    MetricSpec("pcie_replays", "1", True, "PCIe replays"),
    MetricSpec("processes", "1", False, "compute processes on the device"),
    MetricSpec(
        "recovery_action",
        "1",
        False,
        "NVML's own recovery action: 0 none, 1 reset, 2 reboot, 3 drain P2P, 4 drain and reset",
    ),
    MetricSpec("nvlink_tx", "MBy/s", False, "data sent over NVLink, all links (since version 2)"),
    MetricSpec("nvlink_rx", "MBy/s", False, "data received over NVLink, all links"),
    MetricSpec("pcie_tx", "MBy/s", False, "sent over PCIe"),
    MetricSpec("pcie_rx", "MBy/s", False, "received over PCIe"),
    MetricSpec("nvlink_up", "1", False, "NVLink links that are up"),
    MetricSpec("nvlink_up_max", "1", False, "the most that were up since the agent started"),
    MetricSpec("nvlink_crc_errors", "1", True, "NVLink CRC errors of flits and data, all links"),
    MetricSpec("nvlink_recoveries", "1", True, "NVLink replays and recoveries, all links"),
    MetricSpec("fabric_state", "1", False, "of the NVSwitch fabric: 1 not started, 2 in progress, 3 completed"),
    MetricSpec("mig_enabled", "1", False, "1: the card is partitioned (MIG)"),
)

COLUMN: dict[str, int] = {metric.name: index for index, metric in enumerate(METRICS)}
"""Metric name -> column."""
