"""The amdgpu driver's lines. Pure. Wordings: drivers/gpu/drm/amd/amdgpu (amdgpu_ras.c, amdgpu_job.c, amdgpu_device.c,
gmc_v9_0.c, amdgpu_ras_eeprom.c) of Linux 5.15 to 6.14 and ROCm's dkms driver 6.x.

    amdgpu 0000:c3:00.0: amdgpu: 2 uncorrectable hardware errors detected in umc block
    amdgpu 0000:c3:00.0: amdgpu: socket: 4, die: 0, 3 new correctable hardware errors detected in gfx block
    amdgpu 0000:c3:00.0: amdgpu: ring sdma0 timeout, signaled seq=11425, emitted seq=11427
    amdgpu 0000:c3:00.0: amdgpu: GPU reset begin!

What is no fault: a total ("detected in total in umc block" repeats what the line with "new" said), "no uncorrectable
hardware errors", a soft recovery, and counts that are multiples of 1,048,560 (0xFFFF0: a sleeping card's registers read
as all ones; seen as growing "UMC errors" on each query).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from gridkeeper.catalogue.codes import CORRECTED, DEFERRED, UNCORRECTED, AmdBlock, AmdCode, amd_block
from gridkeeper.records.fleet import EventKind
from nodeagent.kernel.found import Found, pid_in

_LINE = re.compile(r"(?:amdgpu ([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]): )?(?:amdgpu: )?")
_ERRORS = re.compile(
    r"\b([0-9]{1,19}) (?:new )?(uncorrectable|correctable|deferred) hardware errors detected in (\w{2,16}) block"
)
_FIRST = {"uncorrectable": UNCORRECTED, "deferred": DEFERRED, "correctable": CORRECTED}
_ALL_ONES = 0xFFFF0


def _blocks() -> dict[str, AmdBlock]:
    return {block.name.lower(): block for block in AmdBlock} | {
        "pcie_bif": AmdBlock.PCIE_BIF, "nbio": AmdBlock.PCIE_BIF, "xgmi_wafl": AmdBlock.XGMI_WAFL,
        "xgmi": AmdBlock.XGMI_WAFL,
    }  # fmt: skip


BLOCKS = _blocks()
"""The drivers' and tools' names of blocks, lower case."""

_WORDS: tuple[tuple[re.Pattern[str], AmdCode], ...] = (
    (re.compile(r"\buncorrectable hardware error\(ERREVENT_ATHUB_INTERRUPT\) detected"), AmdCode.ATHUB_UNCORRECTED),
    (re.compile(r"\bpoison consumption\b"), AmdCode.POISON_CONSUMED),
    (re.compile(r"\b(?:exceeds?|reach(?:es)?|hits?) (?:the )?(?:bad page )?threshold\b"),
     AmdCode.BAD_PAGES_OVER_THRESHOLD),
    (re.compile(r"\bring \S{1,32} timeout, signaled seq="), AmdCode.RING_TIMEOUT),
    (re.compile(r"\bGPU reset begin\b"), AmdCode.GPU_RESET_BEGUN),
    (re.compile(r"\bGPU reset\([0-9]+\) succeeded"), AmdCode.GPU_RESET_DONE),
    (re.compile(r"\bGPU reset\([0-9]+\) failed|\bGPU reset end with ret = -[0-9]+|\bGPU Recovery Failed"),
     AmdCode.GPU_RESET_FAILED),
    (re.compile(r"\[(?:gfxhub|mmhub)[0-9]{0,2}\] (?:no-retry )?page fault \("), AmdCode.PAGE_FAULT),
    (re.compile(r"\bover temperature range\(SW CTF\)|Critical Temperature Fault"), AmdCode.THERMAL_THROTTLE),
    (re.compile(r"\bdevice lost from bus\b"), AmdCode.LOST),
)  # fmt: skip
_HINTS = ("errors detected in", "error(ERR", "poison", "threshold", "timeout, sig", "GPU ", "page fault", "emperature",
          "lost from bus")  # fmt: skip


def read(text: str) -> Found | None:
    """A line of "amdgpu …", or of "[drm:amdgpu_…"."""
    if not any(map(text.__contains__, _HINTS)):  # most of what the driver says
        return None
    head = _LINE.match(text)
    address = head.group(1) if head and head.group(1) else ""
    errors = _ERRORS.search(text)
    if errors:
        count, how, name = errors.groups()
        block = BLOCKS.get(name.lower())
        if block is None or int(count) % _ALL_ONES == 0:  # 0 is a multiple, too
            return None
        return Found(EventKind.AMD, amd_block(block, _FIRST[how]), address)
    if "soft recovered" in text:
        return None
    for pattern, code in _WORDS:
        if pattern.search(text):
            return Found(EventKind.AMD, int(code), address, pid=pid_in(text))
    return None


def read_drm(text: str) -> Found | None:
    """ "[drm:amdgpu_job_timedout [amdgpu]] *ERROR* ring gfx timeout, signaled seq=…": without an address."""
    return read(text) if "amdgpu" in text[:40] else None


READERS: dict[str, Callable[[str], Found | None]] = {"amdgpu": read, "[drm": read_drm}
