"""Machine checks, main memory and PCI Express. Pure. Wordings: arch/x86/kernel/cpu/mce/core.c and mce/amd.c,
drivers/edac/edac_mc.c, drivers/firmware/efi/cper.c, mm/memory-failure.c, drivers/pci/pcie/aer.c, therm_throt.c.

    mce: [Hardware Error]: CPU 12: Machine Check: 0 Bank 7: cc00008000010090
    EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0 (channel:1 slot:0 page:0x… …)
    {1}[Hardware Error]: event severity: recoverable              (CPER from firmware: one report is many lines)
    pcieport 0000:00:1c.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)

Bits of a machine check's status: Intel SDM vol. 3B, 16.3.2.2 (UC 61, PCC 57) and 16.9.2 (memory controller errors
0000 0000 1MMM CCCC); of its global status, MCIP 2 in the digit after "Machine Check Exception".
"""

from __future__ import annotations

import re

from gridkeeper.catalogue.codes import HostCode
from nodeagent.kernel.found import ADDRESS, Found, host

_UC, _PCC, _VALID = 1 << 61, 1 << 57, 1 << 63

_CHECK = re.compile(
    r"(?:mce: )?\[Hardware Error\]: CPU ([0-9]{1,5}): Machine Check(?: Exception)?: ([0-9a-f]{1,16}) "
    r"Bank ([0-9]{1,4}): ([0-9a-f]{1,16})\b"
)
_AMD_VERDICT = re.compile(r"\[Hardware Error\]: (Corrected|Deferred|Uncorrected|System Fatal|Fatal)\b[^:]{0,60}error\b")
_EDAC = re.compile(r"EDAC (\S{1,32}): ([0-9]{1,10}) (CE|UE)\b(?:.*? on (\S{1,80}))?")
_CPER = re.compile(r"\{([0-9]{1,10})\}\[Hardware Error\]:\s+(.*)")
_FAILURE = re.compile(r"Memory failure: (0x[0-9a-f]{1,16}): ")
_PCIE = re.compile(
    rf"(?:\S{{1,40}} )?({ADDRESS}): (?:AER: )?PCIe Bus Error: severity="
    r"(Corrected|Uncorrect\w+ \((?:Non-)?Fatal\))"
)
_AER = re.compile(
    rf"pcieport {ADDRESS}: AER: (?:Multiple )?(Corrected|Uncorrect\w+ \((?:Non-)?Fatal\)) error (?:message )?"
    rf"received(?:: | from )({ADDRESS})"
)
_PER_CPU = re.compile(r"CPU([0-9]{1,5}): .*clock throttled")


def read_mce(text: str) -> Found | None:
    """A line of "mce: …" or "[Hardware Error]: …"."""
    check = _CHECK.match(text)
    if check:
        return host(_judge(int(check.group(4), 16)), f"CPU {check.group(1)} bank {check.group(3)}")
    if text.startswith("mce: Uncorrected hardware memory error"):
        return host(HostCode.MEMORY_UNCORRECTED, beside=True)
    if text.startswith("mce: CPU") and _PER_CPU.search(text):
        return host(HostCode.CPU_THROTTLED)
    if text.endswith("Machine check events logged"):
        return host(HostCode.MACHINE_CHECK_CORRECTED, beside=True)
    verdict = _AMD_VERDICT.match(text)
    if verdict:
        fatal, corrected = verdict.group(1) in ("System Fatal", "Fatal"), verdict.group(1) == "Corrected"
        code = HostCode.MACHINE_CHECK_CORRECTED if corrected else HostCode.MEMORY_UNCORRECTED
        return host(HostCode.MACHINE_CHECK_FATAL if fatal else code, beside=True)
    return None


def _judge(status: int) -> HostCode:
    if not status & _VALID or not status & _UC:
        return HostCode.MEMORY_CORRECTED if status & 0xEF80 == 0x0080 else HostCode.MACHINE_CHECK_CORRECTED
    return HostCode.MACHINE_CHECK_FATAL if status & _PCC else HostCode.MEMORY_UNCORRECTED


def read_edac(text: str) -> Found | None:
    match = _EDAC.match(text)
    if not match or int(match.group(2)) == 0:
        return None
    code = HostCode.MEMORY_CORRECTED if match.group(3) == "CE" else HostCode.MEMORY_UNCORRECTED
    return host(code, match.group(4) or match.group(1))


def read_memory_failure(text: str) -> Found | None:
    match = _FAILURE.match(text)
    return host(HostCode.MEMORY_POISONED, match.group(1)) if match else None


def read_throttle(text: str) -> Found | None:
    """ "CPU0: Core temperature above threshold, cpu clock throttled (total events = 1)"."""
    return host(HostCode.CPU_THROTTLED) if _PER_CPU.match(text) else None


def read_pcie(text: str) -> Found | None:
    """A line with "PCIe Bus Error" or "AER:", of whatever driver. The port's summary stands beside the device's."""
    match = _PCIE.match(text)
    if match:
        return host(_pcie(match.group(2)), address=match.group(1))
    match = _AER.match(text)
    if match:
        return host(_pcie(match.group(1)), address=match.group(2), beside=True)
    return None


def _pcie(severity: str) -> HostCode:
    if severity.startswith("Corrected"):
        return HostCode.PCIE_CORRECTED
    return HostCode.PCIE_UNCORRECTED if "Non-Fatal" in severity else HostCode.PCIE_FATAL


class Cper:
    """A firmware's error report, line by line: severity first, then a section's type, for PCIe its device."""

    def __init__(self) -> None:
        self._report = ""
        self._severity = ""
        self._pcie = False

    def see(self, text: str) -> Found | None:
        match = _CPER.match(text)
        if not match:
            return None
        report, words = match.groups()
        if report != self._report:
            self._report, self._severity, self._pcie = report, "", False
        name, _, value = words.partition(": ")
        if name == "event severity":
            self._severity = value
        elif name == "section_type" and self._severity:
            self._pcie = value == "PCIe error"
            if value == "memory error":
                return self._host(HostCode.MEMORY_CORRECTED, HostCode.MEMORY_UNCORRECTED, HostCode.MEMORY_UNCORRECTED)
            if "processor error" in value:
                return self._host(
                    HostCode.MACHINE_CHECK_CORRECTED, HostCode.MEMORY_UNCORRECTED, HostCode.MACHINE_CHECK_FATAL
                )
        elif name == "device_id" and self._pcie:
            self._pcie = False
            return self._host(HostCode.PCIE_CORRECTED, HostCode.PCIE_UNCORRECTED, HostCode.PCIE_FATAL, value)
        return None

    def _host(self, corrected: HostCode, recoverable: HostCode, fatal: HostCode, address: str = "") -> Found | None:
        code = {"corrected": corrected, "recoverable": recoverable, "fatal": fatal}.get(self._severity)
        return None if code is None else host(code, address=address)
