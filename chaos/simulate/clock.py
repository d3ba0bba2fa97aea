"""Virtual time and seeded chance behind the real ports."""

from __future__ import annotations

import asyncio
import random

EPOCH_MS = 1_767_225_600_000
"""2026-01-01 00:00 UTC: where simulated wall time begins."""


class SimClock:
    """``Clock`` on a virtual loop. ``skew_ms``: how far this host's wall clock is off; ``boot_ms``: how long before the
    run it booted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, skew_ms: int = 0, boot_ms: int = 1_000_000) -> None:
        self._loop = loop
        self._skew_ms = skew_ms
        self._boot_ms = boot_ms

    def mono_ms(self) -> int:
        return self._boot_ms + round(self._loop.time() * 1000)

    def wall_ms(self) -> int:
        return EPOCH_MS + self._skew_ms + round(self._loop.time() * 1000)

    async def sleep(self, ms: int) -> None:
        await asyncio.sleep(ms / 1000)

    def step(self, by_ms: int) -> None:
        """The wall clock jumps."""
        self._skew_ms += by_ms


class SimRng:
    """``Rng`` from a seed. ``child`` gives each part its own stream, so that one part's draws do not move another's."""

    def __init__(self, seed: int | str) -> None:
        self._seed = str(seed)
        self._random = random.Random(self._seed)

    def token(self, nbytes: int = 8) -> str:
        return self._random.randbytes(nbytes).hex()

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def child(self, name: str) -> SimRng:
        return SimRng(f"{self._seed}/{name}")
