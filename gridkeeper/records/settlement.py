"""What settles the two sides of a contract: exclusions, closed months, what was adjusted since, signed daily heads.

Exclusions are in the global store. The rest is in the store whose entries it is about: devices and the region in a
region's, jobs in the global one. Nothing here is ever changed or deleted but for the count in a ``ClosingRecord``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gridkeeper.records.books import Totals


class Cause(enum.StrEnum):
    """Why a time is left out."""

    MAINTENANCE = "maintenance"
    CUSTOMER = "customer"
    FORCE_MAJEURE = "force-majeure"


@dataclass(frozen=True, slots=True)
class ExclusionRecord:
    """exclusions/<sequence, 20 digits>: one event of the log of exclusions, which is numbered without a gap: a time of
    a scope in which a contract may leave out what happened; or, with ``retracts``, the word that such an event does not
    hold any more (its other fields are repeated). ``scope``: ``device/<id>``, ``node/<n>`` (each of its devices),
    ``region/<r>`` (itself and each of its devices) or ``job/<id>``."""

    sequence: int
    scope: str
    cause: Cause
    from_ms: int
    until_ms: int
    recorded_by: str
    recorded_ms: int
    reason: str
    evidence: tuple[str, ...]  # incidents, tickets, documents: whatever shows it
    retracts: int  # the number of an earlier event; 0: it excludes
    trace: str


@dataclass(frozen=True, slots=True)
class ClosingRecord:
    """closings/<zone>/<month>: that month of that time zone is closed: ``segment`` holds what the ledger said, for
    ever. What is learned later is booked as adjustments, ``adjustments`` of them so far."""

    zone: str
    month: str
    from_ms: int
    until_ms: int
    closed_by: str
    closed_ms: int
    segment: str  # name of the Parquet file; its BLAKE3 is in it
    entries: int
    scopes: int
    exclusions: int  # number of the last exclusion that it, or the newest adjustment, knew
    adjustments: int
    books: str  # region/<name> or global


@dataclass(frozen=True, slots=True)
class ScopeChange:
    """ms by class, which add up to nothing unless the scope had no ledger when the month was closed."""

    scope: str
    change: Totals


@dataclass(frozen=True, slots=True)
class AdjustmentRecord:
    """adjustments/<zone>/<month>/<sequence, 10 digits>: what the open month books for a closed one."""

    zone: str
    month: str  # the closed one
    sequence: int  # of the closed month's adjustments
    booked_in: str  # the month that was open there
    booked_ms: int
    changes: tuple[ScopeChange, ...]
    books: str  # region/<name> or global


@dataclass(frozen=True, slots=True)
class LedgerHeadRecord:
    """ledger-heads/<day>: the signed receipt of that day (UTC), which names the one before it."""

    day: str  # "2026-11-25"
    issued_ms: int
    digest: str  # of the receipt's statement, BLAKE3
    previous: str
    receipt: str  # name of the file
    scopes: int
    books: str  # region/<name> or global
