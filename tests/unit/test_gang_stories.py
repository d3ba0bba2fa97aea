"""A job on three nodes in the deterministic simulator: one member is lost, whatever the seed the others stay, the spare
takes its place, no two epochs overlap, and no step is lost that a checkpoint of all ranks holds."""

from __future__ import annotations

import pytest

from chaos.simulate.gangs import GANGS
from chaos.simulate.library import run
from tests.unit.test_simulation import faults


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name in GANGS for seed in (1, 2)])
def test_a_gang_goes_on_without_the_member_that_it_lost(name: str, seed: int) -> None:
    """Protects: all or nothing, one epoch at a time, a consistent checkpoint, replacement before a move of regions."""
    assert not faults(run(name, seed))


@pytest.mark.parametrize("name", GANGS)
def test_and_so_it_does_when_stores_fail_now_and_then(name: str) -> None:
    assert not faults(run(name, 1, rough=True))


def test_one_seed_is_one_history() -> None:
    """Protects: members' replicas race for one record, and the simulator must replay it."""
    assert run("gang-member-fails", 3).history.digest() == run("gang-member-fails", 3).history.digest()
