"""Numbers of ``EventRecord.code`` that Gridkeeper itself gives out, where a vendor or the kernel names none.

``EventKind.XID``, ``SXID`` and ``ASCEND`` carry the vendor's own number (Ascend's is a 32-bit code, unsigned). What
each number means, and what to do about it, is data in this package. Numbers are never reused.

Whoever reports must know two things. A condition that lasts (a port that is down, a full disk) is reported when it
begins and again at least every ``REPEAT_MS`` while it lasts, because a finding that nothing renews runs out; when it is
over, its ``…_OVER`` code, where there is one, ends it at once. A thing that merely happens (an out-of-memory kill) is
reported once each time. An event about a device that the agent has in its inventory carries that device's slot; all
others are about the node.
"""

from __future__ import annotations

import enum

REPEAT_MS = 300_000


class HostCode(enum.IntEnum):
    """Codes of ``EventKind.HOST``. Put what a reader needs into the message: which DIMM, disk, mount, port, process."""

    # main memory and processors
    MEMORY_UNCORRECTED = 1  # EDAC ue_count grew, or a machine check says "uncorrected"
    MEMORY_CORRECTED = 2  # EDAC ce_count grew (report the growth per look, not each error)
    MACHINE_CHECK_FATAL = 3  # machine check with a corrupt processor context, "fatal", or before a panic
    MACHINE_CHECK_CORRECTED = 4
    CPU_THROTTLED = 5  # thermal_throttle counters grew, or "CPU clock throttled" in the kernel log
    MEMORY_POISONED = 6  # "Memory failure: …": the kernel takes a page out (a process may be killed)

    # kernel
    KERNEL_PANIC = 20
    KERNEL_OOPS = 21  # Oops, "BUG:", general protection fault, unable to handle page fault
    SOFT_LOCKUP = 22
    HARD_LOCKUP = 23
    HUNG_TASK = 24  # "blocked for more than N seconds"
    RCU_STALL = 25
    OOM_KILL = 26  # of the whole host
    OOM_KILL_CGROUP = 27  # within a memory cgroup: the job's own limit

    # storage
    FILESYSTEM_READ_ONLY = 40
    FILESYSTEM_READ_ONLY_OVER = 41
    FILESYSTEM_ERROR = 42  # EXT4-fs error, XFS corruption, metadata I/O error
    IO_ERROR = 43  # block layer I/O error, medium error
    SMART_FAILED = 44  # overall self-assessment failed, or NVMe critical warning
    SMART_WORN = 45  # wear, spare or pre-fail attribute beyond its threshold, still passed
    NVME_RESET = 46  # controller is down or reset, command timeout
    DISK_PRESSURE = 47  # free space of a watched file system below the limit
    DISK_PRESSURE_OVER = 48
    INODE_PRESSURE = 49
    INODE_PRESSURE_OVER = 50

    # network
    NIC_DOWN = 60
    NIC_UP = 61  # ends NIC_DOWN
    NIC_FLAP = 62  # carrier went down and up several times
    NIC_DRIVER_ERROR = 63  # e.g. mlx5 health poll, firmware error, transmit queue timeout
    NIC_DEGRADED = 64  # slower than its maximum, or error counters rise
    PORT_DROP = 65  # InfiniBand or RoCE port down for 4 min or longer
    PORT_UP = 66  # ends PORT_DROP
    PORT_FLAP = 67  # port down for 25 s or longer and back, 3 times
    PORT_ERRORS = 68  # symbol, link-recovery or discard counters rise

    # PCI Express (an accelerator's carries its slot)
    PCIE_FATAL = 80  # AER: uncorrectable, fatal
    PCIE_UNCORRECTED = 81  # AER: uncorrectable, non-fatal
    PCIE_CORRECTED = 82  # AER: corrected

    # time
    CLOCK_SKEW = 100  # offset from its time source above the limit
    CLOCK_SKEW_OVER = 101
    CLOCK_UNSYNCHRONISED = 102
    CLOCK_UNSYNCHRONISED_OVER = 103

    # pressure stall information
    MEMORY_PRESSURE = 120
    MEMORY_PRESSURE_OVER = 121
    CPU_PRESSURE = 122
    CPU_PRESSURE_OVER = 123
    IO_PRESSURE = 124
    IO_PRESSURE_OVER = 125


