"""One suite for every ``DeviceBackend``: what the agent relies on, whoever makes the device.

NVML is loaded by name when pynvml is first used, so this process re-runs the suite for it in a child whose loader
finds the simulated library.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chaos.nvml.build import build
from chaos.nvml.steer import ENVIRONMENT, SimNvml
from gridkeeper.clock import SystemClock
from gridkeeper.ids import NodeId, device_id
from gridkeeper.ports.devices import BackendError, Device, DeviceBackend
from gridkeeper.telemetry import COLUMN, METRICS
from nodeagent.backends.registry import make_backend
from nodeagent.pci import normal_bus_id
from tests.fixtures.faketool import FAKES

IN_CHILD = ENVIRONMENT in os.environ
TRACE = """\
{"device": {"slot": "gpu0", "uuid": "u0", "model": "recorded", "pci_bus_id": "0000:91:00", "memory_mib": 1024}}
{"at_ms": 0, "slot": "gpu0", "metrics": {"temperature": 40}}
{"at_ms": 0, "slot": "gpu1", "metrics": {"temperature": 41}}
{"at_ms": 1, "slot": "gpu1", "event": {"kind": "xid", "code": 48}}
"""


@pytest.fixture(params=["nvml"] if IN_CHILD else ["host", "replay", *FAKES])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeviceBackend]:
    spec = request.param
    if spec == "replay":
        (tmp_path / "trace.jsonl").write_text(TRACE)
        spec = f"replay:{tmp_path / 'trace.jsonl'}"
    elif spec in FAKES:
        spec = f"{spec}:{FAKES[spec](tmp_path / 'tool').path}"
    made = make_backend(spec, SystemClock(), tmp_path)
    yield made
    made.close()


@pytest.mark.skipif(IN_CHILD, reason="this is the child")
def test_nvml_conforms(tmp_path: Path) -> None:
    sim = SimNvml.create(tmp_path / "nvml.state", devices=3)
    for index in range(3):
        sim.add_process(index, 1000 + index)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__],
        cwd=Path(__file__).parents[2], env=os.environ | sim.environment(build(tmp_path / "library")),
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "7 passed" in done.stdout, done.stdout[-4000:]


def test_inventory_is_complete_and_stable(backend: DeviceBackend) -> None:
    devices = backend.open()
    assert devices
    assert len({d.slot for d in devices}) == len(devices)
    for device in devices:
        assert device_id(NodeId("n"), device.slot), "slots are names"
        assert device.uuid and device.vendor
        assert device.memory_mib >= 0
        assert device.pci_bus_id in ("", normal_bus_id(device.pci_bus_id)), "addresses are in the normal form"
    backend.close()
    assert backend.open() == devices, "opened again, the same"


def test_a_sample_has_one_row_per_device_in_the_order_asked(backend: DeviceBackend) -> None:
    devices = backend.open()
    rows = backend.sample(devices)
    assert rows.shape == (len(devices), len(METRICS))
    assert rows.dtype == np.float32
    assert not np.isnan(rows).all(axis=1).any(), "every device that is there says something"
    assert not np.isinf(rows).any()
    backwards = backend.sample(devices[::-1])
    constant = [COLUMN["memory_total"], COLUMN["temperature_slowdown"]]
    assert np.array_equal(backwards[::-1][:, constant], rows[:, constant], equal_nan=True)
    assert backend.sample(()).shape == (0, len(METRICS))


def test_a_device_that_is_not_there_is_a_row_of_nan(backend: DeviceBackend) -> None:
    devices = backend.open()
    stranger = Device("gpu77", "no-such-uuid", "nvidia", "", "", "00000000:fe:00.0", "", 0, "")
    rows = backend.sample((*devices, stranger))
    assert np.isnan(rows[-1]).all()
    assert not np.isnan(rows[0]).all()


def test_a_sample_belongs_to_the_caller(backend: DeviceBackend) -> None:
    devices = backend.open()
    backend.sample(devices)[:] = -1.0
    assert not (backend.sample(devices) == -1.0).any()


def test_processes_name_slots_that_exist(backend: DeviceBackend) -> None:
    devices = backend.open()
    slots = {d.slot for d in devices}
    for pid, slot in backend.processes(devices):
        assert pid > 0
        assert slot in slots
    if backend.name == "nvml":
        assert backend.processes(devices) == ((1000, "gpu0"), (1001, "gpu1"), (1002, "gpu2"))


def test_waiting_ends_by_itself_and_times_are_on_this_hosts_clock(backend: DeviceBackend) -> None:
    clock = SystemClock()
    backend.open()
    for sighting in (*backend.wait_events(50), *backend.wait_events(0)):
        assert 0 < sighting.seen_ms <= clock.mono_ms()
        assert sighting.source == backend.name


def test_sampling_and_waiting_in_two_threads_and_closing_under_both(backend: DeviceBackend) -> None:
    devices = backend.open()
    errors: list[BaseException] = []
    rounds = threading.Semaphore(0)
    stop = threading.Event()

    def repeat(call: str) -> None:
        while not stop.is_set():
            try:
                if call == "sample":
                    backend.sample(devices)
                else:
                    backend.wait_events(5)
            except BackendError:
                assert stop.is_set() or closing.is_set()
            except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
                errors.append(error)
                return
            rounds.release()

    closing = threading.Event()
    threads = [threading.Thread(target=repeat, args=(call,)) for call in ("sample", "wait")]
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert rounds.acquire(timeout=20)
    closing.set()
    backend.close()
    stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not errors
