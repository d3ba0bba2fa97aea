"""The NVIDIA drivers' lines. Pure.

    NVRM: Xid (PCI:0000:91:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
    NVRM: Xid (PCI:0000:91:00): 31, pid=4711, name=python3, Ch 00000008, intr 00000000. MMU Fault: …
    NVRM: Xid (PCI:0000:41:00 GPU-I:05): 43, pid=4711, name=python3, Ch 00000008       (a MIG instance)
    NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6 0x00000000 …)
    NVRM: Xid (PCI:0000:91:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)
    nvidia-nvswitch1: SXid (PCI:0000:06:00.0): 20034, Fatal, Link 48 LTSSM Fault Up
    NVRM: The NVIDIA GPU 0000:91:00.0 (PCI ID: …) installed in this system has fallen off the bus and is not responding

XIDs and SXIDs: NVIDIA, "XID Errors" and "Fabric Manager User Guide". The last form is the resource manager's, and may
be the only word of a lost GPU; syslog shows it as three lines.
"""

from __future__ import annotations

import re

from gridkeeper.records.fleet import EventKind
from nodeagent.kernel.found import ADDRESS, MAX_CODE, Found, pid_in

FALLEN_OFF = 79

_XID = re.compile(rf"NVRM: Xid \(({ADDRESS})(?: (GPU-I:[0-9a-fA-F]{{1,4}}))?\): ([0-9]{{1,10}}),")
_SXID = re.compile(rf"nvidia-nvswitch[0-9]{{0,4}}: SXid \(({ADDRESS})\): ([0-9]{{1,10}}),")
_GPU_AT = re.compile(rf"NVRM: (?:The NVIDIA GPU|GPU at|GPU) ({ADDRESS})")
_OFF = "fallen off the bus"
_UNIT = re.compile(r"\bGPC [0-9]{1,3}, TPC [0-9]{1,3}\b")

_REMEMBERED = 4
"""Lines over which the three lines of one message may be spread."""


def read(text: str) -> Found | None:
    """An XID or SXID line."""
    match = _XID.match(text)
    if match:
        address, instance, digits = match.groups()
        if not 0 < int(digits) <= MAX_CODE:
            return None
        rest = text[match.end() :]
        unit = _UNIT.search(rest) if int(digits) == 13 else None
        subject = instance or (unit.group() if unit else "")
        return Found(EventKind.XID, int(digits), address, subject, pid_in(rest))
    match = _SXID.match(text)
    if match and 0 < int(match.group(2)) <= MAX_CODE:
        return Found(EventKind.SXID, int(match.group(2)), match.group(1))
    return None


class FallenOff:
    """The message without the word Xid, also when it is spread over lines: remembers the address named last."""

    def __init__(self) -> None:
        self._address = ""
        self._age = _REMEMBERED + 1

    def see(self, text: str) -> Found | None:
        """Call it for every line of ``NVRM:``."""
        named = _GPU_AT.match(text)
        if named:
            self._address, self._age = named.group(1), 0
        else:
            self._age += 1
        if _OFF not in text:
            return None
        return Found(EventKind.XID, FALLEN_OFF, self._address if self._age <= _REMEMBERED else "", beside=True)

    def other_line(self) -> None:
        """A line of somebody else's came in between."""
        self._age += 1
