"""Lines that the NVIDIA driver would leave in the kernel log, written to a file that stands for it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from gridkeeper.clock import SystemClock
from gridkeeper.ports.clock import Clock

_ERROR_PRIORITY = 3  # facility kern, level err: what NVRM uses

MESSAGES: dict[int, str] = {
    13: "Graphics Exception: ESR 0x505730=0x20024",
    31: "Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_0 faulted @ 0x7fc3_c5400000. "
    "Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ",
    45: "Ch 00000010",
    48: "An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer at partition 4, "
    "subpartition 0.",
    63: "Row remapper event: Rows 0x2a1 recorded for remapping",
    64: "Row remapper event: failed to record row 0x2a1 for remapping",
    74: "NVLink: fatal error detected on link 6(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)",
    79: "GPU has fallen off the bus.",
    94: "Contained: SM (0x1). RST: No, D-RST: No",
    95: "Uncontained: FBHUB. RST: Yes, D-RST: No",
    119: "Timeout after 6s of waiting for RPC response from GPU0 GSP! Expected function 76 (GSP_RM_CONTROL).",
    154: "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
}
"""XID -> what follows the process name, in the driver's words."""


def xid_text(bus_id: str, code: int, pid: int | None = None, name: str = "", message: str | None = None) -> str:
    """``NVRM: Xid (PCI:0000:91:00): 79, pid='<unknown>', name=<unknown>, …`` ``bus_id`` without function."""
    who = f"pid={pid}, name={name or 'python3'}" if pid else "pid='<unknown>', name=<unknown>"
    return f"NVRM: Xid (PCI:{bus_id}): {code}, {who}, {MESSAGES.get(code, 'Unknown') if message is None else message}"


@dataclass(slots=True)
class KernelLogFile:
    """Appends lines to ``path``: as /dev/kmsg records ("prio,seq,usec,flags;text"), or as syslog writes them
    (``syslog=True``)."""

    path: Path
    syslog: bool = False
    host: str = "node"
    clock: Clock = field(default_factory=SystemClock)
    _sequence: int = field(default=0)

    def write(self, text: str) -> None:
        """One line, appended whole."""
        boot_us = self.clock.mono_ms() * 1000
        if self.syslog:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(self.clock.wall_ms() // 1000))
            line = f"{stamp} {self.host} kernel: [{boot_us / 1e6:12.6f}] {text}\n"
        else:
            escaped = "".join(c if 32 <= ord(c) < 127 and c != "\\" else _escape(c) for c in text)
            line = f"{_ERROR_PRIORITY},{self._sequence},{boot_us},-;{escaped}\n"
        self._sequence += 1
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def xid(self, bus_id: str, code: int, pid: int | None = None, name: str = "", message: str | None = None) -> None:
        """The driver's line for an XID."""
        self.write(xid_text(bus_id, code, pid, name, message))


def _escape(character: str) -> str:
    """As the kernel does: every byte that is not printable ASCII, and the backslash, as ``\\xNN``."""
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))
