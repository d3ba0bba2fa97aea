"""How fast bytes may flow."""

from __future__ import annotations

from gridkeeper.ports.clock import Clock


class TokenPace:
    """Implements ``Pace``: ``bytes_per_s`` on average, from the construction on; 0: no limit."""

    def __init__(self, clock: Clock, bytes_per_s: int) -> None:
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._free_ms = clock.mono_ms()

    async def spend(self, size_bytes: int) -> None:
        """Wait until the bytes before have had their time."""
        if not self._bytes_per_s:
            return
        now = self._clock.mono_ms()
        wait_ms = self._free_ms - now
        self._free_ms = max(now, self._free_ms) + size_bytes * 1000 // self._bytes_per_s
        if wait_ms > 0:
            await self._clock.sleep(wait_ms)
