"""What a line of the kernel log reports, before it has a time and a source's name. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gridkeeper.catalogue.codes import HostCode
from gridkeeper.records.fleet import EventKind

ADDRESS = r"(?:PCI:)?[0-9a-fA-F]{4,8}:[0-9a-fA-F]{1,2}:[0-9a-fA-F]{1,2}(?:\.[0-7])?"
"""A PCI address as the drivers spell it."""

MAX_CODE = (1 << 31) - 1
MAX_PID = (1 << 31) - 1

_PID = re.compile(r"\bpid[= ]'?([0-9]{1,10})(?=[^0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """``address``: of the device that the line is about, as spelled in it; "" for the node. ``subject``: what within
    the slot (disk, interface, DIMM, GPU instance). ``detail``: the line says what a line with the number does not
    (``SOURCE_TEXT``: it stands beside another line about the same fault)."""

    kind: EventKind
    code: int
    address: str = ""
    subject: str = ""
    pid: int = 0
    beside: bool = False


def host(code: HostCode, subject: str = "", address: str = "", pid: int = 0, beside: bool = False) -> Found:
    return Found(EventKind.HOST, int(code), address, subject, pid, beside)


def pid_in(text: str) -> int:
    """The process that the line names; 0 if none."""
    match = _PID.search(text[:256])
    pid = int(match.group(1)) if match else 0
    return pid if pid <= MAX_PID else 0
