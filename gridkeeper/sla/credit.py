"""What a missed commitment owes. Exact; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Tier:
    """Strictly below ``below`` percent of uptime, ``credit`` percent of the charge."""

    below: Fraction
    credit: Fraction


def credit_percent(availability: Fraction | None, tiers: Sequence[Tier]) -> Fraction:
    """The largest credit of the tiers that apply. ``availability``: of 1; None (nothing was measured): no credit."""
    if availability is None:
        return Fraction(0)
    return max((tier.credit for tier in tiers if availability * 100 < tier.below), default=Fraction(0))


def decimal_text(value: Fraction, places: int) -> str:
    """Rounded half up, to that many places: what people and contracts do. No float is involved."""
    scale = 10**places
    sign = "-" if value < 0 else ""
    scaled = (abs(value) * scale * 2 + 1) // 2
    whole, rest = divmod(int(scaled), scale)
    sign = sign if scaled else ""
    return f"{sign}{whole}.{rest:0{places}d}" if places else f"{sign}{whole}"


def exact_text(value: Fraction) -> str:
    """``99.95``; a number without a finite decimal form as ``1/3``."""
    denominator = value.denominator
    twos = fives = 0
    while denominator % 2 == 0:
        denominator, twos = denominator // 2, twos + 1
    while denominator % 5 == 0:
        denominator, fives = denominator // 5, fives + 1
    if denominator != 1:
        return str(value)
    return decimal_text(value, max(twos, fives))


def money(value: Fraction, places: int) -> Decimal:
    """To the currency's smallest unit, half up."""
    return Decimal(decimal_text(value, places)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
