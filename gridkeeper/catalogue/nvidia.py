"""NVIDIA's XIDs as data: ``nvidia_xid.csv``, one row per code.

Mnemonic, description, immediate and investigatory action are NVIDIA's ("Analyzing XID Errors" catalogue, as of
2025-10-29); severity, scope, action, fault class and what becomes of the job are ours, derived by ``ACTION_OF`` and
the few stated exceptions in ``OVERRULED``. Each row names the source of its verdict with version and date.

Policies, stated:

- A code that the catalogue does not have is a ``WARNING`` to ``WATCH``: it makes a device suspect, never drains it.
- 144 to 150 (NVLink 5) mean nothing without unit and error status: about half of their sub-codes need no action. The
  base code is watched; when the driver thinks that the GPU must be reset it says so in XID 154, which is followed.
- 154 and its text overrule what the number of another XID suggests: see ``recovery_action``.
- 45 is the clean-up after another error: see ``controlplane.domain.detect``.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import re
from dataclasses import dataclass

from gridkeeper.records.common import Action, Scope, Severity

RULE = "nvidia-xid"
RULE_VERSION = 1

ACTION_OF: dict[str, Action] = {
    "RESET_GPU": Action.DRAIN,  # a reset needs an empty device
    "WORKFLOW_XID_48": Action.DRAIN,  # ends in a reset, for DRAM (171) and for SRAM (172)
    "WORKFLOW_NVLINK_ERR": Action.DRAIN,
    "CHECK_MECHANICALS": Action.DRAIN,  # somebody must open the machine
    "RESTART_BM": Action.REBOOT_NODE,
    "RESTART_VM": Action.REBOOT_NODE,
    "RESTART_APP": Action.RESTART_JOB,
    "IGNORE": Action.WATCH,
    "CONTACT_SUPPORT": Action.WATCH,
    "UPDATE_SWFW": Action.WATCH,
    "CHECK_UVM": Action.WATCH,
    "WORKFLOW_XID_45": Action.WATCH,
    "WORKFLOW_NVLINK5_ERR": Action.WATCH,
    "XID_154": Action.WATCH,  # the text decides
    "": Action.WATCH,  # NVIDIA gives none
}
"""NVIDIA's immediate action -> ours."""

OVERRULED: dict[int, Action] = {
    64: Action.REPLACE,  # a failed remap sets the card's RMA flag; a reset does not bring the row back
}
"""Codes whose action is not ``ACTION_OF`` their immediate action, and why."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """What one code means and what to do. ``job_dies``: the process on the device does not survive it. ``known``:
    False for a code that the catalogue does not have."""

    code: int
    mnemonic: str
    description: str
    immediate: str
    investigatory: str
    severity: Severity
    scope: Scope
    action: Action
    fault_class: str
    job_dies: bool
    source: str
    source_version: str
    source_date: str
    known: bool = True


@functools.cache
def xids() -> dict[int, CatalogueEntry]:
    """All entries by code. Raises ``ValueError`` or ``KeyError`` if the data file is damaged."""
    text = importlib.resources.files(__package__).joinpath("nvidia_xid.csv").read_text(encoding="utf-8")
    entries = [
        CatalogueEntry(
            code=int(row["xid"]),
            mnemonic=row["mnemonic"],
            description=row["description"],
            immediate=row["immediate"],
            investigatory=row["investigatory"],
            severity=Severity(row["severity"]),
            scope=Scope(row["scope"]),
            action=Action(row["action"]),
            fault_class=row["fault_class"],
            job_dies=row["job_dies"] == "yes",
            source=row["source"],
            source_version=row["source_version"],
            source_date=row["source_date"],
        )
        for row in csv.DictReader(text.splitlines())
    ]
    return {entry.code: entry for entry in entries}


def lookup_xid(code: int) -> CatalogueEntry:
    """The entry of an XID; for an unknown code the stated policy (``WARNING``, ``WATCH``, ``known=False``)."""
    known = xids().get(code)
    if known is not None:
        return known
    return CatalogueEntry(
        code, "UNKNOWN", "unknown XID", "", "", Severity.WARNING, Scope.DEVICE, Action.WATCH, "driver", False,
        "gridkeeper", "policy-1", "2026-11-24", known=False,
    )  # fmt: skip


_RECOVERY: tuple[tuple[re.Pattern[str], Action], ...] = (
    (re.compile(r"node reboot", re.IGNORECASE), Action.REBOOT_NODE),
    (re.compile(r"gpu reset|drain and reset|drain p2p", re.IGNORECASE), Action.DRAIN),
    (re.compile(r"\bnone\b", re.IGNORECASE), Action.IGNORE),
)


def recovery_action(text: str) -> Action | None:
    """What XID 154 says must be done now: the last action that its text names ("… changed from 0x0 (None) to 0x1 (GPU
    Reset Required)"). ``IGNORE``: nothing any more. None: the text names none (NVML gives the bare number)."""
    found = [(match.start(), action) for pattern, action in _RECOVERY for match in pattern.finditer(text)]
    return max(found)[1] if found else None
