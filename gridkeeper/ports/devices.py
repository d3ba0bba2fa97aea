"""Devices of one vendor on one host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gridkeeper.records.fleet import EventKind


class BackendError(Exception):
    """The driver or library is not there or does not answer as documented. Names the call and the vendor's code."""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator as its driver describes it. ``slot``: a stable name on this host (``gpu0``)."""

    slot: str
    uuid: str
    vendor: str
    model: str
    architecture: str
    pci_bus_id: str  # "00000000:91:00.0", lower case
    serial: str
    memory_mib: int
    driver_version: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """One thing seen, before deduplication. ``seen_ms``: boot-time clock. ``source``: "nvml", "kmsg", … ``subject``:
    what within the slot or the node (disk, interface, DIMM, GPU instance); two subjects are told apart at once."""

    slot: str  # "" = the node
    kind: EventKind
    code: int
    message: str
    source: str
    seen_ms: int
    pid: int = 0
    pci_bus_id: str = ""
    subject: str = ""


class DeviceBackend(Protocol):
    """Blocking calls: the agent runs each in a thread of its own and treats one that does not come back as a fault
    (``DRIVER_HANG``)."""

    @property
    def name(self) -> str: ...

    def open(self) -> tuple[Device, ...]:
        """Load the library and take the inventory. Raises ``BackendError``."""
        ...

    def sample(self, devices: tuple[Device, ...]) -> NDArray[np.float32]:
        """One row per device, one column per ``gridkeeper.telemetry.METRICS``; NaN where not known. A device that is
        gone gives a row of NaN. Raises ``BackendError`` only if nothing at all can be read."""
        ...

    def wait_events(self, timeout_ms: int) -> tuple[Sighting, ...]:
        """Block until the driver has events or the timeout passes."""
        ...

    def processes(self, devices: tuple[Device, ...]) -> tuple[tuple[int, str], ...]:
        """(pid, slot) of compute processes."""
        ...

    def close(self) -> None: ...
