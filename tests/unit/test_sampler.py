"""Protects: a driver that hangs, a device that goes and one that comes back are told once each, telemetry that is not
known is not shown, and all of it also runs in one thread."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from chaos.simulate.clock import SimClock
from chaos.simulate.loop import run_virtual
from gridkeeper.clock import SystemClock
from gridkeeper.ports.devices import BackendError, Device, Sighting
from gridkeeper.records.fleet import EventKind
from gridkeeper.telemetry import METRICS
from nodeagent.runner import InlineRunner, Runner, ThreadRunner
from nodeagent.sampler import DeviceWatch

LIMIT_MS = 60


class FakeBackend:
    """Answers what its fields say; ``gate`` closed: calls hang."""

    name = "fake"

    def __init__(self, count: int = 2) -> None:
        self.inventory = tuple(_device(n) for n in range(count))
        self.value = 1.0
        self.gone: set[str] = set()
        self.events: list[Sighting] = []
        self.failure = ""
        self.opened = 0
        self.closed = 0
        self.busy = ""
        self.gate = threading.Event()
        self.gate.set()
        self.gated = {"open", "sample", "events"}
        self.threads: set[str] = set()

    def open(self) -> tuple[Device, ...]:
        self._enter("open")
        self.opened += 1
        return self.inventory

    def sample(self, devices: tuple[Device, ...]) -> NDArray[np.float32]:
        self.busy = devices[-1].slot
        self._enter("sample")
        self.busy = ""
        rows = [math.nan if d.slot in self.gone else self.value for d in devices]
        return np.repeat(np.array(rows, dtype=np.float32)[:, None], len(METRICS), axis=1)

    def wait_events(self, timeout_ms: int) -> tuple[Sighting, ...]:
        self._enter("events")
        events, self.events = tuple(self.events), []
        return events

    def processes(self, devices: tuple[Device, ...]) -> tuple[tuple[int, str], ...]:
        return ((42, devices[0].slot),)

    def close(self) -> None:
        self.closed += 1

    def _enter(self, call: str) -> None:
        self.threads.add(threading.current_thread().name)
        if call in self.gated:
            self.gate.wait()
        if self.failure:
            raise BackendError(self.failure)


def _device(number: int) -> Device:
    return Device(f"gpu{number}", f"uuid-{number}", "fake", "m", "a", f"00000000:{number:02x}:00.0", "", 1, "1")


class Hung:
    def __init__(self) -> None:
        self.lanes: set[str] = set()

    def __call__(self, lane: str) -> bool:
        return lane in self.lanes


class Bench:
    def __init__(self, backend: FakeBackend, runner: Runner, hung: Hung) -> None:
        self.backend = backend
        self.hung = hung
        self.threads = isinstance(runner, ThreadRunner)
        self.told: list[Sighting] = []
        self.clock = SystemClock()
        self.watch = DeviceWatch(backend, self.clock, LIMIT_MS, self.told.append, runner=runner, sample_ms=5)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await self.clock.sleep(2)

    def kinds(self) -> list[tuple[EventKind, str]]:
        return [(sighting.kind, sighting.slot) for sighting in self.told]

    def hang(self, on: bool) -> None:
        """Of the driver: both lanes."""
        if self.threads:
            (self.backend.gate.clear if on else self.backend.gate.set)()
        else:
            self.hung.lanes = {"fake-sample", "fake-events"} if on else set()


@asynccontextmanager
async def running(runner_kind: str, backend: FakeBackend | None = None) -> AsyncIterator[Bench]:
    hung = Hung()
    runner: Runner = ThreadRunner() if runner_kind == "thread" else InlineRunner(SystemClock(), hung)
    bench = Bench(backend or FakeBackend(), runner, hung)
    task = asyncio.create_task(bench.watch.run())
    try:
        yield bench
    finally:
        bench.backend.gate.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bench.until(lambda: bench.backend.closed)


both = pytest.mark.parametrize("kind", ["thread", "inline"])


class Misread(FakeBackend):
    """``odd``: its tool's output has another shape."""

    odd = False

    def sample(self, devices: tuple[Device, ...]) -> NDArray[np.float32]:
        if self.odd:
            raise TypeError("unhashable type: 'list'")
        return super().sample(devices)


@both
async def test_an_answer_of_another_shape_makes_devices_unknown_and_ends_nothing(kind: str) -> None:
    backend = Misread()
    async with running(kind, backend) as bench:
        await bench.until(bench.watch.latest)
        backend.odd = True
        await bench.until(lambda: bench.watch.error)
        assert "is not understood (TypeError: unhashable type: 'list')" in bench.watch.error
        assert bench.watch.latest() is None
        backend.odd = False
        await bench.until(bench.watch.latest)


@both
async def test_samples_processes_and_events_come_through(kind: str) -> None:
    async with running(kind) as bench:
        await bench.until(bench.watch.latest)
        latest = bench.watch.latest()
        assert latest is not None
        rows, seen_ms = latest
        assert rows.shape == (2, len(METRICS))
        assert rows.dtype == np.float32
        assert 0 <= bench.clock.mono_ms() - seen_ms < 10_000
        assert bench.watch.processes == ((42, "gpu0"),)
        bench.backend.events.append(Sighting("gpu1", EventKind.XID, 48, "x", "fake", 1))
        await bench.until(lambda: bench.told)
        assert bench.told[0].pci_bus_id == "00000000:01:00.0"
        main = threading.current_thread().name
        assert (main in bench.backend.threads) == (kind == "inline")


