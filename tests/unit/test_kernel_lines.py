"""Protects: real lines of every driver's log are classified with the right kind, code, device, process and subject, and
near-misses of all of them cause nothing. The expected classification stands beside each line in tests/data/kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridkeeper.ports.devices import Sighting
from nodeagent.kernel.line import MAX_LINE, LogLine, read_line
from nodeagent.kernel.parse import Parser
from nodeagent.kernel.speed import NOISE

DATA = Path(__file__).parents[1] / "data" / "kernel"
NOW_MS = 1 << 50


def _lines() -> Iterator[tuple[str, str, str]]:
    for path in sorted(DATA.glob("*.log")):
        for number, row in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if row and not row.startswith("#"):
                expected, _, line = row.partition(" | ")
                yield f"{path.name}:{number}", expected.removesuffix(" |"), line


LINES = list(_lines())


def _told(sighting: Sighting | None) -> str:
    if sighting is None:
        return "none"
    return (
        f"{sighting.kind.value} {sighting.code} {sighting.pci_bus_id or '-'} {sighting.pid} {sighting.subject or '-'}"
    )


@pytest.mark.parametrize(("where", "expected", "line"), LINES, ids=[where for where, _, _ in LINES])
def test_each_real_line_is_classified(where: str, expected: str, line: str) -> None:
    assert _told(Parser().see(read_line(line), NOW_MS)) == expected, line


def test_the_data_hold_every_family() -> None:
    told = {expected.split()[0] for _, expected, _ in LINES}
    assert told == {"xid", "sxid", "amd", "ascend", "cambricon", "host", "none"}
    assert len(LINES) > 130


def test_all_in_one_stream_each_line_still_says_the_same() -> None:
    """State kept for messages over several lines lends nothing to other lines."""
    parser = Parser()
    for where, expected, line in LINES:
        assert _told(parser.see(read_line(line), NOW_MS)) == expected, where


def test_a_flood_of_noise_and_bytes_that_are_no_text_hides_nothing() -> None:
    parser = Parser()
    told = []
    for number, (_, _, line) in enumerate(LINES):
        noise = [read_line(f"6,{number},{number},-;{text}\n") for text in NOISE]
        noise += [read_line(b"\xff\xfe\x00" * 50 + line[:20].encode()), read_line(b"6,1,1,-;\xc3\x28 NVRM: Xid (")]
        for _ in range(10):
            assert all(parser.see(other, NOW_MS) is None for other in noise)
        told.append(_told(parser.see(read_line(line), NOW_MS)))
    assert told == [expected for _, expected, _ in LINES]


def test_lines_that_are_cut_off_report_nothing_else() -> None:
    """A torn line gives what the whole one gives, or nothing: never another kind or device."""
    for where, _, line in LINES:
        whole = Parser().see(read_line(line), NOW_MS)
        for end in range(len(line)):
            cut = Parser().see(read_line(line[:end]), NOW_MS)
            if cut is None:
                continue
            assert whole is not None, (where, line[:end])
            assert cut.kind is whole.kind, (where, line[:end])
            assert cut.pci_bus_id in ("", whole.pci_bus_id), (where, line[:end])


def test_a_firmware_report_over_many_lines() -> None:
    def told(*lines: str) -> list[str]:
        parser = Parser()
        return [_told(s) for line in lines if (s := parser.see(LogLine(line), 1)) is not None]

    memory = ("{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 8",
              "{1}[Hardware Error]: event severity: recoverable",
              "{1}[Hardware Error]:  Error 0, type: recoverable",
              "{1}[Hardware Error]:   section_type: memory error",
              "{1}[Hardware Error]:   physical_address: 0x0000000040fa6000")  # fmt: skip
    assert told(*memory) == ["host 1 - 0 -"]
    pcie = ("{2}[Hardware Error]: event severity: fatal", "{2}[Hardware Error]:   section_type: PCIe error",
            "{2}[Hardware Error]:   port_type: 0, PCIe end point", "{2}[Hardware Error]:   device_id: 0000:91:00.0",
            "{2}[Hardware Error]:   device_id: 0000:92:00.0")  # fmt: skip
    assert told(*pcie) == ["host 80 00000000:91:00.0 0 -"]
    assert told("{3}[Hardware Error]: event severity: info", "{3}[Hardware Error]:   section_type: memory error") == []
    assert told("{4}[Hardware Error]: event severity: fatal", "{5}[Hardware Error]:   section_type: memory error") == []


PIECES = st.sampled_from([piece for _, _, line in LINES for piece in (line, line[: len(line) // 2], line[-20:])])
RAW = st.lists(PIECES | st.text(max_size=8), max_size=4).map("".join) | st.binary(max_size=200)


@given(st.lists(RAW, max_size=6), st.integers(0, 1 << 50))
@settings(max_examples=150)
def test_no_stream_of_spliced_lines_raises_or_grows(stream: list[str | bytes], now_ms: int) -> None:
    parser = Parser()
    for raw in stream:
        line = read_line(raw)
        assert len(line.text.encode()) <= MAX_LINE
        sighting = parser.see(line, now_ms)
        if sighting is not None:
            assert not line.user
            assert 0 < sighting.code < 1 << 32
            assert 0 <= sighting.pid < 1 << 31
            assert 0 <= sighting.seen_ms <= now_ms
            assert len(sighting.message.encode()) <= MAX_LINE
            assert len(sighting.subject) <= 100
