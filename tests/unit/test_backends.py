"""Protects: names of slots, the trace format and its errors, and the host's own readings."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.simulate.clock import SimClock
from chaos.simulate.loop import run_virtual
from gridkeeper.catalogue.codes import HostCode
from gridkeeper.clock import SystemClock
from gridkeeper.ports.devices import BackendError, Device
from gridkeeper.records.fleet import EventKind
from gridkeeper.telemetry import COLUMN
from nodeagent.backends.host import HostBackend
from nodeagent.backends.registry import make_backend
from nodeagent.backends.replay import ReplayBackend, read_trace
from nodeagent.conditions import Conditions
from nodeagent.hostchecks.apart import OVERDUE_MS
from nodeagent.inventory import Inventory, assign_slots
from tests.unit.test_host_commands import HandClock


@pytest.mark.parametrize("spec", ["", "cuda", "amd:", "nvml:1", "host:x", "replay", "replay:"])
def test_an_unknown_backend_says_what_is_known(spec: str) -> None:
    with pytest.raises(BackendError, match=r"'nvml', 'amd', 'ascend', 'cambricon', 'thead', 'host', 'replay:<file>'"):
        make_backend(spec, SystemClock())


# -- slots --


def test_first_sight_numbers_by_rank_and_later_sight_keeps_names() -> None:
    assert assign_slots("gpu", ["a", "b", "c"], {}) == {"a": "gpu0", "b": "gpu1", "c": "gpu2"}
    assert assign_slots("gpu", ["b", "c", "d"], {"a": "gpu0", "b": "gpu1", "c": "gpu2"}) == {
        "b": "gpu1", "c": "gpu2", "d": "gpu3",
    }  # fmt: skip


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True), max_size=6))
def test_a_place_never_changes_its_name_and_no_two_share_one(boots: list[list[str]]) -> None:
    known: dict[str, str] = {}
    for addresses in boots:
        slots = assign_slots("gpu", sorted(addresses), known)
        assert set(slots) == set(addresses)
        assert all(known[bus] == slot for bus, slot in slots.items() if bus in known)
        known |= slots
        assert len(set(known.values())) == len(known)


def test_an_inventory_survives_a_restart_and_refuses_damage(tmp_path: Path) -> None:
    device = Device("gpu0", "u", "nvidia", "m", "hopper", "00000000:91:00.0", "s", 7, "1")
    path = tmp_path / "state" / "inventory.json"
    Inventory(path).save((device,))
    assert Inventory(path).load() == (device,)
    for damage in ("{", "[{}]", "[1]", '{"slot": 1}', path.read_text().replace("7", '"7"')):
        path.write_text(damage)
        with pytest.raises(BackendError, match=r"inventory .* delete it to name slots anew"):
            Inventory(path).load()


# -- replay --


def trace(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object but list"),
        ({"slot": "gpu0", "metrics": {}}, "at_ms: None is not an integer"),
        ({"at_ms": 1.5, "slot": "gpu0", "metrics": {}}, "at_ms: 1.5"),
        ({"at_ms": True, "slot": "gpu0", "metrics": {}}, "at_ms: True"),
        ({"at_ms": 1, "slot": "GPU 0", "metrics": {}}, "slot: 'GPU 0' is not a name"),
        ({"at_ms": 1, "slot": 7, "metrics": {}}, "slot: 7 is not a string"),
        ({"at_ms": 1, "slot": "gpu0"}, "give either 'metrics' or 'event'"),
        ({"at_ms": 1, "slot": "gpu0", "metrics": [1]}, "metrics: .* is not a JSON object"),
        ({"at_ms": 1, "slot": "gpu0", "metrics": {"heat": 1}}, "metrics.heat: is not a metric; known are temperature"),
        ({"at_ms": 1, "slot": "gpu0", "metrics": {"power": "hot"}}, "metrics.power: 'hot' is not a number"),
        ('{"at_ms": 1, "slot": "gpu0", "metrics": {"power": Infinity}}', "metrics.power: is no finite"),
        ({"at_ms": 1, "slot": "gpu0", "metrics": {"power": 10**400}}, "metrics.power: is no finite"),
        ({"at_ms": 1, "slot": "gpu0", "event": {"kind": "boom"}}, "event.kind: 'boom' is not one of xid"),
        ({"at_ms": 1, "slot": "gpu0", "event": {"kind": []}}, "event.kind"),
        ({"at_ms": 1, "slot": "gpu0", "event": {"code": 1 << 40}}, "code: 1099511627776"),
        ({"at_ms": 1, "slot": "gpu0", "event": {"message": 1}}, "event.message: 1 is not a string"),
        ({"at_ms": 1, "slot": "gpu0", "event": {"colour": 1}}, "event.colour: is not known here"),
        ({"at_ms": 1, "slot": "gpu0", "metrics": {}, "speed": 2}, "speed: is not known here"),
        ({"device": {"slot": "gpu0", "pci_bus_id": "here"}}, "device.pci_bus_id: 'here'"),
        ({"device": {"slot": "gpu0", "memory_mib": "1"}}, "memory_mib: '1'"),
        ("[" * 50_000, "line 2"),
        ("x" * 70_000, "is longer than"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, line: object, words: str) -> None:
    path = trace(tmp_path, {"at_ms": 0, "slot": "gpu0", "metrics": {"power": 1}}, line)
    with pytest.raises(BackendError, match=words) as caught:
        read_trace(path)
    assert f"{path}, line 2: " in str(caught.value)


def test_other_faults_of_a_trace(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="line 2: at_ms: 1 is before the line above"):
        read_trace(trace(tmp_path, {"at_ms": 2, "slot": "a", "metrics": {}}, {"at_ms": 1, "slot": "a", "metrics": {}}))
    with pytest.raises(BackendError, match="names no device"):
        read_trace(trace(tmp_path))
    with pytest.raises(BackendError, match="cannot be read"):
        read_trace(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(BackendError, match="is not UTF-8"):
        read_trace(tmp_path / "binary")
    with pytest.raises(BackendError, match="speed -1"):
        make_backend(f"replay:{trace(tmp_path, {'at_ms': 0, 'slot': 'a', 'metrics': {}})}@-1", SystemClock())


NAMES = st.sampled_from(["at_ms", "slot", "metrics", "event", "device", "power", "kind", "code"]) | st.text()
VALUES: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
    max_leaves=10,
)


@given(st.text() | VALUES.map(json.dumps))
def test_no_trace_raises_anything_but_a_backend_error(tmp_path_factory: pytest.TempPathFactory, line: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_text(line, encoding="utf-8", errors="surrogatepass")
    try:
        assert read_trace(path).devices
    except BackendError as error:
        assert str(path) in str(error)


def test_a_trace_plays_at_its_speed(tmp_path: Path) -> None:
    path = trace(
        tmp_path,
        {"device": {"slot": "gpu0", "pci_bus_id": "0000:91:00"}},
        {"at_ms": 0, "slot": "gpu0", "metrics": {"temperature": 40, "power": 300}},
        {"at_ms": 1_000, "slot": "gpu0", "metrics": {"temperature": 95}},
        {"at_ms": 2_000, "slot": "gpu0", "event": {"kind": "xid", "code": 48, "pid": 12, "message": "DBE"}},
        {"at_ms": 3_000, "slot": "gpu0", "event": {"kind": "device_missing"}},
        {"at_ms": 4_000, "slot": "gpu0", "event": {"kind": "device_found"}},
        {"at_ms": 4_000, "slot": "gpu0", "metrics": {"power": None}},
    )

    async def play() -> None:
        clock = SimClock(asyncio.get_running_loop(), boot_ms=7_000)
        backend = ReplayBackend(read_trace(path), clock, speed=2.0)
        devices = backend.open()

        def value(name: str) -> float:
            return float(backend.sample(devices)[0, COLUMN[name]])

        assert (value("temperature"), value("power")) == (40, 300)
        assert backend.wait_events(0) == ()
        await clock.sleep(500)
        assert (value("temperature"), value("power")) == (95, 300)
        await clock.sleep(700)
        (xid,) = backend.wait_events(0)
        assert (xid.kind, xid.code, xid.pid, xid.message) == (EventKind.XID, 48, 12, "DBE")
        assert (xid.seen_ms, xid.pci_bus_id) == (8_000, "00000000:91:00.0"), "when it was due, not when it was asked"
        assert backend.wait_events(0) == ()
        await clock.sleep(400)
        assert np.isnan(backend.sample(devices)).all()
        await clock.sleep(10_000)
        assert value("temperature") == 95
        assert math.isnan(value("power"))
        assert [e.kind for e in backend.wait_events(0)] == [EventKind.DEVICE_MISSING, EventKind.DEVICE_FOUND]
        backend.close()
        backend.open()
        assert backend.wait_events(0) == (), "opened again, nothing is told twice"

    run_virtual(play())


# -- host --


def test_the_host_tells_of_itself_and_of_its_memory_errors(tmp_path: Path) -> None:
    controller = tmp_path / "sys/devices/system/edac/mc/mc0"
    controller.mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("abc123\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name : Test CPU 9000\n")
    (controller / "ce_count").write_text("5\n")
    (controller / "ue_count").write_text("0\n")
    backend = HostBackend(SystemClock(), root=tmp_path)
    devices = backend.open()
    assert (devices[0].uuid, devices[0].model, devices[0].vendor) == ("abc123", "Test CPU 9000", "host")
    row = backend.sample(devices)[0]
    assert row[COLUMN["ecc_corrected"]] == 5
    assert 0 < row[COLUMN["memory_used"]] < row[COLUMN["memory_total"]]
    assert 0 <= row[COLUMN["utilisation"]] <= 100
    assert backend.wait_events(0) == ()
    (controller / "ue_count").write_text("2\n")
    backend.sample(devices)
    (event,) = backend.wait_events(0)
    assert (event.kind, event.code, event.slot) == (EventKind.HOST, HostCode.MEMORY_UNCORRECTED, "")
    assert "2 uncorrectable errors" in event.message
    backend.sample(devices)
    assert backend.wait_events(0) == (), "told once"


class _Check:
    """Tells of each look, unless it ``hangs`` (until ``free`` is set)."""

    period_ms = 0

    def __init__(self, code: HostCode, hangs: bool = False) -> None:
        self._code = code
        self._hangs = hangs
        self.free = threading.Event()
        self.looks = 0

    def look(self, seen: Conditions, now_ms: int) -> None:
        self.looks += 1
        if self._hangs:
            self.free.wait(60)
        seen.say("", int(self._code), "x", now_ms)


def test_a_check_that_hangs_blinds_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Protects: a disk that answers neither smartctl nor statvfs hides no other fault of its host, is asked once, is
    said once, and tells when it is back."""
    clock = HandClock()
    hung, well = _Check(HostCode.DISK_PRESSURE, hangs=True), _Check(HostCode.NIC_DOWN)
    backend = HostBackend(clock, checks=(hung, well))
    devices = backend.open()
    for _ in range(3):
        clock.move(OVERDUE_MS)
        backend.sample(devices)
        assert [event.code for event in backend.wait_events(5_000)] == [HostCode.NIC_DOWN]
    assert hung.looks == 1 and not hung.free.is_set()
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["The check _Check has not come back for 30 s"]
    hung.free.set()
    assert [event.code for event in backend.wait_events(5_000)] == [HostCode.DISK_PRESSURE]
    backend.close()


def test_a_check_that_fails_is_the_backends_failure() -> None:
    """Protects: an error in a check's thread is not lost with it."""

    class Broken(_Check):
        def look(self, seen: Conditions, now_ms: int) -> None:
            raise ValueError("a number of another shape")

    backend = HostBackend(HandClock(), checks=(Broken(HostCode.NIC_DOWN),))
    devices = backend.open()
    with pytest.raises(ValueError, match="another shape"):
        for _ in range(2):
            backend.sample(devices)
    backend.close()
