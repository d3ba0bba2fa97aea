"""The one set of timings that safety rests on, in integer milliseconds, and how a configuration may shorten them."""

from __future__ import annotations

from dataclasses import dataclass


class BadTimings(ValueError):
    """Timings under which two owners of a job could overlap."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Defaults are architecture §4.1: S = 3 s, F = 20 s, R = 35 s.

    ``stale_ms`` (S): a replica acknowledges a renewal only from a view of ownership younger than this.
    ``fence_ms`` (F): an agent stops its jobs this long after the *send* of the last acknowledged renewal.
    ``takeover_ms`` (R): nobody starts a revoked job elsewhere sooner than this after the intent was durable.
    ``clock_ratio``: how much faster one host's clock may run than another's.
    """

    stale_ms: int = 3_000
    fence_ms: int = 20_000
    takeover_ms: int = 35_000
    clock_ratio: float = 1.05
    renewal_ms: int = 2_000
    heartbeat_ms: int = 1_000
    telemetry_ms: int = 1_000
    unreachable_ms: int = 10_000  # silence until a node counts as unreachable
    settle_ms: int = 2_000  # wait for fault evidence after a process crash, before placing it anew
    lease_ttl_s: int = 5  # leader and replica keys
    drain_deadline_ms: int = 600_000  # evacuating longer than this is `expired`

    def __post_init__(self) -> None:
        need = (self.stale_ms + self.fence_ms) * self.clock_ratio
        if self.takeover_ms < need:
            raise BadTimings(
                f"timings.takeover_ms: {self.takeover_ms} is less than (stale_ms + fence_ms) × clock_ratio = {need:.0f}"
                "; raise takeover_ms or lower fence_ms"
            )
        if self.renewal_ms * 3 > self.fence_ms:
            raise BadTimings(
                f"timings.renewal_ms: {self.renewal_ms} leaves fewer than three renewals within "
                f"fence_ms = {self.fence_ms}; lower renewal_ms"
            )

    @property
    def term_before_ms(self) -> int:
        """SIGTERM comes this long before F: 5 s of 20, in proportion."""
        return self.fence_ms // 4

    @property
    def kill_before_ms(self) -> int:
        """SIGKILL comes this long before F: 1 s of 20, in proportion."""
        return self.fence_ms // 20


SHORT = Timings(
    stale_ms=1_000,
    fence_ms=5_000,
    takeover_ms=9_000,
    renewal_ms=300,
    heartbeat_ms=300,
    telemetry_ms=500,
    unreachable_ms=3_000,
    settle_ms=1_000,
    lease_ttl_s=2,
    drain_deadline_ms=60_000,
)
"""About a quarter of the defaults, same ratios: for tests and the demo."""
