"""Protects: what is wrong with a host is found from the kernel's own files, told when it begins, renewed while it lasts
and ended when the last thing recovers; what cannot be read, or was never in use, is no fault."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridkeeper.catalogue.codes import REPEAT_MS, HostCode
from gridkeeper.records.fleet import EventKind
from nodeagent.backends.tool import Tool
from nodeagent.conditions import MAX_LISTED, Conditions
from nodeagent.hostchecks.check import Check
from nodeagent.hostchecks.clock import PATIENCE_MS, ClockSkew, ClockState, adjtimex
from nodeagent.hostchecks.filesystems import DiskSpace, ReadOnly
from nodeagent.hostchecks.infiniband import DROP_MS, FLAP_DOWN_MS, Infiniband
from nodeagent.hostchecks.memory import Kernel, Memory, OutOfMemory
from nodeagent.hostchecks.nics import Nics
from nodeagent.hostchecks.pressure import Pressure
from nodeagent.hostchecks.smart import Smart, judge
from tests.fixtures.faketool import DATA, FakeTool


class Host:
    """A tree of files, and what a check tells of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_ms = 1_000
        self.seen = Conditions(EventKind.HOST, "host")

    def put(self, path: str, text: str) -> None:
        where = self.root / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)

    def look(self, check: Check, after_ms: int = 1_000) -> list[HostCode]:
        self.now_ms += after_ms
        check.look(self.seen, self.now_ms)
        self.said = self.seen.take()
        assert all(event.slot == "" and event.source == "host" and event.seen_ms == self.now_ms for event in self.said)
        return [HostCode(event.code) for event in self.said]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_memory_errors_are_told_by_growth(host: Host) -> None:
    check = Memory(host.root)
    assert host.look(check) == [], "no EDAC"
    for controller in ("mc0", "mc1"):
        host.put(f"sys/devices/system/edac/mc/{controller}/ce_count", "7\n")
        host.put(f"sys/devices/system/edac/mc/{controller}/ue_count", "0\n")
    assert host.look(check) == [], "what was counted before is the past"
    host.put("sys/devices/system/edac/mc/mc1/ce_count", "107\n")
    assert host.look(check) == [HostCode.MEMORY_CORRECTED]
    assert "100 corrected errors" in host.said[0].message
    host.put("sys/devices/system/edac/mc/mc0/ue_count", "1\n")
    assert host.look(check) == [HostCode.MEMORY_UNCORRECTED]
    host.put("sys/devices/system/edac/mc/mc1/ce_count", "0\n")
    assert host.look(check) == [], "counters that started anew are no errors"


def test_a_kill_is_told_one_look_later(host: Host) -> None:
    check = OutOfMemory(host.root)
    host.put("proc/vmstat", "nr_free_pages 1\noom_kill 3\n")
    assert host.look(check) == []
    host.put("proc/vmstat", "nr_free_pages 1\noom_kill 5\n")
    assert host.look(check) == []
    assert host.look(check) == [HostCode.OOM_KILL]
    assert host.look(check) == []


