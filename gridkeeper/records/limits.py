"""What keeps drains from being too many: breakers, escrowed shares of budgets, repeat counts. Written by leaders.

A budget that spans regions is escrowed (architecture §4.7): the global leader writes ``escrow/<budget>``, each region's
leader takes its share into its own store (``shares/<budget>``) and acknowledges it (``share-acks/<budget>/<region>``,
global store). A share grows in one region only after the shrinking of another was acknowledged.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gridkeeper.ids import EventId, RegionId


class BreakerState(enum.StrEnum):
    """``open``: no machine drain in its scope; ``half_open``: a trickle."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerRecord:
    """breakers/<name>: ledger times, so that a restart forgets nothing; written when it changes. ``wanted_ms``: when
    the (newest) drains that opened it were first wanted; ``passed_ms``: which it let through lately while half-open;
    ``open_until_ms``: when it was last open no more."""

    name: str
    state: BreakerState
    since_ms: int
    reason: str
    wanted_ms: tuple[int, ...]
    passed_ms: tuple[int, ...]
    trips: int
    open_until_ms: int = 0


@dataclass(frozen=True, slots=True)
class RepeatRecord:
    """repeats/<rule>:<subject>: what a repeat rule has counted, in the transaction that digested the events.
    ``devices``: on which device (or, for a rule that counts jobs, for which job) each of ``times_ms`` was."""

    rule: str
    subject: str
    times_ms: tuple[int, ...]
    events: tuple[EventId, ...]
    devices: tuple[str, ...]
    boots_ms: tuple[int, ...]
    sticky_until_ms: int


@dataclass(frozen=True, slots=True)
class EscrowShare:
    region: RegionId
    amount: int


@dataclass(frozen=True, slots=True)
class EscrowRecord:
    """escrow/<budget> (global store): how a budget over all regions is divided. The sum of what regions may hold (the
    larger of share and acknowledgement) never exceeds ``limit``. ``moved_ms``: when a share last changed."""

    budget: str
    limit: int
    total: int
    shares: tuple[EscrowShare, ...]
    moved_ms: int = 0


@dataclass(frozen=True, slots=True)
class ShareRecord:
    """shares/<budget> (region store) and share-acks/<budget>/<region> (global store): what a region may spend.
    ``escrow_revision``: mod revision of the escrow record that it follows. An acknowledgement also says how many places
    the region uses, how many drains it refused for want of one, and how many devices it has."""

    budget: str
    region: RegionId
    amount: int
    escrow_revision: int
    used: int = 0
    wanted: int = 0
    total: int = 0
