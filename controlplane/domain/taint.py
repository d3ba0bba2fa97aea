"""Whether what a job writes now can be trusted. Pure.

A checkpoint written after the first evidence of an uncontained or silent memory error on a device of the job may hold
wrong numbers: it is kept as suspect, and nothing resumes from it by default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId
from gridkeeper.records.faults import FindingRecord

UNCONTAINED = frozenset({"xid-95", "xid-140"})
"""NVIDIA: 95 uncontained memory error, 140 unrecovered ECC error."""
DOUBLE_BIT, CONTAINED = "xid-48", "xid-94"
"""A double-bit error that the driver reports as contained has killed the processes that it touched; one without that
word (and every one on cards before Ampere, which contain nothing) may have reached any."""


def suspicion(findings: Mapping[str, Versioned[FindingRecord]], devices: Collection[DeviceId]) -> FindingRecord | None:
    """The earliest finding that taints the memory of these devices; None: there is none."""
    mine = [v.record for v in findings.values() if v.record.active and v.record.device in devices]
    contained = {finding.device for finding in mine if finding.code == CONTAINED}
    tainting = [
        finding
        for finding in mine
        if finding.code in UNCONTAINED or (finding.code == DOUBLE_BIT and finding.device not in contained)
    ]
    return min(tainting, key=lambda finding: (finding.observed_ms, finding.id), default=None)
