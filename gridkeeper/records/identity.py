"""Who may join, and who may no longer come in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RevocationRecord:
    """revocations/<target>: ``target`` is an identity as the audit trail writes it (``node/east/east-1``, ``user/ann``)
    or ``serial/<hex>``, one certificate. It is refused for as long as this record is there."""

    target: str
    reason: str
    revoked_by: str
    revoked_ms: int
    trace: str


@dataclass(frozen=True, slots=True)
class JoinTokenRecord:
    """tokens/<id>: a token with which one host may get its first certificate. The token itself is nowhere.

    Used, it is good for the same key again until it expires, so that a host whose answer was lost can ask once more."""

    id: str
    digest: str  # SHA-256 of the token's secret half, which has 256 random bits, in hex
    node: str  # the only node that may use it; "": any
    created_by: str
    created_ms: int
    expires_ms: int
    used_by: str = ""  # the node that used it
    used_ms: int = 0
    key_digest: str = ""  # SHA-256 of the public key that it was used for, in hex
    trace: str = ""
