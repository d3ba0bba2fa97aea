"""All stories by name."""

from __future__ import annotations

from chaos.simulate.books import STORIES as BOOKS
from chaos.simulate.gangs import GANGS
from chaos.simulate.play import Outcome, Story, play
from chaos.simulate.regions import REGIONS
from chaos.simulate.silences import SILENCES
from chaos.simulate.stories import FAULTS

STORIES: dict[str, Story] = {**FAULTS, **SILENCES, **REGIONS}
"""Of jobs on one node."""
ALL_STORIES: dict[str, Story] = {**STORIES, **GANGS, **BOOKS}


def run(name: str, seed: int, rough: bool = False) -> Outcome:
    """Play a story of ``ALL_STORIES`` (see ``play.play``). Raises ``KeyError`` for a name that is none."""
    return play(ALL_STORIES[name], seed, rough)
