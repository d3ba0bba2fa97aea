"""Who may call what: one table, RPC -> the least role that may."""

from __future__ import annotations

import enum

import grpc

from controlplane.rpc.refusal import Refusal


class Role(enum.IntEnum):
    """Each includes the ones before it."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        return self.name.lower()


NEEDS: dict[str, Role] = {
    "List": Role.VIEWER,
    "Get": Role.VIEWER,
    "Watch": Role.VIEWER,
    "Explain": Role.VIEWER,
    "JobLogs": Role.VIEWER,
    "SlaStatus": Role.VIEWER,
    "Info": Role.VIEWER,
    "Cordon": Role.OPERATOR,
    "Uncordon": Role.OPERATOR,
    "Drain": Role.OPERATOR,
    "CancelDrain": Role.OPERATOR,
    "AckIncident": Role.OPERATOR,
    "SubmitJob": Role.OPERATOR,
    "StopJob": Role.OPERATOR,
    "MigrateJob": Role.OPERATOR,
}
"""Every RPC of ``Grid``; one that is missing here cannot be served (``server.handlers``)."""


def authorise(rpc: str, who: str, role: Role | None) -> None:
    """Raises ``Refusal`` unless ``role`` may call ``rpc``. ``role`` None: a certificate that is no person's or
    program's (a node's, a replica's)."""
    need = NEEDS[rpc]
    if role is None:
        raise Refusal(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{who} may not call the Grid API: its certificate is not a user's; use one issued to a user",
        )
    if role < need:
        raise Refusal(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{who} has the role {role.word}, and {rpc} needs {need.word}; ask for a certificate with that role",
        )
