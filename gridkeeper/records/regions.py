"""Regions that are lost, or cut off: the decision to take a region's jobs over, and what the others promise it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gridkeeper.ids import RegionId, ReplicaId


class LossState(enum.StrEnum):
    """Life of the question whether a region is lost."""

    SUSPECTED = "suspected"  # its grant was not extended in time: a human may veto or approve
    VETOED = "vetoed"  # a human said no: nothing is taken over until one approves or the region is heard
    APPROVED = "approved"  # a human said yes: the machine declares it at its next look
    DECLARED = "declared"  # its grant is revoked: its jobs are taken over
    RETURNED = "returned"  # it is heard again, and holds its grant anew


@dataclass(frozen=True, slots=True)
class LossRecord:
    """global/losses/<region>: one silence of a region, and what was decided about it."""

    region: RegionId
    state: LossState
    reason: str
    silent_ms: int  # ledger time of the last extension of its grant
    suspected_ms: int
    veto_window_ms: int  # after the suspicion, before the machine declares it by itself
    grant_revision: int  # of the grant that was not extended; another one means that the region was heard
    decided_by: str  # "machine" or a human; "": nobody has decided
    decided_ms: int
    jobs: int  # that the region owned when it was declared lost
    returned_ms: int
    trace: str


@dataclass(frozen=True, slots=True)
class FenceRecord:
    """region/fences/<other region>: up to which revision of the global store nobody of *this* region promises the other
    one any more that its jobs are left alone. It only rises: whoever of this region takes a job of the other one over
    raises it first to the revision of the revoke intent, and then waits R."""

    region: RegionId
    generation: int  # of the global store
    revision: int


@dataclass(frozen=True, slots=True)
class PromiseRecord:
    """region/promises/<other region>: the last time that this region promised the other one, which runs its jobs
    without the global store, to take none of them over for R. For as long as it is repeated, the other is not lost."""

    region: RegionId
    replica: ReplicaId  # that asked
    generation: int  # of its view of the global store
    revision: int
    promised_ms: int  # ledger time
