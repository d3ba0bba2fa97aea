"""Everything that a region's leader decides in its own store, in the order of the path of one fault. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from controlplane.domain.assess import decide_health
from controlplane.domain.borrowed import decide_returns
from controlplane.domain.budget_upkeep import decide_budgets
from controlplane.domain.cordon import decide_expiry
from controlplane.domain.detect import decide_detection
from controlplane.domain.drain import decide_admissions, decide_drains
from controlplane.domain.liveness import decide_liveness
from controlplane.domain.maintenance import decide_maintenance
from controlplane.domain.repair import decide_repairs
from controlplane.domain.sla import decide_ledger
from controlplane.domain.taken import decide_taken
from gridkeeper.decision import Decision, Now
from gridkeeper.snapshot import GlobalState, RegionState, Settings


def _detect(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    detected = decide_detection(state, settings, now)
    return (*decide_liveness(state, world, settings, now), *((detected,) if detected else ()))


def _judge(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    return decide_health(state, settings, now)


def _act(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    budgets = decide_budgets(state, settings, now)
    return (
        *decide_maintenance(state, settings, now),
        *decide_repairs(state, world, settings, now),
        *decide_returns(state, settings, now),
        *decide_drains(state, world, settings, now),
        *decide_expiry(state, settings, now),
        *decide_taken(state, world, now),
        *((budgets,) if budgets else ()),
        *decide_ledger(state, settings, now),
    )


def _detect_more(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    detected = decide_detection(state, settings, now)
    return (detected,) if detected else ()


def _drain_more(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    return decide_admissions(state, world, settings, now)


Decide = Callable[[RegionState, GlobalState, Settings, Now], tuple[Decision, ...]]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step, and what of it is decided again, on what was just written, while there is more than fits into one
    transaction: everything else need not be looked at for that. ``reads``: the kinds of records of the region that
    alone make it worth looking at once; where the step found nothing to do, it is otherwise looked at with the timers.
    (): any change does."""

    decide: Decide
    more: Decide | None = None
    reads: tuple[str, ...] = ()


_HEARD = ("nodes", "sessions", "liveness", "replicas", "probes", "witnesses", "detector")
_FOUND = ("devices", "findings", "incidents")

STAGES: tuple[Stage, ...] = (
    Stage(_detect, _detect_more, (*_HEARD, *_FOUND, "events", "repeats")),
    Stage(_judge, None, (*_FOUND, "nodes", "liveness", "repairs", "cordons")),
    Stage(_act, _drain_more),
)
"""The path of a fault in three steps: event to finding, finding to health, health to drain. A leader decides each on
what the one before has written, so that a fault goes all the way in one round over the region instead of three. The
ledger comes with the last: it sees each health that was written, also one that a drain replaces at once."""

MOST_AGAIN = 40
"""A stage is decided again at most so often before the region is looked at as a whole."""


def decide_region(state: RegionState, world: GlobalState, settings: Settings, now: Now) -> tuple[Decision, ...]:
    """All stages on one state. Derived from durable state alone, so deciding twice is harmless.

    No two of the decisions touch the same key: of those that would, only the first is returned, and the rest are
    decided again on the state that it leaves.
    """
    return disjoint(decision for stage in STAGES for decision in stage.decide(state, world, settings, now))


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
