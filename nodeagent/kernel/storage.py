"""Disks and file systems. Pure. Wordings: fs/ext4/super.c, fs/xfs/xfs_message.c and xfs_fsops.c, block/blk-core.c,
fs/buffer.c, drivers/nvme/host, fs/btrfs.

    EXT4-fs error (device sda1): ext4_find_entry:1455: inode #2: comm ls: reading directory lblock 0
    EXT4-fs (sda1): Remounting filesystem read-only
    XFS (nvme0n1p1): Corruption of in-memory data detected.  Shutting down filesystem
    blk_update_request: critical medium error, dev sdb, sector 1234 op 0x0:(READ) flags 0x80700 …
    I/O error, dev nvme0n1, sector 17 op 0x1:(WRITE)
    nvme nvme0: I/O 13 QID 2 timeout, reset controller
"""

from __future__ import annotations

import re

from gridkeeper.catalogue.codes import HostCode
from nodeagent.kernel.found import Found, host

_EXT = re.compile(r"EXT[234]-fs (?:error )?\((?:device )?([^)\s]{1,64})\): (.*)")
_XFS = re.compile(r"XFS \(([^)\s]{1,64})\): (.*)")
_XFS_BAD = re.compile(
    r"(?:Corruption|Internal error|[Mm]etadata (?:corruption|CRC error|I/O error)|(?:Filesystem|log) has been shut down"
    r"|Log I/O Error|User initiated shutdown|xfs_do_force_shutdown)"
)
_BTRFS = re.compile(r"BTRFS (?:error|critical) \(device ([^)\s]{1,64})[^)]{0,64}\)")
_BLOCK = re.compile(
    r"(?:blk_update_request: |print_req_error: )?"
    r"(?:critical (?:medium|target|nexus) error|I/O error|protection error), dev (\S{1,64}),"
)
_BUFFER = re.compile(r"Buffer I/O error on dev(?:ice)? ([^\s,]{1,64}),")
_NVME = re.compile(
    r"nvme (nvme[0-9]{1,4}): (?:(?:I/O|I/O tag) .{0,60}timeout, (?:reset|aborting|disable) ?(?:controller)?"
    r"|controller is down; will reset|resetting controller|Removing after probe failure"
    r"|Disabling device after reset failure|Device not ready; aborting)"
)
_MEDIUM = re.compile(r"sd \S{1,24} \[(sd[a-z]{1,4})\] .*Sense Key : (?:Medium|Hardware) Error")


def read_ext4(text: str) -> Found | None:
    match = _EXT.match(text)
    if not match:
        return None
    device, words = match.groups()
    if "Remounting filesystem read-only" in words:
        return host(HostCode.FILESYSTEM_READ_ONLY, device)
    if text.startswith("error", 8) or "Detected aborted journal" in words or "Delayed block allocation failed" in words:
        return host(HostCode.FILESYSTEM_ERROR, device)
    return None


def read_xfs(text: str) -> Found | None:
    match = _XFS.match(text)
    return host(HostCode.FILESYSTEM_ERROR, match.group(1)) if match and _XFS_BAD.search(match.group(2)) else None


def read_btrfs(text: str) -> Found | None:
    match = _BTRFS.match(text)
    if not match:
        return None
    read_only = "forced readonly" in text
    return host(HostCode.FILESYSTEM_READ_ONLY if read_only else HostCode.FILESYSTEM_ERROR, match.group(1))


def read_block(text: str) -> Found | None:
    """The block layer's line; the buffer cache's and the SCSI disk's stand beside it."""
    match = _BLOCK.match(text)
    if match:
        return host(HostCode.IO_ERROR, match.group(1))
    match = _BUFFER.match(text) or _MEDIUM.match(text)
    return host(HostCode.IO_ERROR, match.group(1), beside=True) if match else None


def read_nvme(text: str) -> Found | None:
    match = _NVME.match(text)
    return host(HostCode.NVME_RESET, match.group(1)) if match else None
