"""Who leads the world and may not decide on a job lets a region decide that may."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.simulate.library import run
from failover.domain.handover import decided_elsewhere
from gridkeeper.decision import Versioned
from gridkeeper.ids import RegionId, ReplicaId, Revision
from gridkeeper.records.jobs import GrantRecord
from gridkeeper.snapshot import Failsafe, GlobalState
from gridkeeper.timings import SHORT
from tests.unit.test_promises import EAST, NORTH, OWNER, WEST

NOW = 100_000


def grant(
    region: RegionId, peers: tuple[RegionId, ...] = (), revoked: str = "", age_ms: int = 0
) -> Versioned[GrantRecord]:
    record = GrantRecord(region, 1, ReplicaId(f"{region}-1"), 1, revoked=revoked, peers=peers)
    return Versioned(record, Revision(5), Revision(5), NOW - age_ms)


STUCK = GlobalState(
    ownership={OWNER.job: Versioned(OWNER, Revision(9), Revision(1), 0)},
    grants={EAST: grant(EAST, (NORTH,), "it is lost", NOW), NORTH: grant(NORTH), WEST: grant(WEST)},
    failsafe=Failsafe(WEST),
)


def test_a_job_that_waits_here_for_ever_is_decided_on_by_a_region_that_is_named_and_there() -> None:
    why = decided_elsewhere(STUCK, NOW, SHORT)
    assert why == "train is to leave east, which asks north for promises and not west"


@pytest.mark.parametrize(
    "world",
    [
        replace(STUCK, grants={**STUCK.grants, EAST: grant(EAST, (NORTH, WEST), "it is lost")}),
        replace(STUCK, grants={**STUCK.grants, NORTH: grant(NORTH, age_ms=SHORT.fence_ms)}),
        replace(STUCK, grants={**STUCK.grants, NORTH: grant(NORTH, revoked="it is lost, too")}),
        replace(STUCK, grants={EAST: STUCK.grants[EAST], WEST: STUCK.grants[WEST]}),
        replace(STUCK, grants={**STUCK.grants, EAST: grant(EAST, (), "it is lost")}),
        replace(STUCK, ownership={OWNER.job: Versioned(replace(OWNER, revoke=None), Revision(9), Revision(1), 0)}),
        replace(STUCK, failsafe=Failsafe(EAST)),
        replace(STUCK, fresh=False),
        replace(STUCK, failsafe=None),
    ],
    ids=["named", "silent", "lost", "unknown", "nobody named", "not revoked", "its own", "not fresh", "no failsafe"],
)
def test_leading_is_not_given_away_without_need(world: GlobalState) -> None:
    """Protects: a new leader counts every R anew, so none is to come without one that does better."""
    assert decided_elsewhere(world, NOW, SHORT) == ""


def test_the_lead_does_not_go_round_among_the_replicas_of_the_region_that_may_not_decide() -> None:
    """Protects: in this history they are the first in line, one after the other, whenever one of them hands over."""
    outcome = run("not-named", 10)
    assert outcome.good, (outcome.false, outcome.violations)
