"""One line of the kernel log, whoever wrote it to wherever: its text, its time, and whether it is the kernel's own.

A program can write to the kernel log too (``echo … > /dev/kmsg``, ``logger``), in the drivers' words if it likes. In a
/dev/kmsg record the kernel marks that: its own records alone have facility 0 (devkmsg_write in kernel/printk/printk.c
gives every other writer a facility that is not). In a syslog file only the tag tells, which ``logger -t kernel`` can
forge: prefer /dev/kmsg where users are not trusted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_LINE = 1024
"""Longer lines are cut before anything looks at them; ``AgentEvent.message`` holds as much."""

_RECORD = re.compile(r"([0-9]{1,6}),([0-9]{1,20}),([0-9]{1,20}),([^;\n]{0,64});")
_STAMP = re.compile(r"\[\s{0,12}([0-9]{1,9})\.([0-9]{6})\](?:\[\s{0,8}[TC][0-9]{1,8}\])?\s?")
_DATE = r"(?:[A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.+Z-]{8,40})"
_SYSLOG = re.compile(rf"(?:<[0-9]{{1,3}}>)?{_DATE} \S{{1,255}} ([^\s:\[]{{1,64}})(?:\[[0-9]{{1,10}}\])?:\s?")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class LogLine:
    """``text`` without its prefix, at most ``MAX_LINE`` characters. ``boot_us``: microseconds since boot, -1 when the
    line does not say. ``sequence``: of /dev/kmsg, -1 elsewhere. ``user``: a program wrote it, not the kernel."""

    text: str
    boot_us: int = -1
    sequence: int = -1
    user: bool = False


def read_line(raw: bytes | str) -> LogLine:
    """Takes off the /dev/kmsg prefix ("prio,seq,usec,flags;"), or syslog's ("date host kernel: ") and dmesg's
    ("[seconds.usec] ")."""
    if isinstance(raw, bytes):
        raw = raw[: 4 * MAX_LINE].decode("utf-8", "replace")
    raw = raw[: 4 * MAX_LINE]
    record = _RECORD.match(raw)
    if record:
        text = raw[record.end() :].split("\n", 1)[0]  # what follows are the record's key=value lines
        if "\\" in text:
            text = _ESCAPE.sub(lambda match: chr(int(match.group(1), 16)), text)
        user = int(record.group(1)) >> 3 != 0
        return LogLine(_clean(text), _bounded(record.group(3)), _bounded(record.group(2)), user)
    user = False
    syslog = _SYSLOG.match(raw)
    if syslog:
        user = syslog.group(1) != "kernel"
        raw = raw[syslog.end() :]
    stamp = _STAMP.match(raw)
    boot_us = int(stamp.group(1)) * 1_000_000 + int(stamp.group(2)) if stamp else -1
    return LogLine(_clean(raw[stamp.end() :] if stamp else raw), boot_us, -1, user)


def torn(line: LogLine) -> LogLine | None:
    """The second of two lines that a crash or a slow console left in one ("usb 1-1: new h[   12.3] NVRM: …"). Only in
    files: a /dev/kmsg record is never torn, and a stamp inside one is somebody's text."""
    if line.sequence >= 0 or "] " not in line.text:
        return None
    stamp = _STAMP.search(line.text, 1)
    if stamp is None:
        return None
    boot_us = int(stamp.group(1)) * 1_000_000 + int(stamp.group(2))
    return LogLine(line.text[stamp.end() :], boot_us, -1, line.user)


def seen_ms(line: LogLine, now_ms: int) -> int:
    """When the line was written, on this host's boot-time clock: its own stamp, never later than now. printk's clock
    stands still in suspend, so after one a line looks older than it is, never newer."""
    return min(line.boot_us // 1000, now_ms) if line.boot_us >= 0 else now_ms


def clip(text: str, limit: int = MAX_LINE) -> str:
    """At most ``limit`` bytes of UTF-8, without what does not encode."""
    return text[:limit].encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def _bounded(digits: str) -> int:
    """A kernel's 64-bit number; -1 for what cannot be one."""
    number = int(digits)
    return number if number < 1 << 63 else -1


def _clean(text: str) -> str:
    text = text.rstrip("\r\n")
    if text.isascii() and text.isprintable() and len(text) <= MAX_LINE:  # nearly all lines: no copy
        return text.strip()
    return "".join(c if c.isprintable() else " " for c in clip(text)).strip()
