"""From a line of the kernel log to what the NVIDIA drivers say in it. Pure; never raises, whatever the line holds.

Known forms:

    NVRM: Xid (PCI:0000:91:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
    NVRM: Xid (PCI:0000:91:00): 31, pid=4711, name=python3, Ch 00000008, intr 00000000. MMU Fault: …
    NVRM: Xid (PCI:0000:91:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)
    nvidia-nvswitch1: SXid (PCI:0000:06:00.0): 20034, Fatal, Link 48 LTSSM Fault Up
    NVRM: The NVIDIA GPU 0000:91:00.0 (PCI ID: …) installed in this system has fallen off the bus and is not responding
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gridkeeper.ports.devices import Sighting
from gridkeeper.records.fleet import EventKind
from nodeagent.pci import normal_bus_id

MAX_LINE = 1024
"""Longer lines are cut before anything looks at them; ``AgentEvent.message`` holds as much."""

SOURCE = "kmsg"
SOURCE_TEXT = "kmsg-text"
"""Source of what the kernel log says of a fault without its number, next to the line that has it: a source of its own,
so that the two lines about one fault do not count as two faults."""

FALLEN_OFF = 79
_MAX_CODE = (1 << 31) - 1
_MAX_PID = (1 << 31) - 1

_ADDRESS = r"(?:PCI:)?[0-9a-fA-F]{4,8}:[0-9a-fA-F]{1,2}:[0-9a-fA-F]{1,2}(?:\.[0-7])?"
_XID = re.compile(rf"NVRM: Xid \(({_ADDRESS})\): ([0-9]{{1,10}})\b")
_SXID = re.compile(rf"SXid \(({_ADDRESS})\): ([0-9]{{1,10}})\b")
_PID = re.compile(r"\bpid='?([0-9]{1,10})\b")
_GPU_AT = re.compile(rf"NVRM: (?:The NVIDIA GPU|GPU|GPU at) ({_ADDRESS})")
_OFF = "fallen off the bus"
_RECORD = re.compile(r"^([0-9]{1,6}),([0-9]{1,20}),([0-9]{1,20}),([^;\n]{0,64});")
_DMESG = re.compile(r"\[\s{0,12}([0-9]{1,9})\.([0-9]{6})\]")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class LogLine:
    """``text`` without its prefix, at most ``MAX_LINE`` characters. ``boot_us``: microseconds since boot, -1 when the
    line does not say. ``sequence``: of /dev/kmsg, -1 elsewhere."""

    text: str
    boot_us: int = -1
    sequence: int = -1


def read_line(raw: bytes | str) -> LogLine:
    """Takes off the /dev/kmsg prefix ("prio,seq,usec,flags;") or finds dmesg's "[seconds.usec]" in a syslog line."""
    if isinstance(raw, bytes):
        raw = raw[: 4 * MAX_LINE].decode("utf-8", "replace")
    raw = raw[: 4 * MAX_LINE]
    record = _RECORD.match(raw)
    if record:
        text = raw[record.end() :].split("\n", 1)[0]  # what follows are the record's key=value lines
        text = _ESCAPE.sub(lambda match: chr(int(match.group(1), 16)), text)
        return LogLine(_clean(text), _bounded(record.group(3)), _bounded(record.group(2)))
    stamp = _DMESG.search(raw[:256])
    boot_us = int(stamp.group(1)) * 1_000_000 + int(stamp.group(2)) if stamp else -1
    return LogLine(_clean(raw.rstrip("\r\n")), boot_us)


def _bounded(digits: str) -> int:
    """A kernel's 64-bit number; -1 for what cannot be one."""
    number = int(digits)
    return number if number < 1 << 63 else -1


def clip(text: str, limit: int = MAX_LINE) -> str:
    """At most ``limit`` bytes of UTF-8, without what does not encode."""
    return text[:limit].encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in clip(text)).strip()


def seen_ms(line: LogLine, now_ms: int) -> int:
    """When the line was written, on this host's boot-time clock: its own stamp, never later than now. printk's clock
    stands still in suspend, so after one a line looks older than it is, never newer."""
    return min(line.boot_us // 1000, now_ms) if line.boot_us >= 0 else now_ms


def parse(line: LogLine, now_ms: int, address: str = "") -> Sighting | None:
    """What the line reports, or None. ``slot`` is left empty: the caller knows which device is at ``pci_bus_id``.
    ``address``: the last one the driver named before this line (see ``Parser``)."""
    text = line.text
    at = seen_ms(line, now_ms)
    if "id (" in text:
        for pattern, kind in ((_XID, EventKind.XID), (_SXID, EventKind.SXID)):
            match = pattern.search(text)
            if match and 0 < int(match.group(2)) <= _MAX_CODE:
                pid = _pid(text[match.end() :]) if kind is EventKind.XID else 0
                return Sighting("", kind, int(match.group(2)), text, SOURCE, at, pid, normal_bus_id(match.group(1)))
    if _OFF in text and "NVRM" in text:
        found = _GPU_AT.search(text)
        bus_id = normal_bus_id(found.group(1)) if found else address
        return Sighting("", EventKind.XID, FALLEN_OFF, text, SOURCE_TEXT, at, 0, bus_id)
    return None


def _pid(text: str) -> int:
    match = _PID.search(text[:128])
    pid = int(match.group(1)) if match else 0
    return pid if pid <= _MAX_PID else 0


class Parser:
    """``parse`` that remembers the address for a message spread over three lines ("The NVIDIA GPU 0000:91:00.0",
    "(PCI ID: …) installed in this system has", "fallen off the bus and is not responding …"), as syslog shows it."""

    def __init__(self) -> None:
        self._address = ""
        self._age = 0

    def see(self, line: LogLine, now_ms: int) -> Sighting | None:
        found = parse(line, now_ms, self._address if self._age <= 4 else "")
        named = _GPU_AT.search(line.text)
        self._age += 1
        if named:
            self._address, self._age = normal_bus_id(named.group(1)), 0
        return found
