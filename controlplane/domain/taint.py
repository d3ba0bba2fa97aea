"""Whether what a job writes now can be trusted. Pure.

A checkpoint written after the first evidence of an uncontained or silent memory error, on a device of the job or in
the main memory of its host, may hold wrong numbers: it is kept as suspect, and nothing resumes from it by default.
Which faults taint is the catalogue's to say, for every vendor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gridkeeper.catalogue import Taint
from gridkeeper.catalogue.codes import AmdCode
from gridkeeper.catalogue.model import finding_code
from gridkeeper.catalogue.nvidia import CONTAINED
from gridkeeper.catalogue.own import AFIDS
from gridkeeper.catalogue.tables import by_finding
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, node_of
from gridkeeper.records.common import Severity
from gridkeeper.records.faults import FindingRecord
from gridkeeper.records.fleet import EventKind

CONTAINED_CODE = finding_code(EventKind.XID, CONTAINED)
"""A double-bit error that the driver reports as contained has killed the processes that it touched; one without that
word (and every one on cards before Ampere, which contain nothing) may have reached any."""


def suspicion(findings: Mapping[str, Versioned[FindingRecord]], devices: Collection[DeviceId]) -> FindingRecord | None:
    """The earliest finding that taints the memory of these devices; None: there is none."""
    nodes = {node_of(device) for device in devices}
    mine = [
        v.record
        for v in findings.values()
        if v.record.active and (v.record.device in devices or (not v.record.device and v.record.node in nodes))
    ]
    contained = {finding.device for finding in mine if finding.code == CONTAINED_CODE}
    tainting = [
        finding
        for finding in mine
        if (taint := taint_of(finding)) is Taint.YES
        or (taint is Taint.UNLESS_CONTAINED and finding.device not in contained)
    ]
    return min(tainting, key=lambda finding: (finding.observed_ms, finding.id), default=None)


def taint_of(finding: FindingRecord) -> Taint:
    """By the catalogue; an AMD error record with an AFID taints as its severity says."""
    entry = by_finding().get(finding.code)
    if entry is not None:
        return entry.taint
    vendor, _, number = finding.code.partition("-")
    if vendor == EventKind.AMD.value and number.isdecimal() and int(number) in AFIDS:
        fatal = finding.severity is Severity.FATAL
        return by_finding()[finding_code(EventKind.AMD, AmdCode.CPER_FATAL)].taint if fatal else Taint.NO
    return Taint.NO
