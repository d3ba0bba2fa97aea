"""Protects: what the drivers say in the kernel log is understood in every known form, and no line, however hostile,
raises, grows or is taken for another device's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chaos.nvml.kernel_log import MESSAGES, xid_text
from gridkeeper.ports.devices import Device, Sighting
from gridkeeper.records.fleet import EventKind
from nodeagent.kernel.line import MAX_LINE, LogLine, read_line, seen_ms
from nodeagent.kernel.parse import Parser
from nodeagent.pci import normal_bus_id, slot_for

BUS = "00000000:91:00.0"


def parse(line: LogLine, now_ms: int) -> Sighting | None:
    return Parser().see(line, now_ms)


def test_xid_79_with_unknown_process() -> None:
    line = read_line(
        "3,1234,98765432,-;NVRM: Xid (PCI:0000:91:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    )
    sighting = parse(line, 200_000)
    assert sighting is not None
    assert (sighting.kind, sighting.code, sighting.pid) == (EventKind.XID, 79, 0)
    assert (sighting.pci_bus_id, sighting.slot, sighting.source) == (BUS, "", "kmsg")
    assert sighting.seen_ms == 98_765
    assert sighting.message.startswith("NVRM: Xid (PCI:0000:91:00): 79")
    assert line.sequence == 1234


def test_xid_with_a_pid_in_a_syslog_line() -> None:
    text = xid_text("0000:91:00", 31, pid=4711, name="python3")
    sighting = parse(read_line(f"Nov 20 01:02:03 host kernel: [  123.456789] {text}\n"), 999_999)
    assert sighting is not None
    assert (sighting.code, sighting.pid, sighting.seen_ms) == (31, 4711, 123_456)


def test_pid_in_quotes_and_xid_154_without_a_process() -> None:
    assert parse(LogLine("NVRM: Xid (PCI:0000:91:00): 13, pid='77', name=x, Graphics"), 0).pid == 77  # type: ignore[union-attr]
    sighting = parse(
        LogLine("NVRM: Xid (PCI:0009:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot)"), 5
    )
    assert sighting is not None
    assert (sighting.code, sighting.pid, sighting.pci_bus_id) == (154, 0, "00000009:01:00.0")
    assert "Node Reboot" in sighting.message


def test_sxid_of_a_switch() -> None:
    sighting = parse(
        LogLine("nvidia-nvswitch1: SXid (PCI:0000:06:00.0): 20034, Fatal, Link 48 LTSSM Fault Up"), now_ms=7
    )
    assert sighting is not None
    assert (sighting.kind, sighting.code) == (EventKind.SXID, 20034)
    assert sighting.pci_bus_id == "00000000:06:00.0"


def test_fallen_off_the_bus_without_the_word_xid() -> None:
    one = parse(
        LogLine(
            "NVRM: The NVIDIA GPU 0000:91:00.0 (PCI ID: 10de:2330) installed in this system has "
            "fallen off the bus and is not responding to commands."
        ),
        1,
    )
    assert one is not None
    assert (one.kind, one.code, one.pci_bus_id) == (EventKind.XID, 79, BUS)
    parser = Parser()  # the same message as three lines
    assert parser.see(LogLine("NVRM: The NVIDIA GPU 0000:91:00.0"), 1) is None
    assert parser.see(LogLine("NVRM: (PCI ID: 10de:2330) installed in this system has"), 1) is None
    three = parser.see(LogLine("NVRM: fallen off the bus and is not responding to commands."), 1)
    assert three is not None
    assert (three.code, three.pci_bus_id) == (79, BUS)
    for _ in range(10):
        parser.see(LogLine("something else"), 1)
    late = parser.see(LogLine("NVRM: fallen off the bus and is not responding to commands."), 1)
    assert late is not None
    assert late.pci_bus_id == "", "an address of long ago is not guessed"


def test_every_simulated_line_is_understood() -> None:
    for code in MESSAGES:
        sighting = parse(LogLine(xid_text("0000:91:00", code)), 1)
        assert sighting is not None
        assert sighting.code == code


def test_other_lines_are_none() -> None:
    for text in (
        "",
        "usb 1-1: new high-speed USB device",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  570.124.06",
        "NVRM: Xid (PCI:0000:91:00): , pid=1",
        "NVRM: Xid (PCI:zzzz:91:00): 48, pid=1",
        "NVRM: Xid (PCI:0000:91:00): 99999999999, too large",
        "the bus driver has fallen off the bus",
    ):
        assert parse(LogLine(text), 0) is None, text


def test_escapes_and_continuations_of_a_kmsg_record() -> None:
    line = read_line(b"6,7,8,-;a\\x0ab \xff\n SUBSYSTEM=pci\n DEVICE=+pci:0000:91:00.0\n")
    assert line.text.startswith("a b")
    assert "SUBSYSTEM" not in line.text


def test_a_line_is_never_seen_in_the_future() -> None:
    assert seen_ms(LogLine("x", boot_us=5_000_000), now_ms=4_000) == 4_000
    assert seen_ms(LogLine("x"), now_ms=4_000) == 4_000


PIECES = st.sampled_from(
    ["NVRM: Xid (", "PCI:0000:91:00", "): ", "79", ", pid=", "1" * 30, "SXid (", "fallen off the bus", ";", "3,1,2,-;",
     "[  1.000001]", "\\x0a", "\n", "\0", "é", "NVRM: GPU ", "\udcff", " " * 100, "9" * 5000]
)  # fmt: skip
LINES = st.one_of(st.text(), st.binary(), st.lists(PIECES, max_size=30).map("".join))


@given(LINES, st.integers(0, 1 << 50))
def test_no_line_raises_or_grows(raw: str | bytes, now_ms: int) -> None:
    line = read_line(raw)
    assert len(line.text.encode()) <= MAX_LINE
    for sighting in (parse(line, now_ms), Parser().see(line, now_ms)):
        if sighting is not None:
            assert 0 < sighting.code < 1 << 32
            assert 0 <= sighting.pid < 1 << 31
            assert 0 <= sighting.seen_ms <= now_ms
            assert len(sighting.message.encode()) <= MAX_LINE


def _device(slot: str, bus_id: str) -> Device:
    return Device(slot, slot, "nvidia", "", "", bus_id, "", 0, "")


def test_all_forms_of_an_address_find_the_same_slot() -> None:
    devices = (_device("gpu0", "00000000:11:00.0"), _device("gpu1", "00000000:91:00.0"))
    for form in ("0000:91:00", "00000000:91:00.0", "PCI:0000:91:00", "0000:91:00.0", "00000000:91:00.0".upper()):
        assert slot_for(form, devices) == "gpu1", form
    for other in ("", "0001:91:00", "0000:91:01", "0000:91:00.1", "nonsense"):
        assert slot_for(other, devices) == "", other


@given(st.text())
def test_normal_form_is_stable(text: str) -> None:
    normal = normal_bus_id(text)
    assert normal_bus_id(normal) == normal
