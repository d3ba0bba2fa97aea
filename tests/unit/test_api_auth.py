"""Nobody without a right: every RPC of the API against every role and every kind of certificate."""

from __future__ import annotations

import grpc
import pytest

from controlplane.rpc.auth import NEEDS, OWNED, RANK, authorise
from controlplane.rpc.refusal import Refusal
from controlplane.rpc.server import Desk
from controlplane.security.gate import Gate
from controlplane.security.guards import guards_of
from controlplane.security.refusals import RefusalBook
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.config import LimitsConfig
from gridkeeper.identity import spiffe
from gridkeeper.identity.spiffe import Identity, UserRole
from gridkeeper.v1 import api_pb2
from tests.fixtures.grid import FakeGrid

RPCS = sorted(method.name for method in api_pb2.DESCRIPTOR.services_by_name["Grid"].methods)
READS = {
    "List", "Get", "Watch", "Explain", "JobLogs", "SlaStatus", "Info", "Samples", "GetPolicy", "PolicyHistory", "Query",
    "LedgerEntries", "Documents", "Settlement", "Revocations",
}  # fmt: skip
OWNERS = {"List", "Get", "Watch", "Explain", "JobLogs", "SlaStatus", "Info", "SubmitJob", "StopJob", "MigrateJob"}
ADMINS = {
    "ApplyPolicy", "ApplyDocument", "CreateJoinToken", "CancelJoinToken", "JoinTokens", "Revoke", "Reinstate",
    "RecordExclusion", "RetractExclusion",
}  # fmt: skip


def test_the_table_names_every_rpc_and_no_other() -> None:
    assert sorted(NEEDS) == RPCS


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("role", list(RANK))
def test_a_viewer_reads_an_operator_acts_and_an_admin_sets_the_policy(rpc: str, role: UserRole) -> None:
    need = UserRole.VIEWER if rpc in READS else UserRole.ADMIN if rpc in ADMINS else UserRole.OPERATOR
    allowed = RANK[role] >= RANK[need]
    identity = spiffe.user("ann", role)
    if allowed:
        assert authorise(rpc, identity) is role
        return
    with pytest.raises(Refusal, match=f"user/ann has the role {role}, and {rpc} needs {need}") as refused:
        authorise(rpc, identity)
    assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("rpc", RPCS)
def test_a_job_owner_calls_what_is_answered_from_their_part_and_nothing_else(rpc: str) -> None:
    identity = spiffe.user("bob", "job-owner", "vision")
    if rpc in OWNERS:
        assert authorise(rpc, identity) is UserRole.JOB_OWNER
        return
    with pytest.raises(Refusal, match=f"user/bob is a job-owner, and {rpc} is for") as refused:
        authorise(rpc, identity)
    assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize(
    "identity", [spiffe.node("east", "east-1"), spiffe.replica("east", "east-a"), spiffe.store("etcd-1")], ids=str
)
def test_machines_may_call_nothing(rpc: str, identity: Identity) -> None:
    with pytest.raises(Refusal, match="use one issued to a user") as refused:
        authorise(rpc, identity)
    assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED


def test_every_role_has_a_rank_or_its_own_list() -> None:
    assert {*RANK, UserRole.JOB_OWNER} == set(UserRole)
    assert set(OWNED) == OWNERS
    assert RANK[UserRole.VIEWER] < RANK[UserRole.OPERATOR] < RANK[UserRole.ADMIN]


def test_each_call_of_the_service_has_an_answer_and_a_role() -> None:
    """Protects: a replica starts, whatever calls were added to the service."""
    grid, clock, rng = FakeGrid("east"), SystemClock(), SystemRng()
    book = RefusalBook(grid.record, clock, rng)
    guards = guards_of(Gate("grid.test", grid.revoked, clock), book, LimitsConfig(), clock)
    desk = Desk(grid, grid, guards, clock, rng)
    assert desk.handlers(certified=True) is not None and desk.handlers(certified=False) is not None
