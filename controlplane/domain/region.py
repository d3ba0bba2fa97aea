"""Everything that a region's leader decides in its own store, in the order of the path of one fault. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from controlplane.domain.assess import decide_health
from controlplane.domain.budget import decide_budgets
from controlplane.domain.cordon import decide_expiry
from controlplane.domain.detect import decide_detection
from controlplane.domain.drain import decide_drains
from controlplane.domain.liveness import decide_liveness
from controlplane.domain.sla import decide_ledger
from gridkeeper.decision import Decision, Now
from gridkeeper.snapshot import GlobalState, RegionState, Settings


def decide_region(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """What is to be written now. Derived from durable state alone, so deciding twice is harmless.

    No two of the decisions touch the same key: of those that would, only the first is returned, and the rest are
    decided again on the state that it leaves.
    """
    detected = decide_detection(state, settings, now)
    budgets = decide_budgets(state, settings, now)
    return disjoint(
        (
            *decide_liveness(state, settings, now),
            *((detected,) if detected else ()),
            *decide_health(state, settings, now),
            *decide_drains(state, world, settings, now),
            *decide_expiry(state, settings, now),
            *((budgets,) if budgets else ()),
            *decide_ledger(state, settings, now),
        )
    )


def disjoint(decisions: Iterable[Decision]) -> tuple[Decision, ...]:
    """Those that neither write nor rest on a key that an earlier one writes."""
    taken: set[str] = set()
    kept: list[Decision] = []
    for decision in decisions:
        written = {write.key for write in decision.writes}
        if taken.isdisjoint(written) and taken.isdisjoint(guard.key for guard in decision.guards):
            taken |= written
            kept.append(decision)
    return tuple(kept)
