"""NVIDIA devices through NVML: inventory, lifecycle and the XID event wait. Metrics are read by ``nvml_metrics``."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gridkeeper.ports.clock import Clock
from gridkeeper.ports.devices import BackendError, Device, Sighting
from gridkeeper.records.fleet import EventKind
from gridkeeper.telemetry import COLUMN, METRICS
from nodeagent.backends import nvml_metrics
from nodeagent.backends.nvml_links import Links
from nodeagent.backends.nvml_metrics import DRIVER_GONE, GONE, MIB, nv
from nodeagent.backends.nvml_throughput import Throughput
from nodeagent.inventory import Inventory, assign_slots
from nodeagent.pci import normal_bus_id

log = logging.getLogger("gridkeeper.agent.nvml")
T = TypeVar("T")

ARCHITECTURES: dict[int, str] = {
    number: name.removeprefix("NVML_DEVICE_ARCH_").lower()
    for name, number in vars(nv).items()
    if name.startswith("NVML_DEVICE_ARCH_") and isinstance(number, int) and number < 0xFFFF
}
"""NVML_DEVICE_ARCH_* -> "ampere", "hopper" …"""

_BATCH = 256  # events taken by one call; a burst beyond it is taken by the next
_REMEDY = {
    nv.NVML_ERROR_LIBRARY_NOT_FOUND: "install the NVIDIA driver, or take 'nvml' out of backends",
    nv.NVML_ERROR_DRIVER_NOT_LOADED: "load the NVIDIA driver (nvidia-smi must work)",
    nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "driver and library differ: reboot after the driver update",
    nv.NVML_ERROR_NO_PERMISSION: "give the agent access to /dev/nvidiactl",
}


def _failed(call: str, error: Any) -> BackendError:
    remedy = _REMEDY.get(error.value, "")
    return BackendError(f"nvml: {call}: {error} ({error.value})" + (f"; {remedy}" if remedy else ""))


@dataclass(frozen=True, slots=True)
class _Found:
    index: int
    bus_id: str
    handle: Any
    device: Callable[[str], Device]


class NvmlBackend:
    """``DeviceBackend`` on ``import pynvml``. Slots are ``gpu<n>``, n by rank of PCI address on first sight and kept in
    ``inventory`` for ever after; a device that is known and does not answer stays in the inventory with a row of NaN.

    ``open``/``sample``/``processes`` run in one thread, ``wait_events`` in another.
    """

    name = "nvml"

    def __init__(self, clock: Clock, inventory: Inventory | None = None) -> None:
        self._clock = clock
        self._inventory = inventory or Inventory()
        self._initialised = False
        self._handles: dict[str, Any] = {}
        self._bus_ids: dict[str, str] = {}
        self._returning: dict[str, Any] = {}  # found again, and not yet registered for events
        self._listening = False  # somebody calls wait_events
        self._state = threading.Lock()  # guards _handles and _returning
        self._events = threading.Lock()  # held while waiting, so that close and open do not pull the library away
        self._event_set: Any = None
        self._registered: dict[int, str] = {}  # address behind the handle -> slot
        self._deaf: set[str] = set()  # slots that take no event registration
        self._stop = threading.Event()
        self._busy = ""
        self._throughput = Throughput()
        self._links = Links()

    @property
    def busy(self) -> str:
        """Slot that is being read just now: names the device when a call hangs."""
        return self._busy

    # -- lifecycle --

    def open(self) -> tuple[Device, ...]:
        self.close()
        with self._events:
            self._stop.clear()
            try:
                nv.nvmlInit()
            except nv.NVMLError as error:
                raise _failed("nvmlInit", error) from error
            self._initialised = True
            self._throughput.forget()
            devices = self._take_inventory()
            self._deaf = set()
            self._register()  # events from here on are kept until somebody waits for them
        self._inventory.save(devices)
        return devices

    def close(self) -> None:
        self._stop.set()
        with self._events:
            self._free_event_set()
            with self._state:
                self._handles, self._returning, self._listening = {}, {}, False
            if self._initialised:
                self._initialised = False
                try:
                    nv.nvmlShutdown()
                except nv.NVMLError as error:
                    log.warning("NVML did not shut down cleanly: %s (%d).", error, error.value)

    def _take_inventory(self) -> tuple[Device, ...]:
        driver = self._must("nvmlSystemGetDriverVersion", nv.nvmlSystemGetDriverVersion)
        count = self._must("nvmlDeviceGetCount", nv.nvmlDeviceGetCount)
        found: list[_Found] = []
        lost: list[int] = []
        for index in range(count):
            try:
                found.append(_describe(index, driver))
            except nv.NVMLError as error:
                if error.value in DRIVER_GONE:
                    raise _failed(f"device {index}", error) from error
                lost.append(index)
                log.error("NVML lists GPU %d, but it does not answer: %s (%d).", index, error, error.value)
        known = {device.pci_bus_id: device for device in self._inventory.load()}
        slots = assign_slots("gpu", _in_order(found, lost), {bus: device.slot for bus, device in known.items()})
        present = {item.bus_id: item.device(slots[item.bus_id]) for item in found}
        with self._state:
            self._handles = {slots[item.bus_id]: item.handle for item in found}
        merged = known | present
        self._bus_ids = {device.slot: bus for bus, device in merged.items()}
        return tuple(merged[bus] for bus in sorted(merged))

    def _must(self, call: str, function: Callable[[], T]) -> T:
        try:
            return function()
        except nv.NVMLError as error:
            raise _failed(call, error) from error

    # -- sampling --

    def sample(self, devices: tuple[Device, ...]) -> NDArray[np.float32]:
        rows = np.full((len(devices), len(METRICS)), np.nan, dtype=np.float32)
        try:
            for number, device in enumerate(devices):
                self._busy = device.slot
                handle = self._handle(device)
                if handle is None:
                    continue
                try:
                    rows[number] = nvml_metrics.read_row(handle)
                    more = self._throughput.read(device.slot, handle) | self._links.read(device.slot, handle)
                    for column, value in more.items():
                        rows[number, COLUMN[column]] = value
                except nv.NVMLError as error:
                    if error.value not in GONE:
                        raise _failed("sample", error) from error
                    self._drop(device.slot)
        finally:
            self._busy = ""
        return rows

    def processes(self, devices: tuple[Device, ...]) -> tuple[tuple[int, str], ...]:
        found: list[tuple[int, str]] = []
        for device in devices:
            with self._state:
                handle = self._handles.get(device.slot)
            if handle is None:
                continue
            try:
                found.extend((pid, device.slot) for pid in nvml_metrics.compute_pids(handle))
            except nv.NVMLError as error:  # what is not known is not listed; the row of NaN says the rest
                log.debug("The processes of %s are not known: %s (%d).", device.slot, error, error.value)
        return tuple(found)

    def _handle(self, device: Device) -> Any:
        """Its handle, or None while it is lost; a lost one is asked for again by uuid each time."""
        with self._state:
            handle = self._handles.get(device.slot)
            if handle is not None or device.slot in self._returning:
                return handle
        try:
            handle = nv.nvmlDeviceGetHandleByUUID(device.uuid)
        except nv.NVMLError as error:
            if error.value in DRIVER_GONE:
                raise _failed("nvmlDeviceGetHandleByUUID", error) from error
            return None
        log.info("%s (%s) answers again.", device.slot, device.uuid)
        with self._state:
            if self._listening:  # it counts as back once its events are heard, too
                self._returning[device.slot] = handle
                return None
            self._handles[device.slot] = handle
        return handle

    def _drop(self, slot: str) -> bool:
        with self._state:
            return self._handles.pop(slot, None) is not None

    # -- events --

    def wait_events(self, timeout_ms: int) -> tuple[Sighting, ...]:
        with self._events:
            if not self._initialised:
                raise BackendError("nvml: not open; call open() first")
            self._listening = True
            self._register()
            if self._event_set is None:
                self._stop.wait(timeout_ms / 1000)
                return ()
            seen: list[Sighting] = []
            try:
                while len(seen) < _BATCH:
                    data = nv.nvmlEventSetWait_v2(self._event_set, 0 if seen else timeout_ms)
                    seen.append(self._sighting(data))
            except nv.NVMLError as error:
                if error.value in GONE:
                    seen.extend(self._lost_devices())
                elif error.value != nv.NVML_ERROR_TIMEOUT:
                    raise _failed("nvmlEventSetWait", error) from error
            return tuple(seen)

    def _sighting(self, data: Any) -> Sighting:
        slot = self._registered.get(_address(data.device), "")
        code = int(data.eventData)
        return Sighting(
            slot, EventKind.XID, code, f"XID {code} (NVML event)", self.name, self._clock.mono_ms(),
            pci_bus_id=self._bus_ids.get(slot, ""),
        )  # fmt: skip

    def _lost_devices(self) -> list[Sighting]:
        """Which device made the wait fail; the event set goes on without it."""
        lost: list[Sighting] = []
        for slot in set(self._registered.values()):
            with self._state:
                handle = self._handles.get(slot)
            try:
                if handle is not None:
                    nv.nvmlDeviceGetUUID(handle)
                    continue
            except nv.NVMLError as error:
                if error.value not in GONE:
                    continue
                self._drop(slot)
            lost.append(
                Sighting(
                    slot, EventKind.DEVICE_MISSING, 0, "GPU is lost (NVML)", self.name, self._clock.mono_ms(),
                    pci_bus_id=self._bus_ids.get(slot, ""),
                )
            )  # fmt: skip
        if not lost:
            raise BackendError("nvml: nvmlEventSetWait: GPU is lost (15), and yet every registered GPU answers")
        self._free_event_set()
        return lost

    def _register(self) -> None:
        with self._state:
            returning, self._returning = self._returning, {}
            handles = self._handles | returning
        wanted = {slot: handle for slot, handle in handles.items() if slot not in self._deaf}
        if set(self._registered.values()) - set(wanted):
            self._free_event_set()  # a device has gone: a set cannot forget one
        new = {slot: handle for slot, handle in wanted.items() if slot not in self._registered.values()}
        if new and self._event_set is None:
            self._event_set = self._must("nvmlEventSetCreate", nv.nvmlEventSetCreate)
        for slot, handle in new.items():
            try:
                nv.nvmlDeviceRegisterEvents(handle, nv.nvmlEventTypeXidCriticalError, self._event_set)
                self._registered[_address(handle)] = slot
            except nv.NVMLError as error:
                if error.value in GONE:
                    self._drop(slot)
                elif error.value in DRIVER_GONE:
                    raise _failed("nvmlDeviceRegisterEvents", error) from error
                else:
                    self._deaf.add(slot)
                    log.warning("%s reports no XID events through NVML: %s; the kernel log must.", slot, error)
        with self._state:
            heard = self._deaf | set(self._registered.values())
            self._handles.update({slot: handle for slot, handle in returning.items() if slot in heard})
        if not self._registered:
            self._free_event_set()

    def _free_event_set(self) -> None:
        if self._event_set is not None:
            try:
                nv.nvmlEventSetFree(self._event_set)
            except nv.NVMLError as error:
                log.debug("An event set could not be freed: %s (%d).", error, error.value)
        self._event_set, self._registered = None, {}


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _in_order(found: list[_Found], lost: list[int]) -> list[str]:
    """Bus addresses in the order in which new slots are numbered. A device that does not answer has no address to
    sort by; NVML lists by bus address, so its index keeps its place free."""
    if not lost:
        return sorted(item.bus_id for item in found)
    by_index = {item.index: item.bus_id for item in found} | {index: f"lost-{index}" for index in lost}
    return [by_index[index] for index in sorted(by_index)]


def _describe(index: int, driver: str) -> _Found:
    """Raises ``pynvml.NVMLError`` if what identifies the device cannot be read."""
    handle = nv.nvmlDeviceGetHandleByIndex(index)
    bus_id = normal_bus_id(nv.nvmlDeviceGetPciInfo(handle).busId)
    uuid = nv.nvmlDeviceGetUUID(handle)
    model = _or(nv.nvmlDeviceGetName, handle, "unknown")
    architecture = ARCHITECTURES.get(_or(nv.nvmlDeviceGetArchitecture, handle, -1), "unknown")
    serial = _or(nv.nvmlDeviceGetSerial, handle, "")
    memory = _or(lambda h: int(nv.nvmlDeviceGetMemoryInfo(h).total), handle, 0) // MIB

    def device(slot: str) -> Device:
        return Device(slot, uuid, "nvidia", model, architecture, bus_id, serial, memory, driver)

    return _Found(index, bus_id, handle, device)


def _or(call: Callable[[Any], T], handle: Any, otherwise: T) -> T:
    try:
        return call(handle)
    except nv.NVMLError as error:
        if error.value in GONE or error.value in DRIVER_GONE:
            raise
        return otherwise
