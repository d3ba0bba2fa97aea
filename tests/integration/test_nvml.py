"""Protects: the real ``pynvml`` path. A process that imports pynvml finds the simulated library by name, as it would
find the driver's, and sees what the hardware does: values, events, a lost card, a hang, an old driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

from chaos.nvml import layout
from chaos.nvml.build import BuildError, build
from chaos.nvml.steer import SimNvml, SteerError
from gridkeeper.telemetry import METRICS

ROOT = Path(__file__).parents[2]
EVERY_SLOT = ["gpu0", "gpu1", "gpu2", "gpu3"]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nvml")


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[SimNvml]:
    sim = SimNvml.create(tmp_path / "nvml.state", devices=4, seed=7)
    yield sim
    sim.close()


class Program:
    """A child process that prints JSON lines; ``ask`` reads until a line of a type."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, text=True,
            stdout=subprocess.PIPE, stdin=subprocess.PIPE,
        )  # fmt: skip
        self._lines: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def ask(self, line_type: str, /, **wanted: Any) -> dict[str, Any]:
        """The next line of that type and with those values; others are passed over."""
        (row,) = self.gather({"type": line_type, **wanted})
        return row

    def gather(self, *wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """Lines with those values, one for each, in whatever order they come; others are passed over."""
        found: list[dict[str, Any] | None] = [None] * len(wanted)
        passed = []
        while None in found:
            try:
                row: dict[str, Any] = json.loads(self._lines.get(timeout=20))
            except Empty:
                raise AssertionError(f"not all of {wanted} came but {found}; others: {passed}") from None
            for number, values in enumerate(wanted):
                if found[number] is None and values.items() <= row.items():
                    found[number] = row
                    break
            else:
                passed.append(row)
        return [row for row in found if row is not None]

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def probe(sim: SimNvml, library: Path, *arguments: str) -> Program:
    return Program(["-m", "nodeagent.backends.probe", "nvml", *arguments], sim.environment(library))


def samples(program: Program, count: int) -> dict[str, dict[str, Any]]:
    return {row["slot"]: row for row in (program.ask("sample") for _ in range(count))}


def test_inventory_and_every_metric(sim: SimNvml, libraries: Path) -> None:
    device = sim.device(2)
    device.set(
        temperature=91, temperature_memory=88, power=512_500, clock_sm=1_200, throttle_reasons=0x48, utilisation=97,
        ecc_corrected=5_000, ecc_uncorrected=2, remapped_corrected=3, remapped_uncorrected=4, remap_pending=1,
        remap_failed=1, pcie_generation=3, pcie_width=8, pcie_replays=17, recovery_action=2,
    )  # fmt: skip
    sim.add_process(2, 4711)
    with probe(sim, build(libraries)) as program:
        devices = [program.ask("device") for _ in range(4)]
        rows = samples(program, 4)
        process = program.ask("process")
    assert [d["slot"] for d in devices] == EVERY_SLOT
    assert devices[2]["uuid"] == device.uuid
    assert (devices[2]["vendor"], devices[2]["architecture"], devices[2]["memory_mib"]) == ("nvidia", "hopper", 81_559)
    assert devices[2]["pci_bus_id"] == "00000000:31:00.0"
    assert (process["pid"], process["slot"]) == (4711, "gpu2")
    row = rows["gpu2"]
    expected = {
        "temperature": 91, "temperature_memory": 88, "temperature_slowdown": 87, "power": 512.5, "power_limit": 700,
        "clock_sm": 1_200, "clock_sm_max": 1_980, "clock_memory": 2_619, "throttle_reasons": 0x48, "utilisation": 97,
        "memory_total": 81_559, "ecc_corrected": 5_000, "ecc_uncorrected": 2, "remapped_corrected": 3,
        "remapped_uncorrected": 4, "remap_pending": 1, "remap_failed": 1, "pcie_generation": 3,
        "pcie_generation_max": 5, "pcie_width": 8, "pcie_width_max": 16, "pcie_replays": 17, "processes": 1,
        "recovery_action": 2,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    unknown = {metric.name for metric in METRICS if row[metric.name] is None}
    rates = {"nvlink_tx", "nvlink_rx", "pcie_tx", "pcie_rx"}
    assert unknown - rates == {"retired_pages_sbe", "retired_pages_dbe", "retired_pending"}, "Hopper retires no pages"
    assert rates <= unknown, "one count is no rate"


def test_rates_of_links_are_known_from_the_second_count_on(sim: SimNvml, libraries: Path) -> None:
    """Protects: what moved between two samples is a rate; a counter that fell (the driver was loaded anew) is none."""
    columns = ("nvlink_tx", "nvlink_rx", "pcie_tx", "pcie_rx")
    device = sim.device(2)
    device.set(nvlink_tx=9, nvlink_rx=9, pcie_tx=9, pcie_rx=9)
    with probe(sim, build(libraries), "--samples", "1000000") as program:
        first = program.ask("sample", slot="gpu2")
        assert [first[column] for column in columns] == [None] * 4, "one count is no rate"
        program.ask("sample", slot="gpu2", nvlink_rx=0.0, pcie_rx=0.0)
        for column in columns:
            device.set(**{column: 1_000_000_000})
            while not (program.ask("sample", slot="gpu2")[column] or 0) > 0:
                pass
        device.set(nvlink_tx=5)
        program.ask("sample", slot="gpu2", nvlink_tx=0.0)


def test_links_that_go_down_and_their_errors(sim: SimNvml, libraries: Path) -> None:
    """Protects: a link that was up and is not is told from one that is not wired; errors, fabric and MIG are read."""
    columns = ("nvlink_up", "nvlink_up_max", "nvlink_crc_errors", "nvlink_recoveries", "fabric_state", "mig_enabled")
    device = sim.device(1)
    device.set(nvlink_crc_errors=100, nvlink_recoveries=2, mig_enabled=1)
    bare = sim.device(3)
    bare.set(features=bare.state.features & ~layout.FEATURE_NVLINK)
    with probe(sim, build(libraries), "--samples", "1000000") as program:
        first = program.ask("sample", slot="gpu1")
        assert [first[column] for column in columns] == [18, 18, 100, 2, 3, 1]
        without = program.ask("sample", slot="gpu3")
        assert [without[column] for column in columns] == [None, None, None, None, None, 0]
        device.set(nvlink_up=device.state.nvlink_up & ~0b101, fabric_state=2)
        row = program.ask("sample", slot="gpu1", nvlink_up=16.0)
        assert (row["nvlink_up_max"], row["temperature"]) == (18, first["temperature"])
        program.ask("sample", slot="gpu1", fabric_state=2.0)


def test_before_ampere_pages_retire_and_rows_do_not(tmp_path: Path, libraries: Path) -> None:
    sim = SimNvml.create(tmp_path / "v100", devices=1, model="V100")
    sim.device(0).set(retired_pages_sbe=7, retired_pages_dbe=2, retired_pending=1)
    with probe(sim, build(libraries)) as program:
        assert program.ask("device")["architecture"] == "volta"
        row = program.ask("sample")
    assert (row["retired_pages_sbe"], row["retired_pages_dbe"], row["retired_pending"]) == (7, 2, 1)
    assert row["remap_pending"] is None


def test_an_old_driver_costs_only_what_it_lacks(sim: SimNvml, libraries: Path) -> None:
    """Entry points that are not there are not an error: older names are used, else the metric is not known."""
    missing = (
        "nvmlDeviceGetTemperatureV", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetRemappedRows", "nvmlDeviceGetFieldValues", "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetArchitecture",
    )  # fmt: skip
    sim.device(0).set(temperature=55, throttle_reasons=4)
    with probe(sim, build(libraries, without=missing)) as program:
        assert program.ask("device")["architecture"] == "unknown"
        row = program.ask("sample")
    assert (row["temperature"], row["throttle_reasons"], row["memory_total"]) == (55, 4, 81_559)
    for name in ("remap_pending", "temperature_memory", "recovery_action", "processes"):
        assert row[name] is None, name


def test_xid_events_wake_the_waiter_and_come_in_order(sim: SimNvml, libraries: Path) -> None:
    """The wait blocks in the driver for a minute, and each event ends it: no poll could bring them in time."""
    with probe(sim, build(libraries), "--seconds", "600", "--wait-ms", "60000") as program:
        program.ask("waiting")
        for number in range(20):
            sim.xid(number % 4, 40 + number)
            event = program.ask("event", kind="xid")
            assert (event["slot"], event["code"]) == (f"gpu{number % 4}", 40 + number)
            assert event["pci_bus_id"] == f"00000000:{sim.device(number % 4).bus_id[5:]}.0"
        for number in range(500):
            sim.xid(1, number + 1)
        assert [program.ask("event")["code"] for _ in range(500)] == list(range(1, 501))


def test_a_lost_card_is_a_row_of_nothing_and_the_others_go_on(sim: SimNvml, libraries: Path) -> None:
    with Program(["-c", WATCH], sim.environment(build(libraries)) | {"LIMIT_MS": "5000"}) as program:
        program.ask("latest", known=EVERY_SLOT)
        sim.lose(2)
        program.gather(
            {"type": "event", "kind": "xid", "code": 79, "slot": "gpu2"},
            {"type": "event", "kind": "device_missing", "slot": "gpu2"},
            {"type": "latest", "known": ["gpu0", "gpu1", "gpu3"]},
        )
        sim.xid(3, 48)  # the event wait goes on for the others
        assert program.ask("event", kind="xid")["slot"] == "gpu3"
        sim.restore(2)
        program.gather(
            {"type": "event", "kind": "device_found", "slot": "gpu2"}, {"type": "latest", "known": EVERY_SLOT}
        )
        sim.xid(2, 63)
        assert program.ask("event", kind="xid")["slot"] == "gpu2"


def test_slots_keep_their_names_when_a_card_is_gone(sim: SimNvml, libraries: Path, tmp_path: Path) -> None:
    """A device id names a place: a reboot with one card less must not shift the others into each other's history."""
    library = build(libraries)
    with probe(sim, library, "--state-dir", str(tmp_path)) as program:
        before = {row["slot"]: row["uuid"] for row in (program.ask("device") for _ in range(4))}
        program.process.wait(20)
    sim.device(1).set(present=0)
    with probe(sim, library, "--state-dir", str(tmp_path)) as program:
        after = {row["slot"]: row["uuid"] for row in (program.ask("device") for _ in range(4))}
        rows = samples(program, 4)
    assert after == before, "the missing one stays in the inventory"
    assert rows["gpu1"]["temperature"] is None
    assert rows["gpu2"]["temperature"] is not None


def test_slots_skip_a_card_that_was_lost_before_the_first_start(sim: SimNvml, libraries: Path) -> None:
    sim.lose(1)
    with probe(sim, build(libraries)) as program:
        assert [program.ask("device")["slot"] for _ in range(3)] == ["gpu0", "gpu2", "gpu3"]


def test_a_driver_that_is_not_there_says_what_to_do(sim: SimNvml, libraries: Path, tmp_path: Path) -> None:
    with probe(sim, tmp_path) as program:
        assert "install the NVIDIA driver" in program.ask("error")["message"]
        assert program.process.wait(20) == 1
    sim.fail(18)
    with probe(sim, build(libraries)) as program:
        assert "reboot" in program.ask("error")["message"]


WATCH = """
import asyncio, json, os, sys
from gridkeeper.clock import SystemClock
from nodeagent.backends.registry import make_backend
from nodeagent.sampler import DeviceWatch
import numpy as np

def show(type, **row):
    print(json.dumps({"type": type, **row}), flush=True)

async def main():
    clock = SystemClock()
    emit = lambda s: show("event", kind=s.kind.value, slot=s.slot, code=s.code, message=s.message)
    watch = DeviceWatch(make_backend("nvml", clock), clock, int(os.environ["LIMIT_MS"]), emit, sample_ms=20)
    task = asyncio.create_task(watch.run())
    last = None
    while not task.done():
        latest = watch.latest()
        known = None
        if latest is not None:
            known = [d.slot for d, row in zip(watch.devices, latest[0]) if not np.isnan(row).all()]
        if known != last:
            show("latest", known=known)
            last = known
        await clock.sleep(5)
    task.result()

loop = asyncio.new_event_loop()
loop.call_later(0, lambda: None)
import threading
def stdin():
    for line in sys.stdin:
        if line.strip() == "quit":
            loop.call_soon_threadsafe(loop.stop)
threading.Thread(target=stdin, daemon=True).start()
loop.create_task(main())
loop.run_forever()
show("stopped")
"""
"""A small agent: a DeviceWatch on NVML that prints what it sees, until told to quit."""


@pytest.mark.parametrize("index", [None, 1])
def test_a_hung_driver_is_told_and_hangs_nothing_else(sim: SimNvml, libraries: Path, index: int | None) -> None:
    with Program(["-c", WATCH], sim.environment(build(libraries)) | {"LIMIT_MS": "200"}) as program:
        program.ask("latest", known=EVERY_SLOT)
        sim.hang(True, index)
        hang, _ = program.gather({"type": "event", "kind": "driver_hang"}, {"type": "latest", "known": None})
        if index is not None:
            assert hang["slot"] == f"gpu{index}"
            sim.xid(3, 48)  # one card hangs: the events of the others still come
            assert program.ask("event", kind="xid")["slot"] == "gpu3"
        sim.hang(False, index)
        program.ask("latest", known=EVERY_SLOT)
        sim.hang(True, index)
        program.ask("event", kind="driver_hang")
        program.tell("quit")  # it can still stop while the driver hangs
        program.ask("stopped")
        assert program.process.wait(20) == 0


def test_steering_refuses_what_a_card_does_not_have(sim: SimNvml) -> None:
    with pytest.raises(SteerError, match="fan: a device has no such number"):
        sim.device(0).set(fan=1)
    with pytest.raises(SteerError, match="temperature: -1"):
        sim.device(0).set(temperature=-1)
    with pytest.raises(SteerError, match="device: 9"):
        sim.xid(9, 48)
    with pytest.raises(ValueError, match="code: 70000"):
        sim.xid(0, 70_000)
    with pytest.raises(SteerError, match="model"):
        SimNvml.create(sim.path, model="TPU")
    (sim.path.parent / "short").write_bytes(b"x")
    with pytest.raises(SteerError, match="not a state file"):
        SimNvml.open(sim.path.parent / "short")


def test_several_steering_processes_lose_no_event(sim: SimNvml) -> None:
    """Two handles of one file, as a test and the demo may have."""
    other = SimNvml.open(sim.path)
    threads = [threading.Thread(target=lambda s=s: [s.xid(0, 48) for _ in range(200)]) for s in (sim, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sim.state.head == 400
    assert [sim.state.ring[n] & 0xFFFFFFFF for n in range(1, 401)] == list(range(1, 401))
    other.close()


def test_equal_seeds_make_equal_hosts(tmp_path: Path) -> None:
    one, two, three = (SimNvml.create(tmp_path / n, seed=seed) for n, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.device(0).uuid != three.device(0).uuid
    assert len({d.bus_id for d in SimNvml.create(tmp_path / "d", devices=layout.MAX_DEVICES).devices}) == 64


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="install gcc"):
        build(tmp_path)
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(BuildError, match="could not build"):
        build(tmp_path)
