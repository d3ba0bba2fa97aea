"""Local file systems: one that turned read-only, space and inodes that run out.

Only what is on a block device ("/dev/…") is looked at: asking a network file system can block for ever. One that was
read-only from the first look on is meant to be so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from gridkeeper.catalogue.codes import HostCode
from nodeagent.conditions import Conditions
from nodeagent.hostchecks.check import text

FREE_LEAST = 0.05
"""Below this share free it is pressure (kubelet evicts at 0.10 of the image and 0.05 of inodes by default)…"""
FREE_AGAIN = 0.07
"""… and it is over above this one."""

_READ_ONLY_BY_NATURE = frozenset({"squashfs", "iso9660", "udf", "erofs", "cramfs"})
_ESCAPES = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}


class ReadOnly:
    """By the kernel's table alone, which is there also while a disk hangs."""

    period_ms = 10_000

    def __init__(self, root: Path) -> None:
        self._root = root
        self._writable: set[str] = set()  # mount points seen writable

    def look(self, seen: Conditions, now_ms: int) -> None:
        mounts = _mounts(self._root)
        if not mounts:
            return  # not known
        read_only = _read_only(mounts)
        self._writable = (self._writable | (mounts.keys() - read_only)) & mounts.keys()
        turned = {where for where in read_only if where in self._writable}
        seen.lasts_for(
            "read-only", turned, HostCode.FILESYSTEM_READ_ONLY, "file systems turned read-only", now_ms,
            over=HostCode.FILESYSTEM_READ_ONLY_OVER,
        )  # fmt: skip


class DiskSpace:
    """Asks the file systems, and hangs with one that does."""

    period_ms = 10_000

    def __init__(self, root: Path, statvfs: Callable[[str], os.statvfs_result] = os.statvfs) -> None:
        self._root = root
        self._statvfs = statvfs
        self._full: dict[str, set[str]] = {"space": set(), "inodes": set()}

    def look(self, seen: Conditions, now_ms: int) -> None:
        mounts = _mounts(self._root)
        if not mounts:
            return  # not known
        for name, code, over, words in (
            ("space", HostCode.DISK_PRESSURE, HostCode.DISK_PRESSURE_OVER, "nearly full"),
            ("inodes", HostCode.INODE_PRESSURE, HostCode.INODE_PRESSURE_OVER, "nearly out of inodes"),
        ):
            self._full[name] = self._short(name, mounts.keys() - _read_only(mounts))
            seen.lasts_for(name, self._full[name], code, f"file systems {words}", now_ms, over=over)

    def _short(self, name: str, where: set[str]) -> set[str]:
        short = set()
        for point in where:
            try:
                stat = self._statvfs(point)
            except OSError:
                if point in self._full[name]:
                    short.add(point)  # not known: as it was
                continue
            free, size = (stat.f_bavail, stat.f_blocks) if name == "space" else (stat.f_favail, stat.f_files)
            least = FREE_AGAIN if point in self._full[name] else FREE_LEAST
            if size > 0 and free / size < least:  # file systems without fixed inodes say 0
                short.add(point)
        return short


def _read_only(mounts: Mapping[str, frozenset[str]]) -> set[str]:
    return {where for where, options in mounts.items() if "ro" in options}


def _mounts(root: Path) -> dict[str, frozenset[str]]:
    """Mount point -> options; the last mount on a point counts."""
    found = {}
    for line in text(root / "proc/mounts").splitlines():
        fields = line.split(" ")
        if len(fields) >= 4 and fields[0].startswith("/dev/") and fields[2] not in _READ_ONLY_BY_NATURE:
            point = fields[1]
            for escape, character in _ESCAPES.items():
                point = point.replace(escape, character)
            found[point] = frozenset(fields[3].split(","))
    return found
