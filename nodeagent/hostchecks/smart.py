"""Disks' own judgement: ``smartctl --json -a``, one disk per look, so that a slow one delays nothing. Without smartctl
(smartmontools 7.0 or newer) it is said once, and the kernel log is what is left."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from gridkeeper.catalogue.codes import HostCode
from gridkeeper.ports.devices import BackendError
from nodeagent.backends.tool import Tool
from nodeagent.backends.values import number, part
from nodeagent.conditions import Conditions

log = logging.getLogger("gridkeeper.agent.smart")

_DISK = re.compile(r"(?:sd[a-z]{1,3}|nvme[0-9]{1,3}n[0-9]{1,3})\Z")
_NOT_READ = 0b11  # of smartctl's exit status: command line wrong, device not opened; other bits are the disk's troubles


class Smart:
    period_ms = 60_000

    def __init__(self, root: Path, tool: Tool | None = None) -> None:
        self._root = root
        self._tool = tool or Tool("smartctl", "install smartmontools")
        self._turn = 0
        self._said = False
        self._failed: set[str] = set()
        self._worn: set[str] = set()

    def look(self, seen: Conditions, now_ms: int) -> None:
        disks = sorted(path.name for path in self._root.glob("sys/block/*") if _DISK.match(path.name))
        if not disks:
            return
        self._turn += 1
        disk = disks[self._turn % len(disks)]
        try:
            said = self._tool.run("--json", "-a", f"/dev/{disk}", any_end=True)
        except BackendError as error:
            if not self._said:
                self._said = True
                log.warning("SMART is not read: %s.", error)
            return
        judgement = judge(said)
        if judgement is None:
            return
        failed, worn = judgement
        self._failed = self._failed | {f"/dev/{disk}"} if failed else self._failed - {f"/dev/{disk}"}
        self._worn = self._worn | {f"/dev/{disk}"} if worn else self._worn - {f"/dev/{disk}"}
        seen.lasts_for("smart-failed", self._failed, HostCode.SMART_FAILED, "disks say that they fail:", now_ms)
        seen.lasts_for("smart-worn", self._worn, HostCode.SMART_WORN, "disks are worn:", now_ms)


def judge(said: str) -> tuple[bool, bool] | None:
    """(failed, worn) of smartctl's JSON; None if it does not tell."""
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        return None
    status = number(part(found, "smartctl", "exit_status"))
    if status is None or int(status) & _NOT_READ:
        return None
    passed = part(found, "smart_status", "passed")
    nvme = part(found, "nvme_smart_health_information_log")
    failed = passed is False or (number(part(nvme, "critical_warning")) or 0) > 0
    used = number(part(nvme, "percentage_used"))
    spare, least = number(part(nvme, "available_spare")), number(part(nvme, "available_spare_threshold"))
    worn = (used is not None and used >= 100) or (spare is not None and least is not None and spare < least)
    attributes: Any = part(found, "ata_smart_attributes", "table")
    for attribute in attributes if isinstance(attributes, list) else ():
        worn = worn or part(attribute, "when_failed") in ("now", "FAILING_NOW")
    if passed is None and nvme is None and not attributes:
        return None
    return failed, worn and not failed