@both
async def test_a_hang_is_told_once_and_telemetry_stops_until_it_ends(kind: str) -> None:
    async with running(kind) as bench:
        await bench.until(bench.watch.latest)
        bench.hang(True)
        await bench.until(lambda: bench.watch.hung == {"sample", "events"})
        assert bench.watch.latest() is None
        assert [kind for kind, _ in bench.kinds()] == [EventKind.DRIVER_HANG]
        assert "fake" in bench.told[0].message
        bench.hang(False)
        await bench.until(lambda: bench.watch.latest() and not bench.watch.hung)
        bench.hang(True)
        await bench.until(lambda: len(bench.told) > 1)
        assert [kind for kind, _ in bench.kinds()] == [EventKind.DRIVER_HANG] * 2
        bench.hang(False)
        await bench.until(bench.watch.latest)


async def test_a_hang_names_the_device_that_was_read() -> None:
    async with running("thread") as bench:
        await bench.until(bench.watch.latest)
        bench.backend.gated = {"sample"}
        bench.backend.gate.clear()
        await bench.until(lambda: bench.watch.hung == {"sample"})
        (hang,) = bench.told
        assert (hang.kind, hang.slot, hang.pci_bus_id) == (EventKind.DRIVER_HANG, "gpu1", "00000000:01:00.0")
        bench.backend.events.append(Sighting("gpu0", EventKind.XID, 79, "x", "fake", 1))
        await bench.until(lambda: len(bench.told) == 2)  # events still come


@both
async def test_missing_and_found_are_told_once_each(kind: str) -> None:
    async with running(kind) as bench:
        await bench.until(bench.watch.latest)
        bench.backend.gone = {"gpu1"}
        bench.backend.events.append(Sighting("gpu1", EventKind.DEVICE_MISSING, 0, "lost", "fake", 1))
        await bench.until(lambda: bench.watch.missing == {"gpu1"})
        taken = bench.watch.latest()
        await bench.until(lambda: bench.watch.latest() is not taken)
        bench.backend.gone = set()
        await bench.until(lambda: not bench.watch.missing)
        assert bench.kinds() == [(EventKind.DEVICE_MISSING, "gpu1"), (EventKind.DEVICE_FOUND, "gpu1")]


@both
async def test_a_backend_that_fails_is_opened_again_and_a_shrunken_inventory_is_told(kind: str) -> None:
    async with running(kind) as bench:
        await bench.until(bench.watch.latest)
        bench.backend.failure = "fake: driver not loaded (9)"
        await bench.until(lambda: bench.watch.error)
        assert bench.watch.latest() is None
        assert "driver not loaded" in bench.watch.error
        bench.backend.inventory = bench.backend.inventory[:1]
        bench.backend.gone = {"gpu1"}
        bench.backend.failure = ""
        await bench.until(bench.watch.latest)
        assert bench.kinds() == [(EventKind.DEVICE_MISSING, "gpu1")]
        assert [d.slot for d in bench.watch.devices] == ["gpu0", "gpu1"], "a missing device keeps its row"
        assert bench.backend.opened == 2


async def test_a_backend_that_never_opens_leaves_nothing_known() -> None:
    backend = FakeBackend()
    backend.failure = "fake: no library"
    async with running("thread", backend) as bench:
        await bench.until(lambda: bench.watch.error)
        assert (bench.watch.latest(), bench.watch.devices, bench.told) == (None, (), [])
        assert not bench.watch.ready.is_set()


async def test_stopping_does_not_wait_for_a_hung_driver() -> None:
    backend = FakeBackend()
    watch = DeviceWatch(backend, SystemClock(), LIMIT_MS, lambda sighting: None, sample_ms=5)
    task = asyncio.create_task(watch.run())
    async with asyncio.timeout(10):
        await watch.ready.wait()
        backend.gate.clear()
        while not watch.hung:
            await SystemClock().sleep(2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert backend.closed == 0, "close() waits behind the hung call, in its own thread"
    assert not backend.gate.is_set()
    backend.gate.set()


def test_twenty_minutes_of_hangs_on_virtual_time() -> None:
    """One thread, no waiting: what the simulation runs."""

    async def hangs() -> tuple[list[tuple[int, EventKind]], int]:
        clock = SimClock(asyncio.get_running_loop(), boot_ms=0)
        backend, hung = FakeBackend(), Hung()
        told: list[tuple[int, EventKind]] = []
        watch = DeviceWatch(
            backend, clock, 10_000, lambda s: told.append((s.seen_ms, s.kind)), runner=InlineRunner(clock, hung)
        )
        task = asyncio.create_task(watch.run())
        samples = 0
        for _ in range(10):
            await clock.sleep(60_000)
            samples += watch.latest() is not None
            hung.lanes = {"fake-sample"}
            await clock.sleep(60_000)
            assert watch.latest() is None
            hung.lanes = set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return told, samples

    told, samples = run_virtual(hangs(), 7_200)
    assert samples == 10
    assert [kind for _, kind in told] == [EventKind.DRIVER_HANG] * 10
    assert all(10_000 <= at % 60_000 <= 11_000 for at, _ in told), "told when the limit has passed, not later"
    assert run_virtual(hangs(), 7_200) == (told, samples)
