"""What the backends of vendors without an event interface share: an inventory with slots that stay, one reading of all
devices per sample, and events made of what changed between two readings."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gridkeeper.ports.clock import Clock
from gridkeeper.ports.devices import BackendError, Device, Sighting
from gridkeeper.records.fleet import EventKind
from gridkeeper.telemetry import COLUMN, METRICS
from nodeagent.conditions import Conditions
from nodeagent.inventory import Inventory, assign_slots

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Card:
    """One device as the vendor's interface lists it. ``key``: what it is found by in readings (its index).
    ``pci_bus_id``: in the normal form; where the interface names none, the uuid stands for the place."""

    key: str
    uuid: str
    model: str
    architecture: str
    pci_bus_id: str
    serial: str
    memory_mib: int
    driver_version: str

    @property
    def place(self) -> str:
        return self.pci_bus_id or self.uuid


@dataclass(slots=True)
class Reading:
    """Of one device; a metric that is not in ``values`` is not known."""

    values: dict[str, float] = field(default_factory=dict)
    pids: tuple[int, ...] = ()


class Vendor(Protocol):
    """One vendor's interface."""

    @property
    def name(self) -> str:
        """Of the backend: "amd"."""
        ...

    @property
    def prefix(self) -> str:
        """Of its slots: "gpu"."""
        ...

    @property
    def kind(self) -> EventKind: ...

    @property
    def period_ms(self) -> int:
        """How often it can be asked without being a burden."""
        ...

    def cards(self) -> tuple[Card, ...]:
        """Raises ``BackendError``, also when there is none."""
        ...

    def read(self, slots: Mapping[str, str], seen: Conditions, now_ms: int) -> dict[str, Reading]:
        """One reading per key that answers; what is new goes into ``seen``. ``slots``: key -> slot. Raises
        ``BackendError`` if nothing can be read."""
        ...

    def close(self) -> None: ...


class PolledBackend:
    """``DeviceBackend`` over a ``Vendor``. Slots are numbered by PCI address on first sight and kept for ever after."""

    def __init__(self, vendor: Vendor, clock: Clock, inventory: Inventory | None = None) -> None:
        self.name = vendor.name
        self.period_ms = vendor.period_ms
        self._vendor = vendor
        self._clock = clock
        self._inventory = inventory or Inventory()
        self._keys: dict[str, str] = {}  # slot -> key
        self._pids: dict[str, tuple[int, ...]] = {}
        self._seen = Conditions(vendor.kind, vendor.name)
        self._pending: list[Sighting] = []
        self._news = threading.Condition()
        self._open = False
        self._read_ms: int | None = None  # when the last reading was taken

    def open(self) -> tuple[Device, ...]:
        cards = self._vendor.cards()
        known = {device.pci_bus_id or device.uuid: device for device in self._inventory.load()}
        slots = assign_slots(
            self._vendor.prefix, sorted(card.place for card in cards), {bus: d.slot for bus, d in known.items()}
        )
        present = {card.place: _device(card, slots[card.place], self.name) for card in cards}
        self._keys = {slots[card.place]: card.key for card in cards}
        self._pids = {}
        merged = known | present
        devices = tuple(merged[bus] for bus in sorted(merged))
        self._inventory.save(devices)
        with self._news:
            self._open = True
        return devices

    def sample(self, devices: tuple[Device, ...]) -> NDArray[np.float32]:
        rows = np.full((len(devices), len(METRICS)), np.nan, dtype=np.float32)
        slots = {key: slot for slot, key in self._keys.items()}
        now_ms = self._clock.mono_ms()
        readings = self._vendor.read(slots, self._seen, now_ms)
        if slots and not any(reading.values for reading in readings.values()):
            raise BackendError(f"{self.name}: no device says anything in a form that is known; has the tool changed?")
        for number, device in enumerate(devices):
            reading = readings.get(self._keys.get(device.slot, ""))
            for name, value in reading.values.items() if reading else ():
                if abs(value) <= _FLOAT32_MAX:
                    rows[number, COLUMN[name]] = value
        self._pids = {slot: readings[key].pids for slot, key in self._keys.items() if key in readings}
        # What changed did so after the last reading. Dated so early, it is one event with what the kernel log said.
        earliest_ms, self._read_ms = (now_ms if self._read_ms is None else self._read_ms), now_ms
        told = [replace(event, seen_ms=earliest_ms) for event in self._seen.take()]
        if told:
            with self._news:
                self._pending = [*self._pending, *told][-MAX_PENDING:]
                self._news.notify_all()
        return rows

    def wait_events(self, timeout_ms: int) -> tuple[Sighting, ...]:
        with self._news:
            self._news.wait_for(lambda: self._pending or not self._open, timeout_ms / 1000)
            seen, self._pending = tuple(self._pending), []
        return seen

    def processes(self, devices: tuple[Device, ...]) -> tuple[tuple[int, str], ...]:
        return tuple((pid, device.slot) for device in devices for pid in self._pids.get(device.slot, ()))

    def close(self) -> None:
        with self._news:
            self._open = False
            self._news.notify_all()
        self._vendor.close()


MAX_PENDING = 1_024
"""Events kept while nobody waits for them; the newest ones."""


def _device(card: Card, slot: str, vendor: str) -> Device:
    return Device(
        slot, card.uuid, vendor, card.model, card.architecture, card.pci_bus_id, card.serial, card.memory_mib,
        card.driver_version,
    )  # fmt: skip