class AmdCode(enum.IntEnum):
    """Codes of ``EventKind.AMD`` from 1001. Below 1000: the AFID of a CPER record as it is; put the record's severity
    into the message ("fatal", "non-fatal uncorrected" or "corrected"), since the AFID alone does not say it.

    1001 to 1019, 1021 to 1039 and 1041 to 1059 are the ECC counters of one block each, in the order of amdsmi's block
    bits: uncorrectable, deferred, correctable (see ``amd_block``)."""

    UMC_UNCORRECTED = 1001  # HBM
    SDMA_UNCORRECTED = 1002
    GFX_UNCORRECTED = 1003
    MMHUB_UNCORRECTED = 1004
    ATHUB_UNCORRECTED = 1005
    PCIE_BIF_UNCORRECTED = 1006
    HDP_UNCORRECTED = 1007
    XGMI_WAFL_UNCORRECTED = 1008
    DF_UNCORRECTED = 1009
    SMN_UNCORRECTED = 1010
    SEM_UNCORRECTED = 1011
    MP0_UNCORRECTED = 1012
    MP1_UNCORRECTED = 1013
    FUSE_UNCORRECTED = 1014
    MCA_UNCORRECTED = 1015
    VCN_UNCORRECTED = 1016
    JPEG_UNCORRECTED = 1017
    IH_UNCORRECTED = 1018
    MPIO_UNCORRECTED = 1019

    BAD_PAGE_RETIRED = 1100
    BAD_PAGE_PENDING = 1101
    BAD_PAGE_UNRESERVABLE = 1102
    BAD_PAGES_OVER_THRESHOLD = 1103  # the driver tells the firmware that the card is due for return
    THERMAL_THROTTLE = 1110
    POWER_THROTTLE = 1111
    CPER_FATAL = 1120  # a CPER record without a readable AFID
    CPER_UNCORRECTED = 1121
    CPER_CORRECTED = 1122
    RING_TIMEOUT = 1130
    GPU_RESET_BEGUN = 1131
    GPU_RESET_DONE = 1132  # "GPU reset(n) succeeded"
    GPU_RESET_FAILED = 1133
    PAGE_FAULT = 1134
    POISON_CONSUMED = 1135  # the driver says that poisoned data were consumed
    XGMI_LINK_DOWN = 1140
    PCIE_ERROR = 1141  # AER about the card
    LOST = 1150  # no longer on the bus, or the tool says it cannot be reached


class AmdBlock(enum.IntEnum):
    """Blocks with ECC counters, in the order of amdsmi's ``amdsmi_gpu_block_t`` bits."""

    UMC = 0
    SDMA = 1
    GFX = 2
    MMHUB = 3
    ATHUB = 4
    PCIE_BIF = 5
    HDP = 6
    XGMI_WAFL = 7
    DF = 8
    SMN = 9
    SEM = 10
    MP0 = 11
    MP1 = 12
    FUSE = 13
    MCA = 14
    VCN = 15
    JPEG = 16
    IH = 17
    MPIO = 18


UNCORRECTED, DEFERRED, CORRECTED = 1001, 1021, 1041
"""First codes of the three runs of ``AmdBlock``s."""


def amd_block(block: AmdBlock, first: int = UNCORRECTED) -> int:
    """The code of an ECC counter that grew; ``first`` is one of ``UNCORRECTED``, ``DEFERRED``, ``CORRECTED``."""
    return first + int(block)


class CambriconCode(enum.IntEnum):
    """Codes of ``EventKind.CAMBRICON`` from 1,000,001. Below that: the number that CNDev's event carries, as it is."""

    UNHEALTHY = 1_000_001  # CNDev health 0; put its reason into the message
    HEALTHY = 1_000_002  # ends UNHEALTHY
    DRAM_ECC_UNCORRECTED = 1_000_011
    DRAM_ECC_CORRECTED = 1_000_012
    SRAM_ECC_UNCORRECTED = 1_000_013
    SRAM_ECC_CORRECTED = 1_000_014
    SRAM_PARITY = 1_000_015
    PAGE_RETIRED = 1_000_016
    RETIREMENT_PENDING = 1_000_017
    RETIREMENT_FAILED = 1_000_018
    MLULINK_CRC = 1_000_021
    MLULINK_DOWN = 1_000_022
    HEARTBEAT_LOST = 1_000_031
    THROTTLED = 1_000_032


class PpuCode(enum.IntEnum):
    """Codes of ``EventKind.PPU`` (T-Head), of which no public list exists."""

    UNHEALTHY = 1
    HEALTHY = 2  # ends UNHEALTHY
    ECC_UNCORRECTED = 11
    ECC_CORRECTED = 12
    LINK_DOWN = 21
    XID = 1_000_000  # plus the number, if the tool prints an XID-like one
