"""Protects: AMD, Ascend, Cambricon and T-Head devices are read from what their tools really print (tests/data, see the
README of each), faults become the catalogue's codes on the right device, and a tool that fails, changes or prints
garbage never makes a device look healthy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridkeeper.clock import SystemClock
from gridkeeper.ports.devices import BackendError, Device, DeviceBackend
from gridkeeper.records.fleet import EventKind
from gridkeeper.telemetry import COLUMN
from nodeagent.backends.amd import AmdVendor, ToolSource
from nodeagent.backends.ascend_tables import fault_codes, page, read_info, read_processes
from nodeagent.backends.cambricon import read_table
from nodeagent.backends.registry import make_backend
from nodeagent.backends.tool import Tool
from nodeagent.backends.values import generation, mib, number
from nodeagent.conditions import Conditions
from tests.fixtures.faketool import DATA, FAKES, FakeTool

Opened = tuple[FakeTool, DeviceBackend, tuple[Device, ...]]


def opened(kind: str, tmp_path: Path) -> Opened:
    tool = FAKES[kind](tmp_path / "tool")
    backend = make_backend(f"{kind}:{tool.path}", SystemClock(), tmp_path)
    return tool, backend, backend.open()


@pytest.fixture
def amd(tmp_path: Path) -> Iterator[Opened]:
    yield opened("amd", tmp_path)


@pytest.fixture
def ascend(tmp_path: Path) -> Iterator[Opened]:
    yield opened("ascend", tmp_path)


def values(backend: DeviceBackend, devices: tuple[Device, ...], row: int, *names: str) -> list[float]:
    return [float(backend.sample(devices)[row, COLUMN[name]]) for name in names]


def told(backend: DeviceBackend) -> list[tuple[str, EventKind, int]]:
    return [(event.slot, event.kind, event.code) for event in backend.wait_events(0)]


# -- AMD --


def test_amd_inventory_and_metrics(amd: Opened) -> None:
    _, backend, devices = amd
    assert [(d.slot, d.pci_bus_id, d.model, d.architecture, d.memory_mib) for d in devices] == [
        ("gpu0", "00000000:05:00.0", "AMD Instinct MI300X", "gfx942", 196_592),
        ("gpu1", "00000000:26:00.0", "AMD Instinct MI300X", "gfx942", 196_592),
    ]
    assert (devices[0].vendor, devices[0].driver_version, devices[0].serial) == ("amd", "6.10.5", "0x6F1F0A2B3C4D5E60")
    expected = {
        "temperature": 72, "temperature_memory": 33, "temperature_slowdown": 100, "power": 688, "power_limit": 750,
        "clock_sm": 132, "clock_sm_max": 2_100, "clock_memory": 900, "utilisation": 97, "memory_used": 150_000,
        "memory_total": 196_592, "ecc_corrected": 0, "ecc_uncorrected": 0, "pcie_width": 16, "pcie_width_max": 16,
        "pcie_generation": 5, "pcie_generation_max": 5, "pcie_replays": 0, "processes": 1,
    }  # fmt: skip
    for _ in range(2):  # one list more with each reading: pages, CPER records, then processes
        backend.sample(devices)
    assert values(backend, devices, 1, *expected) == list(expected.values())
    assert np.isnan(backend.sample(devices)[1, COLUMN["retired_pages_dbe"]]), "NVIDIA's limits are not AMD's"
    assert backend.processes(devices) == ((4711, "gpu1"),)
    assert told(backend) == [], "what was there at the start is the past"


def test_amd_errors_become_events_of_their_block_once(amd: Opened) -> None:
    tool, backend, devices = amd
    backend.sample(devices)
    tool.say("metric --json", (DATA / "amd/metric-ecc.json").read_text())
    backend.sample(devices)
    assert told(backend) == [
        ("gpu1", EventKind.AMD, 1001),
        ("gpu1", EventKind.AMD, 1041),
        ("gpu1", EventKind.AMD, 1110),
    ]
    backend.sample(devices)
    assert told(backend) == []


def test_amd_lists_are_read_now_and_then(tmp_path: Path) -> None:
    """A clock that jumps stands in for a minute."""

    class Late(SystemClock):
        extra_ms = 0

        def mono_ms(self) -> int:
            return super().mono_ms() + self.extra_ms

    tool = FAKES["amd"](tmp_path / "tool")
    clock = Late()
    backend = make_backend(f"amd:{tool.path}", clock)
    devices = backend.open()
    for _ in range(2):
        backend.sample(devices)
    tool.say("bad-pages --json", (DATA / "amd/bad-pages-1.json").read_text())
    tool.say("ras", (DATA / "amd/cper.txt").read_text())
    backend.sample(devices)
    assert told(backend) == [], "not each sample"
    clock.extra_ms = 61_000
    for _ in range(2):
        backend.sample(devices)
    events = backend.wait_events(0)
    assert [(e.slot, e.code) for e in events] == [
        ("gpu1", 1100), ("gpu1", 1101), ("gpu1", 1101),
        ("gpu0", 24), ("gpu1", 24), ("gpu1", 29), ("gpu1", 23),
    ]  # fmt: skip
    assert "fatal" in events[3].message
    assert "corrected" in events[6].message
    assert "uncorrected" not in events[6].message


def test_amd_tool_of_rocm_7(amd: Opened) -> None:
    tool, backend, devices = amd
    tool.say("static --asic --bus --vram --driver --limit --json", (DATA / "amd/static-7.json").read_text())
    tool.say("metric --json", (DATA / "amd/metric-7.json").read_text())
    assert backend.open() == devices
    assert values(backend, devices, 0, "power_limit", "temperature") == [750, 41]


def test_amd_card_that_goes_keeps_its_slot_and_its_row_is_unknown(amd: Opened, tmp_path: Path) -> None:
    tool, backend, devices = amd
    rows = json.loads((DATA / "amd/metric.json").read_text())
    tool.say("metric --json", json.dumps([rows[1], {"gpu": 0, "temperature": "N/A", "usage": "N/A"}]))
    sample = backend.sample(devices)
    assert np.isnan(sample[0]).all()
    assert not np.isnan(sample[1]).all()
    static = json.loads((DATA / "amd/static.json").read_text())
    tool.say("static --asic --bus --vram --driver --limit --json", json.dumps(static[1:]))
    again = make_backend(f"amd:{tool.path}", SystemClock(), tmp_path)
    assert again.open() == devices, "the missing one is remembered, the other one keeps its name"


def test_an_error_dates_from_the_reading_before(amd: Opened) -> None:
    """Protects: what the kernel log said seconds ago and the tool shows now is one event of ``dedupe``."""
    tool, backend, devices = amd
    before_ms = SystemClock().mono_ms()
    backend.sample(devices)
    between_ms = SystemClock().mono_ms()
    tool.say("metric --json", (DATA / "amd/metric-ecc.json").read_text())
    backend.sample(devices)
    assert all(before_ms <= event.seen_ms <= between_ms for event in backend.wait_events(0))


# -- Ascend --


def test_ascend_inventory_and_metrics(ascend: Opened) -> None:
    _, backend, devices = ascend
    assert [(d.slot, d.pci_bus_id, d.model, d.architecture, d.memory_mib) for d in devices] == [
        ("npu0", "00000000:01:00.0", "Ascend 910B4", "ascend910b4", 32_768),
        ("npu1", "00000000:c1:00.0", "Ascend 910B4", "ascend910b4", 32_768),
    ]
    assert devices[1].uuid == "42C711D420B037044A10C8D414CC040AD2102000"
    assert devices[0].driver_version == "24.1.rc3"
    names = ("temperature", "power", "utilisation", "memory_used", "memory_total")
    assert values(backend, devices, 0, *names) == [36, pytest.approx(84.8), 37, 2_825, 32_768]
    backend.sample(devices)
    assert values(backend, devices, 0, "ecc_corrected", "ecc_uncorrected") == [5, 1]
    assert backend.processes(devices) == ((67890, "npu0"),)


def test_ascend_fault_codes_are_told_while_they_last(ascend: Opened) -> None:
    tool, backend, devices = ascend
    backend.sample(devices)
    assert told(backend) == []
    tool.say("info", (DATA / "ascend/info-alarm.txt").read_text())
    tool.say("info -t health -i 1 -c 0", (DATA / "ascend/health-alarm.txt").read_text())
    backend.sample(devices)
    assert told(backend) == [("npu0", EventKind.ASCEND, 0x80E01801), ("npu0", EventKind.ASCEND, 0x80C98008)]
    backend.sample(devices)
    assert told(backend) == [], "renewed after minutes, not each sample"
    tool.say("info", (DATA / "ascend/info.txt").read_text())
    tool.say("info -t health -i 1 -c 0", (DATA / "ascend/health-ok.txt").read_text())
    for _ in range(2):
        backend.sample(devices)
    tool.say("info -t health -i 1 -c 0", (DATA / "ascend/health-alarm.txt").read_text())
    for _ in range(2):
        backend.sample(devices)
    assert len(told(backend)) == 2, "a code that comes back, also under OK, is new"


def test_ascend_alarm_without_a_code_is_told_as_such(ascend: Opened) -> None:
    tool, backend, devices = ascend
    tool.say("info", (DATA / "ascend/info-alarm.txt").read_text())
    tool.forget("info -t health -i 1 -c 0")
    backend.sample(devices)
    assert told(backend) == [("npu0", EventKind.ASCEND, 0)]


def test_ascend_tables_of_other_cards() -> None:
    version, chips = read_info((DATA / "ascend/info-a3.txt").read_text())
    assert version == "24.1.rc3.7"
    assert [(c.key, c.pci_bus_id, c.memory_total) for c in chips] == [
        ("0.0", "00000000:9d:00.0", 65_536), ("0.1", "00000000:9f:00.0", 65_536),
    ]  # fmt: skip
    assert "power" not in chips[1].values
    _, chips = read_info((DATA / "ascend/info-310p.txt").read_text())
    assert [(c.key, c.name, c.memory_total, c.values["utilisation"]) for c in chips] == [
        ("32768.0", "310P3", 44_280, 88)
    ]
    assert fault_codes({"Error Code": "NA"}) == {}
    assert fault_codes({"Error Code": "0x8C1F8608,00000000"}) == {0x8C1F8608: "8C1F8608"}


# -- Cambricon, T-Head --


def test_cambricon_inventory_metrics_and_errors(tmp_path: Path) -> None:
    tool, backend, devices = opened("cambricon", tmp_path)
    assert [(d.slot, d.pci_bus_id, d.model, d.memory_mib) for d in devices] == [
        ("mlu0", "00000000:4f:00.0", "MLU370-X8", 20_638), ("mlu1", "00000000:53:00.0", "MLU370-X8", 20_638),
    ]  # fmt: skip
    assert devices[1].uuid.endswith("d1")
    names = ("temperature", "power", "power_limit", "utilisation", "memory_used", "memory_total")
    assert values(backend, devices, 1, *names) == [34, 100, 250, 64, 1_024, 20_638]
    assert backend.processes(devices) == ((12345, "mlu1"),)
    table = (DATA / "cambricon/cnmon-5.10.31.txt").read_text()
    tool.say("", table.replace("| 64%                 0 |", "| 64%                 2 |"))
    backend.sample(devices)
    assert told(backend) == [("mlu1", EventKind.CAMBRICON, 1_000_012)]
    old = read_table((DATA / "cambricon/cnmon-4.20.11.txt").read_text())[1]
    assert [(m.key, m.pci_bus_id, m.ecc_errors, m.values["power"]) for m in old] == [("0", "", None, 30)]


def test_thead_inventory_and_what_its_tool_answers(tmp_path: Path) -> None:
    _, backend, devices = opened("thead", tmp_path)
    assert [(d.slot, d.pci_bus_id, d.model, d.memory_mib, d.driver_version) for d in devices] == [
        ("ppu0", "00000000:0a:00.0", "PPU-ZW810E", 98_304, "1.4.2"),
        ("ppu1", "00000000:0b:00.0", "PPU-ZW810E", 98_304, "1.4.2"),
    ]
    assert values(backend, devices, 1, "memory_used", "memory_total", "temperature") == [65_536, 98_304, 42]
    assert np.isnan(backend.sample(devices)[:, COLUMN["power"]]).all(), "a field that is not answered is not guessed"


# -- a tool that is not as it should be --

MAIN = {
    "amd": "metric --json",
    "ascend": "info",
    "cambricon": "",
    "thead": "--query-gpu=index,name,uuid,pci.bus_id,driver_version,memory.total,memory.used,temperature.gpu "
    "--format=csv,noheader,nounits",
}
GARBAGE = ["", "Segmentation fault\n", "[]", "{}", '{"gpu_data": null}', "\udcff\udcfe" * 100, "[" * 5000, "0, 1\n",
           '[{"gpu": 0}, {"gpu": 1, "power": {"socket_power": {"value": "NaN"}}}]',
           "| npu-smi 1 |\n| CNMON v1 |\n"]  # fmt: skip


@pytest.mark.parametrize("kind", sorted(FAKES))
def test_garbage_is_an_error_never_a_value(kind: str, tmp_path: Path) -> None:
    tool, backend, devices = opened(kind, tmp_path)
    for garbage in GARBAGE:
        tool.say(MAIN[kind], garbage)
        with pytest.raises(BackendError):
            backend.sample(devices)
    tool.forget(MAIN[kind])
    with pytest.raises(BackendError, match="ends with 2: unknown arguments"):
        backend.sample(devices)
    tool.path.unlink()
    with pytest.raises(BackendError, match="is not there; install"):
        backend.open()


def test_a_tool_that_floods_or_never_answers_is_ended(tmp_path: Path) -> None:
    flood = tmp_path / "flood"
    flood.write_text("#!/bin/sh\nexec yes\n")
    flood.chmod(0o755)
    with pytest.raises(BackendError, match="prints more than"):
        Tool(str(flood), "").run()
    tool = FAKES["amd"](tmp_path / "tool")
    tool.hang(True)
    with pytest.raises(BackendError, match="has not answered"):
        Tool(str(tool.path), "", kill_s=0.2).run("metric", "--json")


def test_a_tool_that_complains_without_end_fills_no_disk(tmp_path: Path) -> None:
    tool = tmp_path / "complainer"
    tool.write_text("#!/bin/sh\nhead -c 20000000 /dev/zero | tr '\\0' 'w' >&2\necho last >&2\nexit 3\n")
    tool.chmod(0o755)
    with pytest.raises(BackendError, match=r"ends with 3: w{300}$"):
        Tool(str(tool), "").run()


def test_a_last_word_on_standard_error_is_heard(tmp_path: Path) -> None:
    tool = tmp_path / "brief"
    tool.write_text("#!/bin/sh\necho no driver >&2\nexit 3\n")
    tool.chmod(0o755)
    for _ in range(20):
        with pytest.raises(BackendError, match=r"ends with 3: no driver$"):
            Tool(str(tool), "").run()


def test_rows_of_another_shape_are_not_taken_for_readings(amd: Opened) -> None:
    """What a field holds may change with a version: a list for a table, a table for a number."""
    tool, backend, devices = amd
    for section in ("clock", "temperature", "power", "ecc_blocks", "throttle", "pcie"):
        odds: tuple[object, ...] = ([1], "N/A", {"value": {}}, 7)
        for odd in odds:
            row = {"gpu": 0, "usage": {"gfx_activity": 5}, section: odd}
            tool.say("metric --json", json.dumps({"gpu_data": [row, {"gpu": {"value": [1]}}]}))
            assert values(backend, devices, 0, "utilisation") == [5]
    tool.say("list --json", json.dumps({"gpu_data": [{"gpu": [0], "uuid": "x"}]}))
    assert [device.slot for device in backend.open()] == ["gpu0", "gpu1"]


@pytest.mark.timeout(30)
def test_a_long_list_of_cper_records_is_read_in_a_moment(tmp_path: Path) -> None:
    """A card that reports without end must not look like a hung driver: the time grows as the list does."""
    tool = FAKES["amd"](tmp_path / "tool")
    vendor, seen, row = AmdVendor(ToolSource(Tool(str(tool.path), ""))), Conditions(EventKind.AMD, "amd"), CPER_ROW
    vendor.cards()
    for now_ms, count in ((0, 30_000), (60_000, 30_001)):
        tool.say("ras", "".join(row.format(number) for number in range(count)))
        vendor.read({"0": "gpu0"}, seen, now_ms)  # the pages
        vendor.read({"0": "gpu0"}, seen, now_ms + 1)  # the records
    assert [event.code for event in seen.take()] == [24]


CPER_ROW = "2025/07/10 09:03:09  0       FATAL                fatal-{}.cper      24\n"
TEXT = st.text(alphabet=st.sampled_from("|+-=/ 0123456789ABOKNabcxW%.:\n"), max_size=300)


@given(TEXT, st.sampled_from(["", "| npu-smi 1 AICore(%) Memory-Usage(MB)|\n", "| CNMON v1 | Memory-Usage\n"]))
@settings(max_examples=150)
def test_no_table_raises_anything_but_a_backend_error(text: str, head: str) -> None:
    for read in (read_info, read_table, page):
        try:
            read(head + text)
        except BackendError:
            continue
    read_processes(head + text)


def test_numbers_of_tools() -> None:
    said = ["88.2", {"value": 41, "unit": "W"}, "16 GT/s", "N/A", "-", None, True, [1], 10**400]
    assert [number(v) for v in said] == [88.2, 41, 16, None, None, None, None, None, None]
    assert [generation(v) for v in (2.5, "16 GT/s", {"value": 32, "unit": "GT/s"}, 3)] == [1, 4, 5, None]
    sizes = [(34_359_738_368, "B"), (2, "GB"), (1, "?")]
    assert [mib({"value": size, "unit": unit}) for size, unit in sizes] == [32_768, 2_048, None]
    assert mib(5) == 5
