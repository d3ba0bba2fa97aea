"""From a line of the kernel log to what it reports. Never raises, whatever the line holds; keeps a few words of state.

Which reader looks at a line is decided by its first word, so a line of noise costs one dictionary look-up whatever the
number of readers (``python -m nodeagent.kernel.speed`` prints it).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from gridkeeper.ports.devices import Sighting
from nodeagent.kernel import amd, faults, machine, network, nvidia, other_vendors, storage
from nodeagent.kernel.found import Found
from nodeagent.kernel.line import LogLine, seen_ms, torn
from nodeagent.pci import normal_bus_id

SOURCE = "kmsg"
SOURCE_TEXT = "kmsg-text"
"""Source of a line that stands beside the one which has the number or the name: a source of its own, so that two lines
about one fault do not count as two faults."""

_WORD = re.compile(r"[A-Za-z_]+-?[A-Za-z_]*|\[[A-Za-z_]*|\{")
_NETWORK = ("mlx", "bnxt_en", "ixgbe", "i", "ice", "igb", "igc", "e", "tg", "be", "ena", "qede", "ionic", "hns", "sfc",
            "eth", "ens", "enp", "eno", "en", "ib", "bond")  # fmt: skip

_READERS: dict[str, Callable[[str], Found | None]] = {
    "CNRM": other_vendors.read_cambricon,
    "[ascend": other_vendors.read_ascend,
    "mce": machine.read_mce,
    "[Hardware": machine.read_mce,
    "EDAC": machine.read_edac,
    "CPU": machine.read_throttle,
    "Kernel": faults.read,
    "kernel": faults.read,
    "BUG": faults.read,
    "Oops": faults.read,
    "Internal": faults.read,
    "Unable": faults.read,
    "general": faults.read,
    "watchdog": faults.read,
    "Watchdog": faults.read,
    "NMI": faults.read,
    "INFO": faults.read,
    "rcu": faults.read,
    "Out": faults.read,
    "Memory": lambda text: faults.read(text) or machine.read_memory_failure(text),
    "EXT": storage.read_ext4,
    "XFS": storage.read_xfs,
    "BTRFS": storage.read_btrfs,
    "blk_update_request": storage.read_block,
    "print_req_error": storage.read_block,
    "I": storage.read_block,
    "critical": storage.read_block,
    "Buffer": storage.read_block,
    "sd": storage.read_block,
    "nvme": storage.read_nvme,
    "NETDEV": network.read_watchdog,
    "nvidia-nvswitch": nvidia.read,
} | amd.READERS


class Parser:
    """Give it every line, in order: some messages are spread over several."""

    def __init__(self) -> None:
        self._fallen_off = nvidia.FallenOff()
        self._cper = machine.Cper()

    def see(self, line: LogLine, now_ms: int) -> Sighting | None:
        """What the line reports, or None. ``slot`` is left empty: the caller knows which device is at
        ``pci_bus_id``. ``now_ms``: boot-time clock."""
        if line.user:
            return None
        found = self._find(line)
        if found is None:
            second = torn(line)
            if second is None:
                return None
            line = second
            found = self._find(line)
            if found is None:
                return None
        source = SOURCE_TEXT if found.beside else SOURCE
        return Sighting(
            "", found.kind, found.code, line.text, source, seen_ms(line, now_ms), found.pid,
            normal_bus_id(found.address), found.subject,
        )  # fmt: skip

    def _find(self, line: LogLine) -> Found | None:
        text = line.text
        word = _WORD.match(text)
        key = word.group() if word else ""
        if key == "NVRM":
            return nvidia.read(text) or self._fallen_off.see(text)
        self._fallen_off.other_line()
        if key == "{":
            return self._cper.see(text)
        reader = _READERS.get(key)
        if reader is not None and (found := reader(text)) is not None:
            return found
        if key in _NETWORK and (found := network.read(text, line.boot_us)) is not None:
            return found
        if "PCIe Bus Error" in text or " AER: " in text:
            return machine.read_pcie(text)
        return None
