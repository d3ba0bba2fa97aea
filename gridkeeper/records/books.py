"""The uptime ledger, the audit trail and the store's own header."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class UptimeClass(enum.StrEnum):
    """Where a millisecond of a scope's life is booked. Per scope they add up to the elapsed time."""

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"
    EXCLUDED = "excluded"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Totals:
    """Integer milliseconds by class."""

    up_ms: int
    degraded_ms: int
    down_ms: int
    excluded_ms: int
    unknown_ms: int


@dataclass(frozen=True, slots=True)
class AccountRecord:
    """ledger/accounts/<scope>: the running account of a scope (``device/<id>``, ``region/<r>``, ``job/<id>``): closed
    time of the month so far in ``totals``, and the class that has held since ``since_ms``."""

    scope: str
    month: str  # "2026-11", UTC
    opened_ms: int  # when this account began in this month
    sequence: int  # of the last entry
    current: UptimeClass
    since_ms: int
    reason: str
    totals: Totals  # of the entries up to since_ms; the open interval is not in it
    refs: tuple[str, ...] = ()  # incident, drain, migration ids behind the open interval


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """ledger/entries/<scope>/<sequence>: one closed interval [from_ms, until_ms)."""

    scope: str
    sequence: int
    month: str
    from_ms: int
    until_ms: int
    uptime: UptimeClass
    reason: str
    refs: tuple[str, ...]  # incident, drain, migration ids


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """audit/<id>: who did what to what, why, and with which result."""

    id: str
    at_ms: int
    actor: str  # "machine/<replica>" or a certificate's identity
    verb: str
    object: str
    sentence: str
    result: str  # "applied" or "refused"
    revision: int  # store revision it was decided on
    evidence: tuple[str, ...]
    trace: str
    origin: str = ""  # the address that the call came from; "": the machine's own decision


@dataclass(frozen=True, slots=True)
class MetaRecord:
    """meta: header of a store. ``generation`` grows with a restore from backup."""

    generation: int
    role: str  # "region/<name>" or "global"
    created_wall_ms: int
