"""Everything that stands between a caller and a replica, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.security.gate import Gate
from controlplane.security.rates import Buckets, Rate, StreamCounts
from controlplane.security.refusals import RefusalBook
from gridkeeper.config import LimitsConfig
from gridkeeper.ports.clock import Clock

BURST = 8
"""Seconds' worth that may come at once."""
CONNECTS_BURST = 30
MOST_STREAMS = 528
"""Of all users together."""


@dataclass(frozen=True, slots=True)
class Guards:
    gate: Gate
    book: RefusalBook
    reads: Buckets
    acts: Buckets
    streams: StreamCounts
    messages: Buckets
    octets: Buckets
    connects: Buckets
    joins: Buckets


def guards_of(gate: Gate, book: RefusalBook, limits: LimitsConfig, clock: Clock) -> Guards:
    def buckets(per_s: int, burst: int = 0) -> Buckets:
        return Buckets(Rate(per_s, burst or BURST * per_s), clock)

    return Guards(
        gate,
        book,
        buckets(limits.reads_per_s),
        buckets(limits.acts_per_s),
        StreamCounts(limits.streams, MOST_STREAMS),
        buckets(limits.agent_messages_per_s),
        buckets(limits.agent_bytes_per_s),
        buckets(limits.agent_connects_per_s, CONNECTS_BURST),
        buckets(limits.joins_per_s),
    )
