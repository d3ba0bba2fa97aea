"""A checkpoint written after an uncontained memory error is not one to resume from."""

from __future__ import annotations

import pytest

from controlplane.domain.taint import suspicion
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, FindingId, NodeId, RegionId, Revision
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import FindingRecord

MINE, OTHER = DeviceId("n/gpu0"), DeviceId("n/gpu1")


def finding(code: str, device: DeviceId = MINE, active: bool = True, at: int = 5) -> FindingRecord:
    return FindingRecord(
        FindingId(f"{device}:{code}:{at}"), RegionId("east"), NodeId("n"), device, Scope.DEVICE, "memory", code,
        Severity.FATAL, Action.DRAIN, "why", (), at, "nvidia-xid", 1, active, "",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], None),
        ([finding("xid-95")], "xid-95"),
        ([finding("xid-140")], "xid-140"),
        ([finding("xid-48")], "xid-48"),
        ([finding("xid-48"), finding("xid-94")], None),
        ([finding("xid-48"), finding("xid-94", OTHER)], "xid-48"),
        ([finding("xid-48"), finding("xid-94"), finding("xid-95", at=9)], "xid-95"),
        ([finding("xid-95", active=False)], None),
        ([finding("xid-95", OTHER)], None),
        ([finding("xid-79"), finding("xid-63"), finding("corrected-rising")], None),
        ([finding("xid-95", at=9), finding("xid-140", at=3)], "xid-140"),
        ([finding("xid-171"), finding("xid-94")], None),
        ([finding("amd-1001")], "amd-1001"),  # HBM
        ([finding("amd-1041"), finding("amd-1021")], None),  # corrected, deferred
        ([finding("amd-24")], "amd-24"),  # a fatal error record with an AFID
        ([finding("ascend-80E01801")], "ascend-80E01801"),
        ([finding("cambricon-1000011")], "cambricon-1000011"),
        ([finding("host-1", DeviceId(""))], "host-1"),  # main memory of its host
        ([finding("amd-x"), finding("")], None),
    ],
)
def test_only_an_active_uncontained_error_on_the_jobs_own_devices_taints(
    findings: list[FindingRecord], code: str | None
) -> None:
    held = {f.id: Versioned(f, Revision(1), Revision(1), 0) for f in findings}
    found = suspicion(held, (MINE,))
    assert (found.code if found else None) == code
