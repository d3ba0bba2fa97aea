"""What a healthy card of each model reports: the starting values of a simulated device."""

from __future__ import annotations

from dataclasses import dataclass

from chaos.nvml import layout

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Model:
    """Units as in NVML: mW, MHz, MiB, °C. ``architecture``: NVML_DEVICE_ARCH_*. Limits are the vendor's data-sheet
    figures, rounded; nothing depends on them beyond being plausible."""

    name: str
    architecture: int
    pci_device_id: int
    memory_mib: int
    power_limit: int
    clock_sm_max: int
    clock_memory_max: int
    slowdown: int
    shutdown: int
    gpu_max: int
    memory_max: int
    pcie_generation: int
    features: int


_COMMON = layout.FEATURE_ECC | layout.FEATURE_MEMORY_TEMPERATURE | layout.FEATURE_NVLINK
_AMPERE = _COMMON | layout.FEATURE_REMAPPED_ROWS | layout.FEATURE_RECOVERY_ACTION

MODELS: dict[str, Model] = {
    "V100": Model(
        "Tesla V100-SXM2-32GB", 5, 0x1DB510DE, 32_768, 300_000, 1530, 877, 87, 90, 83, 85, 3,
        _COMMON | layout.FEATURE_RETIRED_PAGES,
    ),
    "A100": Model("NVIDIA A100-SXM4-80GB", 7, 0x20B210DE, 81_920, 400_000, 1410, 1593, 89, 92, 85, 95, 4, _AMPERE),
    "H100": Model("NVIDIA H100 80GB HBM3", 9, 0x233010DE, 81_559, 700_000, 1980, 2619, 87, 92, 87, 95, 5, _AMPERE),
    "B200": Model("NVIDIA B200", 10, 0x290110DE, 183_359, 1_000_000, 1965, 3996, 87, 92, 87, 95, 6, _AMPERE),
}  # fmt: skip
