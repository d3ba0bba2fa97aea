"""Contracts: what was promised, how it is counted, what a breach owes. One YAML document, one tree of records: targets
and tiers are data with a date and a source, never constants of this program.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from fractions import Fraction

from gridkeeper.sla.credit import Tier
from gridkeeper.sla.measure import Rule


class Per(enum.StrEnum):
    """What is measured, one by one. A node is down while any of its devices is."""

    DEVICE = "device"
    NODE = "node"
    REGION = "region"
    JOB = "job"


class Certainty(enum.StrEnum):
    """``read``: in the published text; ``reported``: by a third party only; ``agreed``: between the parties;
    ``example``: nobody's."""

    READ = "read"
    REPORTED = "reported"
    AGREED = "agreed"
    EXAMPLE = "example"


@dataclass(frozen=True, slots=True)
class Source:
    """Where the figures are from. ``date``: of that version, as it says; ``seen``: when it was looked at."""

    text: str
    date: str
    certainty: Certainty
    seen: str = ""
    unsure: str = ""  # which figures of this document could not be confirmed, and why


@dataclass(frozen=True, slots=True)
class Commitment:
    """``target`` in percent of uptime a month. ``select``: which of them, by labels; "" all. ``charge``: what each of
    them costs a month, in the contract's currency: credits are percentages of it."""

    name: str
    per: Per
    target: Fraction
    tiers: tuple[Tier, ...]
    charge: Fraction = Fraction(0)
    select: str = ""


@dataclass(frozen=True, slots=True)
class Contract:
    """``zone``: whose calendar months are billed. ``covers_accelerators``: False: devices are exempt, so commitments
    per device or node promise nothing. ``minimum_payout``: what is owed below it is not paid. ``claim_days``: after
    the end of the month; 0: no deadline. ``decimals``: of the currency's smallest unit."""

    name: str
    provider: str
    customer: str
    source: Source
    commitments: tuple[Commitment, ...]
    currency: str = "USD"
    decimals: int = 2
    zone: str = "UTC"
    covers_accelerators: bool = True
    rule: Rule = field(default_factory=Rule)
    minimum_payout: Fraction = Fraction(0)
    claim_days: int = 0
