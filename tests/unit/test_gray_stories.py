"""What the stories of gray failures rest on: with the comparison switched off, or for too short a time, they fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.simulate.gray import POLICY, STORIES
from chaos.simulate.play import Outcome, play
from gridkeeper.policy.model import Mode, PeerPolicy, Policy


def _played(number: int, peers: PeerPolicy) -> Outcome:
    story = STORIES[number]
    return play(replace(story, shape=replace(story.shape, policy=Policy(peers=peers))), 1)


@pytest.mark.parametrize(("number", "wanted"), [(0, "is convicted"), (1, "hangs")])
def test_switched_off_nothing_is_found(number: int, wanted: str) -> None:
    """Protects: ``mode: off``, and that the stories can fail."""
    outcome = _played(number, replace(POLICY.peers, mode=Mode.OFF))
    assert [f"{wanted}: not within" in claim.detail for claim in outcome.false] == [True]
    assert not outcome.violations


def test_what_lasts_too_short_is_not_told() -> None:
    """Protects: a stall of 12 s is no hang for a policy that gives 30."""
    outcome = _played(1, replace(POLICY.peers, hang_ms=30_000))
    assert ["hangs: not within" in claim.detail for claim in outcome.false] == [True]
