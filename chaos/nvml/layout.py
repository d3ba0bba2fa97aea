"""The shape of the state file, defined once: ctypes structures here, and the C header made from them at build time.

The file is mapped by the steering process (writer) and by every process that loaded the simulated library (readers).
Every field is naturally aligned and at most 8 bytes wide, so each is stored and loaded whole; nothing depends on the
order of two stores, except that an event is complete in the one 64-bit word that carries its own sequence number.
"""

from __future__ import annotations

import ctypes
from typing import Any

MAGIC = 0x4D56474B  # "KGVM"
VERSION = 2
MAX_DEVICES = 64
MAX_PROCESSES = 32
RING_SIZE = 4096  # events kept; a reader that is further behind misses the oldest, as with the real driver

FEATURE_ECC = 1
FEATURE_REMAPPED_ROWS = 2  # Ampere and newer
FEATURE_RETIRED_PAGES = 4  # before Ampere
FEATURE_MEMORY_TEMPERATURE = 8
FEATURE_RECOVERY_ACTION = 16  # drivers that know field 230
FEATURE_NVLINK = 32

_U32 = ctypes.c_uint32
_U64 = ctypes.c_uint64


class Process(ctypes.Structure):
    """A compute process; ``pid`` 0: free."""

    _fields_ = (("pid", _U32), ("reserved", _U32), ("memory", _U64))


class DeviceState(ctypes.Structure):
    """One device, in NVML's units (mW, MHz, bytes, °C)."""

    _fields_ = (
        ("present", _U32),  # 0: not enumerated at all
        ("lost", _U32),  # 1: every call answers GPU_IS_LOST
        ("hang", _U32),  # 1: calls on it block (futex word)
        ("fail_code", _U32),  # not 0: every call answers this
        ("features", _U32),
        ("architecture", _U32),
        ("pci_domain", _U32),
        ("pci_bus", _U32),
        ("pci_device", _U32),
        ("pci_device_id", _U32),
        ("temperature", _U32),
        ("temperature_memory", _U32),
        ("temperature_slowdown", _U32),
        ("temperature_shutdown", _U32),
        ("temperature_gpu_max", _U32),
        ("temperature_memory_max", _U32),
        ("power", _U32),
        ("power_limit", _U32),
        ("clock_sm", _U32),
        ("clock_sm_max", _U32),
        ("clock_memory", _U32),
        ("clock_memory_max", _U32),
        ("utilisation", _U32),
        ("utilisation_memory", _U32),
        ("retired_pages_sbe", _U32),
        ("retired_pages_dbe", _U32),
        ("retired_pending", _U32),
        ("remapped_corrected", _U32),
        ("remapped_uncorrected", _U32),
        ("remap_pending", _U32),
        ("remap_failed", _U32),
        ("pcie_generation", _U32),
        ("pcie_generation_max", _U32),
        ("pcie_width", _U32),
        ("pcie_width_max", _U32),
        ("pcie_replays", _U32),
        ("recovery_action", _U32),
        ("reserved", _U32),
        ("throttle_reasons", _U64),
        ("memory_total", _U64),
        ("memory_used", _U64),
        ("ecc_corrected", _U64),
        ("ecc_uncorrected", _U64),
        ("ecc_corrected_aggregate", _U64),
        ("ecc_uncorrected_aggregate", _U64),
        ("nvlink_tx", _U64),  # KiB since the driver was loaded, all links
        ("nvlink_rx", _U64),
        ("pcie_tx", _U64),  # bytes
        ("pcie_rx", _U64),
        ("nvlink_crc_errors", _U64),
        ("nvlink_recoveries", _U64),
        ("nvlink_count", _U32),
        ("nvlink_up", _U32),  # bit n: link n is up
        ("fabric_state", _U32),  # NVML_GPU_FABRIC_STATE_*
        ("mig_enabled", _U32),
        ("name", ctypes.c_char * 96),
        ("uuid", ctypes.c_char * 96),
        ("serial", ctypes.c_char * 32),
        ("processes", Process * MAX_PROCESSES),
    )


class State(ctypes.Structure):
    """The whole file. ``ring[n % RING_SIZE]`` holds event n (from 1): sequence in bits 0–31, XID in 32–47, device in
    48–55, event type as a bit number in 56–63. ``head`` counts events and is the futex word that waiters sleep on; it
    is stored after the event."""

    _fields_ = (
        ("magic", _U32),
        ("version", _U32),
        ("size", _U32),  # of this structure: a library built from another layout refuses the file
        ("device_count", _U32),
        ("hang", _U32),  # 1: every call blocks (futex word)
        ("fail_code", _U32),  # not 0: init and every call answer this
        ("head", _U32),
        ("reserved", _U32),
        ("driver_version", ctypes.c_char * 80),
        ("nvml_version", ctypes.c_char * 80),
        ("ring", _U64 * RING_SIZE),
        ("devices", DeviceState * MAX_DEVICES),
    )


def pack_event(sequence: int, code: int, device: int, type_bit: int) -> int:
    """The 64-bit word of one event. Raises ``ValueError`` for what does not fit."""
    for field, value, bits in (("code", code, 16), ("device", device, 8), ("type_bit", type_bit, 8)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{field}: {value} does not fit in {bits} bits")
    return (sequence & 0xFFFFFFFF) | code << 32 | device << 48 | type_bit << 56


_C_TYPES: dict[type, str] = {_U32: "uint32_t", _U64: "uint64_t"}


def _members(structure: type[ctypes.Structure]) -> list[str]:
    lines = []
    for name, kind, *_ in structure._fields_:
        base: Any = kind
        dimension = ""
        if issubclass(kind, ctypes.Array):
            base, dimension = kind._type_, f"[{kind._length_}]"
        spelled = "char" if base is ctypes.c_char else _C_TYPES.get(base) or f"struct sim_{base.__name__.lower()}"
        lines.append(f"    {spelled} {name}{dimension};")
    return lines


def c_header() -> str:
    """``layout.h``: the structures above in C, with a compile-time check of their sizes."""
    lines = ["/* Made from chaos/nvml/layout.py. */", "#include <stdint.h>"]
    constants = {
        name: value for name, value in globals().items() if name.isupper() and isinstance(value, int) and name[0] != "_"
    }
    lines += [f"#define SIM_{name} {value}u" for name, value in constants.items()]
    for structure in (Process, DeviceState, State):
        tag = f"struct sim_{structure.__name__.lower()}"
        lines += [f"{tag} {{", *_members(structure), "};"]
        lines.append(f'_Static_assert(sizeof({tag}) == {ctypes.sizeof(structure)}, "layout differs from layout.py");')
    return "\n".join(lines) + "\n"
