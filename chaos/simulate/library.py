"""All stories by name."""

from __future__ import annotations

from chaos.simulate.play import Outcome, Story, play
from chaos.simulate.regions import REGIONS
from chaos.simulate.silences import SILENCES
from chaos.simulate.stories import FAULTS

STORIES: dict[str, Story] = {**FAULTS, **SILENCES, **REGIONS}


def run(name: str, seed: int, rough: bool = False) -> Outcome:
    """Play a story of ``STORIES`` (see ``play.play``). Raises ``KeyError`` for a name that is none."""
    return play(STORIES[name], seed, rough)
