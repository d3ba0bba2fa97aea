"""Productive time and what a token costs, in exact rationals. Pure."""

from __future__ import annotations

from fractions import Fraction

HOUR_S = 3600
MILLION = 1_000_000


def ettr(wall_ms: int, init_ms: int, saves_ms: int, lost_ms: int, recovery_ms: int) -> Fraction | None:
    """Effective training time ratio: wall time less starting, saving, work that was lost and recovering, of wall time.
    None: no time has passed. Raises ``ValueError`` when the parts are more than the whole."""
    productive = wall_ms - init_ms - saves_ms - lost_ms - recovery_ms
    if min(init_ms, saves_ms, lost_ms, recovery_ms) < 0 or productive < 0:
        raise ValueError(f"productive time: {productive} ms of {wall_ms} ms; the parts must be within the wall time")
    return Fraction(productive, wall_ms) if wall_ms else None


def cost_per_million_tokens(
    devices: int, price_per_device_hour: Fraction, tokens_per_s: Fraction, goodput: Fraction = Fraction(1)
) -> Fraction | None:
    """``tokens_per_s``: of the whole job while it is productive; ``goodput``: of 1. None: no token is made."""
    made = tokens_per_s * goodput
    return devices * price_per_device_hour * MILLION / (HOUR_S * made) if made > 0 else None
