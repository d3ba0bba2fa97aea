"""Who may call what: one table, RPC -> the least role that may; and what a job owner may call besides."""

from __future__ import annotations

import grpc

from controlplane.rpc.refusal import Refusal
from gridkeeper.identity.spiffe import Identity, Kind, UserRole

RANK: dict[UserRole, int] = {UserRole.VIEWER: 1, UserRole.OPERATOR: 2, UserRole.ADMIN: 3}
"""Each role includes those of a lower rank."""

NEEDS: dict[str, UserRole] = {
    "List": UserRole.VIEWER,
    "Get": UserRole.VIEWER,
    "Watch": UserRole.VIEWER,
    "Explain": UserRole.VIEWER,
    "JobLogs": UserRole.VIEWER,
    "SlaStatus": UserRole.VIEWER,
    "Info": UserRole.VIEWER,
    "Samples": UserRole.VIEWER,
    "GetPolicy": UserRole.VIEWER,
    "PolicyHistory": UserRole.VIEWER,
    "Query": UserRole.VIEWER,
    "LedgerEntries": UserRole.VIEWER,
    "Documents": UserRole.VIEWER,
    "Settlement": UserRole.VIEWER,
    "Cordon": UserRole.OPERATOR,
    "Uncordon": UserRole.OPERATOR,
    "Drain": UserRole.OPERATOR,
    "CancelDrain": UserRole.OPERATOR,
    "AckIncident": UserRole.OPERATOR,
    "SubmitJob": UserRole.OPERATOR,
    "StopJob": UserRole.OPERATOR,
    "MigrateJob": UserRole.OPERATOR,
    "PlanMaintenance": UserRole.OPERATOR,
    "CancelMaintenance": UserRole.OPERATOR,
    "DecideRepair": UserRole.OPERATOR,
    "ResetBreaker": UserRole.OPERATOR,
    "DecideLoss": UserRole.OPERATOR,
    "ApplyPolicy": UserRole.ADMIN,
    "ApplyDocument": UserRole.ADMIN,
    "RecordExclusion": UserRole.ADMIN,
    "RetractExclusion": UserRole.ADMIN,
    "CreateJoinToken": UserRole.ADMIN,
    "CancelJoinToken": UserRole.ADMIN,
    "JoinTokens": UserRole.ADMIN,
    "Revoke": UserRole.ADMIN,
    "Reinstate": UserRole.ADMIN,
    "Revocations": UserRole.VIEWER,
}
"""Every RPC of ``Grid``; one that is missing here is not served at all (``server.handlers``)."""


OWNED = frozenset(
    {"List", "Get", "Watch", "Explain", "JobLogs", "SlaStatus", "Info", "SubmitJob", "StopJob", "MigrateJob"}
)
"""What a job owner may call: each of these is answered from their namespaces' part of the grid (``rpc/tenant.py``)."""


def authorise(rpc: str, identity: Identity) -> UserRole:
    """The caller's role. Raises ``Refusal`` unless it may call ``rpc``; only users may call Grid."""
    role = identity.role
    if identity.kind is not Kind.USER or role is None:
        raise Refusal(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{identity} may not call {rpc}: its certificate is a {identity.kind}'s; use one issued to a user",
        )
    need = NEEDS[rpc]
    if role is UserRole.JOB_OWNER:
        if rpc not in OWNED:
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{identity} is a job-owner, and {rpc} is for the role {need}; ask somebody with that role",
            )
    elif RANK[role] < RANK[need]:
        raise Refusal(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{identity} has the role {role}, and {rpc} needs {need}; ask for a certificate with that role",
        )
    return role
