"""PCI addresses, which every source spells its own way. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gridkeeper.ports.devices import Device

_ADDRESS = re.compile(r"(?:PCI:)?([0-9a-fA-F]{1,8}):([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2})(?:\.([0-7]))?")


def normal_bus_id(text: str) -> str:
    """``0000:91:00``, ``PCI:0000:91:00`` and ``00000000:91:00.0`` all become ``00000000:91:00.0``; what is no address
    becomes ``""``. A missing function is 0."""
    match = _ADDRESS.fullmatch(text.strip()[:64])
    if not match:
        return ""
    domain, bus, device, function = match.groups()
    return f"{int(domain, 16):08x}:{int(bus, 16):02x}:{int(device, 16):02x}.{function or '0'}"


def slot_for(bus_id: str, devices: Iterable[Device]) -> str:
    """The slot of the device at that address, or ``""`` when there is none."""
    wanted = normal_bus_id(bus_id)
    if wanted:
        for device in devices:
            if normal_bus_id(device.pci_bus_id) == wanted:
                return device.slot
    return ""
