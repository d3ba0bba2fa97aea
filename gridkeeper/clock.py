"""The real clock and the real dice: the only module that reads either."""

from __future__ import annotations

import asyncio
import secrets
import time


class SystemClock:
    """``Clock`` on this host. CLOCK_BOOTTIME, so that a suspended laptop does not think no time has passed."""

    def mono_ms(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep(self, ms: int) -> None:
        await asyncio.sleep(ms / 1000)


class SystemRng:
    """``Rng`` from the operating system."""

    def token(self, nbytes: int = 8) -> str:
        return secrets.token_hex(nbytes)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * secrets.randbelow(1 << 53) / (1 << 53)
