"""A job that lives on the promises of regions never has two owners: whatever is slow, lost, cut off or joins late."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from failover.domain.indexes import released
from gridkeeper.ids import RegionId
from gridkeeper.snapshot import GlobalState
from tests.unit.promise_model import NORTH, WEST, Model, Rules


@given(st.integers(0, 2**48))
def test_the_old_owner_is_dead_before_there_is_a_new_one(seed: int) -> None:
    """Protects: rule 4.1 while the global store is away, on timings without slack."""
    assert Model(seed, Rules()).run().overlap_ms <= 0


def test_promises_keep_jobs_alive_and_jobs_are_taken_over_in_the_end() -> None:
    """A rule that never renews, or never lets go, would be safe too."""
    runs = [Model(seed, Rules()).run() for seed in range(100)]
    lived = [run for run in runs if run.renewed_by_promise and run.ends_ms > run.blind_ms + 8_000]
    taken = {run.decider for run in runs if run.taken_ms >= 0}
    assert len(lived) >= 5
    assert {WEST, NORTH} <= taken
    assert sum(run.taken_ms >= 0 for run in runs) >= 20


def _at_once(world: GlobalState, owner: Any, run: Any, mono_ms: int, timings: Any) -> str:
    """R from the intent, whatever the fence."""
    return released(replace(world, failsafe=None), owner, run, mono_ms, timings)


def _unnamed(world: GlobalState, owner: Any, run: Any, mono_ms: int, timings: Any) -> str:
    """The fence is waited for, but not that the other region asks ours."""
    everybody = tuple(world.grants)
    grants = {name: replace(g, record=replace(g.record, peers=everybody)) for name, g in world.grants.items()}
    return _at_first(replace(world, grants=grants), owner, run, mono_ms, timings)


def _at_first(world: GlobalState, owner: Any, run: Any, mono_ms: int, timings: Any) -> str:
    """R is reckoned from intent and fence, though the other region began to ask ours only later."""
    assert world.failsafe is not None
    failsafe = replace(world.failsafe, named=dict.fromkeys(world.grants, 0))
    return released(replace(world, failsafe=failsafe), owner, run, mono_ms, timings)


def _hasty(world: GlobalState, owner: Any, run: Any, mono_ms: int, timings: Any) -> str:
    """A tenth of R is left out."""
    return released(world, owner, run, mono_ms + timings.takeover_ms // 10, timings)


WEAKENED: dict[str, Rules] = {
    "nobody refuses": Rules(refuse=lambda here, ask, fence: ""),
    "R is reckoned from the intent": Rules(release=_at_once),
    "who decides need not be asked": Rules(release=_unnamed),
    "since when it is asked does not matter": Rules(release=_at_first),
    "all regions are named at once": Rules(name=lambda world, here: tuple(r for r in world.grants if r != here)),
    "R is cut short": Rules(release=_hasty),
    "one region need not be asked": Rules(asked=lambda regions: regions - {WEST}),
    "its own region need not be asked": Rules(asked=lambda regions: regions - {RegionId("east")}),
}


@pytest.mark.parametrize("rule", WEAKENED)
def test_each_part_of_the_rule_is_needed(rule: str) -> None:
    """Protects: the model itself, and every clause of ``failover.domain.promises``: without it there are two owners."""
    assert any(Model(seed, WEAKENED[rule]).run().overlap_ms > 0 for seed in range(300))
