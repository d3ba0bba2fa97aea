"""Threshold rules for NVIDIA devices, as data: what each looks at, for how long it must hold, what it means.

A condition sees whole columns at once. Every column that it names must be known in a row for the row to be judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.domain.evidence import SILENT_ROW
from gridkeeper.records.common import Action, Severity

VERSION = 1

Columns = Mapping[str, NDArray[np.float32]]
Hits = NDArray[np.bool_]

MAX_REMAPS = 512
"""Row remaps that a card has in all (NVIDIA, GPU memory error management; DCGM's limit is the same)."""
MAX_RETIRED = 63
"""Retired pages at which DCGM fails a pre-Ampere card; it can retire 64."""
RISING_CORRECTED = 10
"""Corrected errors within a minute that are a trend; NVIDIA names no limit, XID 92 speaks of a "high rate"."""
RISING_REPLAYS = 100
"""PCIe replays within a minute; a good link has close to none."""
BUSY = 50.0
"""Utilisation in percent from which a link or clock is expected to have left its idle state."""

HW_SLOWDOWN, HW_THERMAL, HW_POWER_BRAKE = 0x8, 0x40, 0x80
"""Bits of NVML's clocks-event reasons."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``needs``: columns of ``gridkeeper.telemetry``; a name ending in ``/min`` is the growth of a counter within the
    last minute. ``hold_ms``: how long the condition must hold without a break. ``meaning`` completes "<device>: …"."""

    name: str
    fault_class: str
    severity: Severity
    action: Action
    needs: tuple[str, ...]
    condition: Callable[[Columns], Hits]
    meaning: str
    hold_ms: int = 0


def _flag(column: NDArray[np.float32], bit: int) -> Hits:
    hits: Hits = (column.astype(np.int64) & bit) != 0
    return hits


W, E, F = Severity.WARNING, Severity.ERROR, Severity.FATAL
WATCH, DRAIN, REPLACE, REBOOT = Action.WATCH, Action.DRAIN, Action.REPLACE, Action.REBOOT_NODE

RULES: tuple[Rule, ...] = (
    Rule(
        "remap-failed", "memory", F, REPLACE, ("remap_failed",), lambda c: c["remap_failed"] >= 1,
        "a row remap failed: the card is due for return",
    ),
    Rule(
        "remaps-exhausted", "memory", F, REPLACE, ("remapped_corrected", "remapped_uncorrected"),
        lambda c: c["remapped_corrected"] + c["remapped_uncorrected"] >= MAX_REMAPS,
        f"all {MAX_REMAPS} row remaps are used up",
    ),
    Rule(
        "remap-pending", "memory", W, WATCH, ("remap_pending",), lambda c: c["remap_pending"] >= 1,
        "a row remap waits for a reset; running jobs are not affected",
    ),
    Rule(
        "remap-pending-rising", "memory", E, DRAIN, ("remap_pending", "ecc_corrected/min"),
        lambda c: (c["remap_pending"] >= 1) & (c["ecc_corrected/min"] >= RISING_CORRECTED),
        "a row remap waits for a reset while corrected errors rise",
    ),
    Rule(
        "corrected-rising", "memory", W, WATCH, ("ecc_corrected/min",),
        lambda c: c["ecc_corrected/min"] >= RISING_CORRECTED,
        f"corrected memory errors rise by {RISING_CORRECTED} or more a minute",
    ),
    Rule(
        "uncorrected", "memory", E, WATCH, ("ecc_uncorrected",), lambda c: c["ecc_uncorrected"] >= 1,
        "uncorrected memory errors since the driver was loaded",
    ),
    Rule(
        "pages-retired", "memory", E, DRAIN, ("retired_pages_sbe", "retired_pages_dbe"),
        lambda c: c["retired_pages_sbe"] + c["retired_pages_dbe"] >= MAX_RETIRED,
        f"{MAX_RETIRED} or more pages are retired",
    ),
    Rule(
        "retirement-pending", "memory", W, WATCH, ("retired_pending",), lambda c: c["retired_pending"] >= 1,
        "a page retirement waits for a reset",
    ),
    Rule(
        "hot", "thermal", E, WATCH, ("temperature", "temperature_slowdown"),
        lambda c: (c["temperature_slowdown"] > 0) & (c["temperature"] >= c["temperature_slowdown"]),
        "at or above the card's own slowdown temperature", 10_000,
    ),
    Rule(
        "hardware-slowdown", "thermal", W, WATCH, ("throttle_reasons",),
        lambda c: _flag(c["throttle_reasons"], HW_SLOWDOWN | HW_THERMAL),
        "slowed down by the hardware", 60_000,
    ),
    Rule(
        "power-brake", "power", W, WATCH, ("throttle_reasons",),
        lambda c: _flag(c["throttle_reasons"], HW_POWER_BRAKE),
        "held back by the power brake", 60_000,
    ),
    Rule(
        "over-power", "power", W, WATCH, ("power", "power_limit"),
        lambda c: (c["power_limit"] > 0) & (c["power"] >= 1.2 * c["power_limit"]),
        "draws a fifth more than its power limit", 60_000,
    ),
    Rule(
        "pcie-narrow", "bus", E, WATCH, ("pcie_width", "pcie_width_max"),
        lambda c: (c["pcie_width"] > 0) & (c["pcie_width"] < c["pcie_width_max"]),
        "fewer PCIe lanes than possible", 30_000,
    ),
    Rule(
        "pcie-slow", "bus", W, WATCH, ("pcie_generation", "pcie_generation_max", "utilisation"),
        lambda c: (c["utilisation"] >= BUSY) & (c["pcie_generation"] < c["pcie_generation_max"]),
        "a lower PCIe generation than possible while busy", 30_000,
    ),
    Rule(
        "pcie-replays", "bus", W, WATCH, ("pcie_replays/min",), lambda c: c["pcie_replays/min"] >= RISING_REPLAYS,
        f"{RISING_REPLAYS} or more PCIe replays a minute",
    ),
    Rule(
        "clock-low", "clocks", W, WATCH, ("clock_sm", "clock_sm_max", "utilisation", "throttle_reasons"),
        lambda c: (c["utilisation"] >= 90) & (c["clock_sm"] < 0.5 * c["clock_sm_max"]) & (c["throttle_reasons"] == 0),
        "clocks stay below half of their maximum under load, without a reason given", 60_000,
    ),
    Rule(
        "driver-asks-reset", "driver", E, DRAIN, ("recovery_action",),
        lambda c: (c["recovery_action"] == 1) | (c["recovery_action"] >= 3),
        "the driver asks for a reset of the device",
    ),
    Rule(
        "driver-asks-reboot", "driver", E, REBOOT, ("recovery_action",), lambda c: c["recovery_action"] == 2,
        "the driver asks for a reboot of the node",
    ),
)  # fmt: skip

SILENT = Rule(SILENT_ROW, "telemetry", E, WATCH, (), lambda c: np.zeros(0, np.bool_), "telemetry has stopped coming")
"""Judged by the age of the row, not by a column."""