def test_throttling_and_hung_tasks(host: Host) -> None:
    check = Kernel(host.root)
    host.put("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "0\n")
    host.put("proc/sys/kernel/hung_task_detect_count", "0\n")
    assert host.look(check) == []
    host.put("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "4\n")
    host.put("proc/sys/kernel/hung_task_detect_count", "1\n")
    assert host.look(check) == [HostCode.CPU_THROTTLED, HostCode.HUNG_TASK]


MOUNTS = """\
/dev/sda1 / ext4 {0},relatime 0 0
/dev/sdb1 /data\\040x xfs rw 0 0
/dev/loop0 /snap squashfs ro 0 0
nfs:/x /nfs nfs ro 0 0
"""


def _statvfs(free: float, free_inodes: float = 0.5) -> Callable[[str], os.statvfs_result]:
    def stat(path: str) -> os.statvfs_result:
        assert path in ("/", "/data x")
        one = free if path == "/" else 0.5
        return os.statvfs_result(
            (4096, 4096, 1000, int(one * 1000), int(one * 1000), 1000, 0, int(free_inodes * 1000), 0, 255)
        )

    return stat


def test_a_file_system_that_turns_read_only(host: Host) -> None:
    check = ReadOnly(host.root)
    assert host.look(check) == [], "no /proc/mounts: not known"
    host.put("proc/mounts", MOUNTS.format("rw"))
    assert host.look(check) == []
    host.put("proc/mounts", MOUNTS.format("ro"))
    assert host.look(check) == [HostCode.FILESYSTEM_READ_ONLY]
    assert host.look(check) == []
    assert host.look(check, REPEAT_MS) == [HostCode.FILESYSTEM_READ_ONLY], "renewed while it lasts"
    host.put("proc/mounts", MOUNTS.format("ro").replace("xfs rw", "xfs ro"))
    assert host.look(check) == [HostCode.FILESYSTEM_READ_ONLY], "another one joins"
    host.put("proc/mounts", MOUNTS.format("rw").replace("xfs rw", "xfs ro"))
    assert host.look(check) == [], "one is still read-only"
    host.put("proc/mounts", MOUNTS.format("rw"))
    assert host.look(check) == [HostCode.FILESYSTEM_READ_ONLY_OVER]


def test_one_that_was_read_only_from_the_start_is_meant_to_be(host: Host) -> None:
    host.put("proc/mounts", MOUNTS.format("ro"))
    assert host.look(ReadOnly(host.root)) == []


def test_space_and_inodes_run_out_with_hysteresis(host: Host) -> None:
    host.put("proc/mounts", MOUNTS.format("rw"))
    shares = iter([(0.5, 0.5), (0.04, 0.5), (0.06, 0.5), (0.08, 0.5), (0.5, 0.01)])
    now = [0.5, 0.5]
    check = DiskSpace(host.root, lambda path: _statvfs(*now)(path))
    told = []
    for share in shares:
        now[:] = share
        told.append(host.look(check))
    assert told == [[], [HostCode.DISK_PRESSURE], [], [HostCode.DISK_PRESSURE_OVER], [HostCode.INODE_PRESSURE]]


def _nic(host: Host, name: str, carrier: int, changes: int, speed: int = 100_000, flags: str = "0x1003") -> None:
    for file, value in (("flags", flags), ("type", "1"), ("carrier", carrier), ("carrier_changes", changes),
                        ("speed", speed), ("operstate", "up" if carrier else "down")):  # fmt: skip
        host.put(f"sys/class/net/{name}/{file}", f"{value}\n")
    (host.root / f"sys/class/net/{name}/device").mkdir(exist_ok=True)


def test_links_go_down_and_come_back_as_one_condition(host: Host) -> None:
    check = Nics(host.root)
    host.put("sys/class/net/veth0/carrier", "0\n")  # not hardware
    for name in ("eth0", "eth1"):
        _nic(host, name, 1, 1)
    _nic(host, "eth2", 0, 0)  # never had a carrier: not in use
    assert host.look(check) == []
    _nic(host, "eth0", 0, 2)
    assert host.look(check) == [HostCode.NIC_DOWN]
    assert "eth0" in host.said[0].message
    assert "eth2" not in host.said[0].message
    _nic(host, "eth1", 0, 2)
    assert host.look(check) == [HostCode.NIC_DOWN]
    _nic(host, "eth0", 1, 3)
    assert host.look(check) == [], "one is still down"
    _nic(host, "eth1", 0, 2, flags="0x1002")
    assert host.look(check) == [HostCode.NIC_UP], "set down by a human is no fault"


def test_a_flapping_and_a_slow_link(host: Host) -> None:
    check = Nics(host.root)
    _nic(host, "eth0", 1, 10)
    assert host.look(check) == []
    _nic(host, "eth0", 1, 14)
    assert host.look(check) == []
    _nic(host, "eth0", 1, 16)
    assert host.look(check) == [HostCode.NIC_FLAP]
    _nic(host, "eth0", 1, 16, speed=25_000)
    assert host.look(check, 700_000) == [HostCode.NIC_DEGRADED], "and it flaps no more"
    assert "25000 of 100000" in host.said[0].message


def _port(host: Host, state: str, errors: int = 0) -> None:
    base = "sys/class/infiniband/mlx5_0/ports/1"
    host.put(f"{base}/state", f"{state}\n")
    host.put(f"{base}/phys_state", "5: LinkUp\n" if state.startswith("4") else "3: Disabled\n")
    host.put(f"{base}/counters/symbol_error", f"{errors}\n")


def test_a_port_drops_after_four_minutes_and_flaps_after_three_times(host: Host) -> None:
    check = Infiniband(host.root)
    _port(host, "1: DOWN")
    assert host.look(check, DROP_MS) == [], "never active: not in use"
    _port(host, "4: ACTIVE")
    assert host.look(check) == []
    _port(host, "1: DOWN")
    assert host.look(check) == []
    assert host.look(check, DROP_MS - 1) == []
    assert host.look(check, 1) == [HostCode.PORT_DROP]
    _port(host, "4: ACTIVE")
    assert host.look(check) == [HostCode.PORT_UP]
    for number in range(2):
        _port(host, "1: DOWN")
        assert host.look(check) == []
        _port(host, "4: ACTIVE")
        assert host.look(check, FLAP_DOWN_MS) == ([HostCode.PORT_FLAP] if number else [])
    _port(host, "4: ACTIVE", errors=12)
    assert host.look(check) == [HostCode.PORT_ERRORS]


def test_a_short_blink_is_no_flap(host: Host) -> None:
    check = Infiniband(host.root)
    _port(host, "4: ACTIVE")
    host.look(check)
    for _ in range(10):
        _port(host, "1: DOWN")
        assert host.look(check) == []
        _port(host, "4: ACTIVE")
        assert host.look(check, FLAP_DOWN_MS - 1) == []


def test_a_clock_that_is_off_or_alone(host: Host) -> None:
    state: list[ClockState | None] = [ClockState(True, 0.01, 0.5)]
    check = ClockSkew(lambda: state[0])
    assert host.look(check) == []
    state[0] = ClockState(True, -250.0, 0.5)
    assert host.look(check) == [HostCode.CLOCK_SKEW]
    state[0] = None
    assert host.look(check) == [], "not known: neither over nor worse"
    state[0] = ClockState(True, 1.0, 0.5)
    assert host.look(check) == [HostCode.CLOCK_SKEW_OVER]
    state[0] = ClockState(False, 0.0, 16_000.0)
    assert host.look(check) == []
    assert host.look(check, PATIENCE_MS) == [HostCode.CLOCK_UNSYNCHRONISED]
    state[0] = ClockState(True, 0.0, 1.0)
    assert host.look(check) == [HostCode.CLOCK_UNSYNCHRONISED_OVER]


def test_adjtimex_reads_this_hosts_clock_or_says_it_cannot() -> None:
    state = adjtimex()
    assert state is None or abs(state.offset_ms) <= 1_000, "the kernel's own bound of an offset is half a second"


def test_pressure_begins_high_and_ends_low(host: Host) -> None:
    check = Pressure(host.root)
    assert host.look(check) == [], "a kernel without PSI"
    told = []
    for share in ("9.99", "10.00", "6.00", "4.99"):
        host.put(
            "proc/pressure/memory",
            f"some avg10=50.00 avg60=60.00 avg300=1.00 total=1\nfull avg10=1.00 avg60={share} avg300=1.00 total=1\n",
        )
        told.append(host.look(check))
    assert told == [[], [HostCode.MEMORY_PRESSURE], [], [HostCode.MEMORY_PRESSURE_OVER]]


def test_disks_judge_themselves(host: Host) -> None:
    ok, failing = ((DATA / "host" / name).read_text() for name in ("smart-nvme-ok.json", "smart-ata-failing.json"))
    assert judge(ok) == (False, False)
    assert judge(failing) == (True, False)
    assert judge(ok.replace('"percentage_used": 3', '"percentage_used": 101')) == (False, True)
    assert judge(ok.replace('"available_spare": 100', '"available_spare": 5')) == (False, True)
    assert judge(ok.replace('"critical_warning": 0', '"critical_warning": 4')) == (True, False)
    for unknown in ("", "{}", "[]", ok.replace('"exit_status": 0', '"exit_status": 2'), ok[:100]):
        assert judge(unknown) is None
    tool = FakeTool(host.root / "tool", "smartctl")
    (host.root / "sys/block/sda").mkdir(parents=True)
    (host.root / "sys/block/loop0").mkdir()
    check = Smart(host.root, Tool(str(tool.path), ""))
    assert host.look(check) == [], "no words of it: not known"
    tool.say("--json -a /dev/sda", failing)
    assert host.look(check) == [HostCode.SMART_FAILED]
    assert host.look(check) == []
    missing = Smart(host.root, Tool(str(host.root / "absent"), "install smartmontools"))
    assert host.look(missing) == []


WORDS = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.tuples(st.sets(WORDS), st.integers(0, REPEAT_MS // 2)), max_size=30))
@settings(max_examples=150)
def test_a_condition_of_several_is_told_as_long_as_one_is_in_it(steps: list[tuple[set[str], int]]) -> None:
    """After each step the last thing told says whether anything is in it; while it lasts it is renewed in time."""
    seen = Conditions(EventKind.HOST, "host")
    now, last_told, before = 0, 0, set[str]()
    for subjects, pause in steps:
        now += pause
        seen.lasts_for("x", subjects, 1, "down:", now, over=2)
        codes = [event.code for event in seen.take()]
        assert codes in ([], [1], [2])
        if subjects:
            assert (codes == [1]) == (bool(subjects - before) or now - last_told >= REPEAT_MS)
        else:
            assert codes == ([2] if before else [])
        last_told = now if codes == [1] else last_told
        before = subjects


@given(st.lists(st.lists(st.integers(0, 40).map(str), max_size=20), max_size=10))
def test_listed_things_are_new_once(lists: list[list[str]]) -> None:
    seen = Conditions(EventKind.AMD, "amd")
    known: set[str] | None = None
    for names in lists:
        new = seen.fresh("cper", names)
        assert set(new) == (set() if known is None else set(names) - known)
        known = (known or set()) | set(names)


def test_a_list_without_end_is_bounded() -> None:
    seen = Conditions(EventKind.AMD, "amd")
    for start in range(0, 10 * MAX_LISTED, 1_000):
        seen.fresh("cper", map(str, range(start, start + 1_000)))
        assert len(seen._listed["cper"]) <= MAX_LISTED + 1_000
