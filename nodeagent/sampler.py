"""Watches the devices of one backend: inventory, telemetry, events, and whether the driver still answers.

Two activities, each in a lane of its own (see ``runner``): taking samples (and the inventory), and waiting for events.
A call that is not back in ``driver_timeout_ms`` is a ``DRIVER_HANG``, told once; it is waited for as long as it takes,
and no second call is sent after it. While it lasts there is no telemetry: what is not known is not repeated.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gridkeeper.ports.clock import Clock
from gridkeeper.ports.devices import BackendError, Device, DeviceBackend, Sighting
from gridkeeper.records.fleet import EventKind
from gridkeeper.telemetry import METRICS
from nodeagent.runner import Lane, Runner, ThreadRunner

log = logging.getLogger("gridkeeper.agent.sampler")
T = TypeVar("T")

EVENT_WAIT_MS = 1_000  # one blocking wait: how long the driver's lock on the event set may delay a reopening
_INLINE_POLL_MS = 100
_RETRY_FIRST_MS = 1_000
HANDOVER_MS = 500
MISREAD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What reading an answer raises that has another shape than the vendor documents. It makes this backend's devices
unknown; it must not end the agent, which also holds jobs and the other backends."""
_RETRY_MAX_MS = 30_000


@runtime_checkable
class Busy(Protocol):
    """A backend that tells which slot it is reading, so that a hang can name the device."""

    @property
    def busy(self) -> str: ...


@runtime_checkable
class Paced(Protocol):
    """A backend that should not be read more often than this."""

    @property
    def period_ms(self) -> int: ...


class DeviceWatch:
    """Run ``run()`` as a task; read ``devices``, ``latest()`` and ``processes`` from the same loop."""

    def __init__(
        self,
        backend: DeviceBackend,
        clock: Clock,
        driver_timeout_ms: int,
        emit: Callable[[Sighting], None],
        *,
        runner: Runner | None = None,
        sample_ms: int = 1_000,
    ) -> None:
        self.backend = backend
        self.sample_ms = sample_ms  # may be changed while running
        self.devices: tuple[Device, ...] = ()  # rows of ``latest()``; a device that has gone keeps its row
        self.processes: tuple[tuple[int, str], ...] = ()  # (pid, slot) at the last sample
        self.ready = asyncio.Event()  # the inventory has been taken
        self.version = 0  # grows when ``devices`` changes
        self.error = ""  # why the backend cannot be opened or read just now; "" while it can
        self._clock = clock
        self._timeout_ms = driver_timeout_ms
        self._emit = emit
        self._runner = runner or ThreadRunner()
        self._latest: tuple[NDArray[np.float32], int] | None = None
        self._missing: dict[str, int] = {}  # slot -> since when (boot-time clock)
        self._hung: set[str] = set()  # lanes whose call is overdue

    def latest(self) -> tuple[NDArray[np.float32], int] | None:
        """The newest sample (one row per entry of ``devices``, one column per metric) and when it was taken, on the
        boot-time clock. None before the first, while the driver hangs, and while nothing can be read."""
        return self._latest

    @property
    def hung(self) -> frozenset[str]:
        """The activities ("sample", "events") whose driver call is overdue."""
        return frozenset(self._hung)

    @property
    def missing(self) -> frozenset[str]:
        """Slots that are known and do not answer."""
        return frozenset(self._missing)

    async def run(self) -> None:
        """For ever: open, watch, and after a failure open again with growing pauses (1 s to 30 s)."""
        sampling = self._runner.lane(f"{self.backend.name}-sample")
        waiting = self._runner.lane(f"{self.backend.name}-events")
        pause_ms = _RETRY_FIRST_MS
        try:
            while True:
                opened_ms = self._clock.mono_ms()
                try:
                    self._take(await self._call(sampling, "sample", self.backend.open, self._timeout_ms))
                    self.error = ""
                    await self._watch(sampling, waiting)
                except BackendError as error:
                    self._latest, self.processes = None, ()
                    if str(error) != self.error:
                        log.error("Backend %s cannot be read: %s.", self.backend.name, error)
                    self.error = str(error)
                if self._clock.mono_ms() - opened_ms > _RETRY_MAX_MS:
                    pause_ms = _RETRY_FIRST_MS
                await self._clock.sleep(pause_ms)
                pause_ms = min(2 * pause_ms, _RETRY_MAX_MS)
        finally:
            sampling.submit(self.backend.close).add_done_callback(_swallow)
            sampling.close()
            waiting.close()

    # -- the two activities --

    async def _watch(self, sampling: Lane, waiting: Lane) -> None:
        """Until one of both fails; its ``BackendError`` is raised."""
        tasks = [asyncio.ensure_future(self._sample(sampling)), asyncio.ensure_future(self._wait(waiting))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _sample(self, lane: Lane) -> None:
        while True:
            started_ms = self._clock.mono_ms()
            devices = self.devices
            rows, processes = await self._call(lane, "sample", partial(self._read, devices), self._timeout_ms)
            if rows.shape != (len(devices), len(METRICS)):
                raise BackendError(f"{self.backend.name}: a sample of shape {rows.shape} for {len(devices)} devices")
            now_ms = self._clock.mono_ms()
            if now_ms - started_ms <= self._timeout_ms:  # one that took longer is too old to be shown as new
                self._latest, self.processes = (rows, now_ms), processes
            self._compare(devices, rows, started_ms)
            period_ms = max(self.sample_ms, self.backend.period_ms if isinstance(self.backend, Paced) else 0)
            await self._clock.sleep(max(0, period_ms - (self._clock.mono_ms() - started_ms)))

    def _read(self, devices: tuple[Device, ...]) -> tuple[NDArray[np.float32], tuple[tuple[int, str], ...]]:
        return self.backend.sample(devices), self.backend.processes(devices)

    async def _wait(self, lane: Lane) -> None:
        wait_ms = EVENT_WAIT_MS if self._runner.may_block else 0
        while True:
            sightings = await self._call(
                lane, "events", lambda: self.backend.wait_events(wait_ms), wait_ms + self._timeout_ms
            )
            for sighting in sightings:
                self._tell(sighting)
            if not self._runner.may_block:
                await self._clock.sleep(_INLINE_POLL_MS)

    async def _call(self, lane: Lane, name: str, function: Callable[[], T], limit_ms: int) -> T:
        """The result of ``function``, however long it takes; overdue, it is a hang."""
        future = lane.submit(function)
        done, _ = await asyncio.wait({future}, timeout=limit_ms / 1000)
        if not done and self._runner.may_block:
            # If this whole process was stopped, or starved, the limit has passed for it and the driver alike: what has
            # come back meanwhile is given the time to be handed over.
            done, _ = await asyncio.wait({future}, timeout=HANDOVER_MS / 1000)
        if not done:
            self._overdue(name, limit_ms)
            try:
                await asyncio.wait({future})
            finally:
                self._hung.discard(name)
            log.warning("A call to the %s driver (%s) came back after all.", self.backend.name, name)
        try:
            return future.result()
        except MISREAD as error:
            log.exception("The answer of the %s driver (%s) was not understood.", self.backend.name, name)
            what = f"{type(error).__name__}: {error}"[:200]
            raise BackendError(
                f"{self.backend.name}: its answer ({name}) is not understood ({what}); has its format changed?"
            ) from error

    # -- what it means --

    def _overdue(self, name: str, limit_ms: int) -> None:
        first = not self._hung
        self._hung.add(name)
        self._latest, self.processes = None, ()
        slot = self.backend.busy if name == "sample" and isinstance(self.backend, Busy) else ""
        where = f" while reading {slot}" if slot else ""
        message = f"a call to the {self.backend.name} driver ({name}) has not come back in {limit_ms} ms{where}"
        log.error("Driver hang: %s.", message)
        if first:
            bus_id = next((device.pci_bus_id for device in self.devices if device.slot == slot), "")
            now_ms = self._clock.mono_ms()
            self._emit(Sighting(slot, EventKind.DRIVER_HANG, 0, message, self.backend.name, now_ms, pci_bus_id=bus_id))

    def _take(self, opened: tuple[Device, ...]) -> None:
        """Devices that were known stay, in their order; what ``opened`` says of them is newer."""
        now = {device.slot: device for device in opened}
        known = [now.pop(device.slot, device) for device in self.devices]
        gone = [device for device in self.devices if device.slot not in {d.slot for d in opened}]
        devices = (*known, *now.values())
        if devices != self.devices:
            self.devices = devices
            self.version += 1
            self._latest = None
        for device in gone:
            self._lost(device, f"{device.slot} ({device.uuid}) is no longer in the inventory")
        self.ready.set()

    def _compare(self, devices: tuple[Device, ...], rows: NDArray[np.float32], started_ms: int) -> None:
        """A row of nothing but NaN means that the device is gone (the port's contract). One with values that were
        read before an event said so does not bring it back."""
        silent: list[bool] = np.all(np.isnan(rows), axis=1).tolist()
        for device, nothing in zip(devices, silent, strict=True):
            if nothing:
                self._lost(device, f"{device.slot} ({device.uuid}) does not answer any more")
            elif started_ms > self._missing.get(device.slot, started_ms):
                self._back(device, f"{device.slot} ({device.uuid}) answers again")

    def _tell(self, sighting: Sighting) -> None:
        """Pass on an event of the backend; missing and found only when that is news."""
        device = next((device for device in self.devices if device.slot == sighting.slot), None)
        if device is not None:
            sighting = replace(sighting, pci_bus_id=sighting.pci_bus_id or device.pci_bus_id)
        if device is not None and sighting.kind is EventKind.DEVICE_MISSING:
            if device.slot in self._missing:
                return
            self._missing[device.slot] = self._clock.mono_ms()
        elif device is not None and sighting.kind is EventKind.DEVICE_FOUND:
            if device.slot not in self._missing:
                return
            del self._missing[device.slot]
        self._emit(sighting)

    def _lost(self, device: Device, message: str) -> None:
        if device.slot not in self._missing:
            log.error("%s.", message)
            self._tell(self._sighting(device, EventKind.DEVICE_MISSING, message))

    def _back(self, device: Device, message: str) -> None:
        if device.slot in self._missing:
            log.info("%s.", message)
            self._tell(self._sighting(device, EventKind.DEVICE_FOUND, message))

    def _sighting(self, device: Device, kind: EventKind, message: str) -> Sighting:
        return Sighting(device.slot, kind, 0, message, self.backend.name, self._clock.mono_ms())


def _swallow(future: asyncio.Future[None]) -> None:
    """Closing is best effort: the process ends anyway, and a failure of it was logged by the backend."""
    if not future.cancelled() and (error := future.exception()):
        log.debug("The backend did not close cleanly: %s", error)
