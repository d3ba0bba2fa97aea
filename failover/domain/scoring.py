"""What a place is worth: marks per criterion, weighed by the policy. Pure, and in whole numbers, so that every process
comes to the same result.

Filters come first: what a filter leaves out has no score, so no weight brings it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gridkeeper.records.jobs import Candidate

FULL = 1000
"""The most points of a criterion."""

MOST_FITTING = 4
MOST_LEFT_OUT = 4
"""How many candidates a record keeps."""


class Mark(NamedTuple):
    """``points``: 0 to ``FULL``."""

    criterion: str
    points: int
    weight: int


def weighed(marks: Iterable[Mark]) -> int:
    """By which candidates are compared that are marked by the same criteria."""
    return sum(mark.points * mark.weight for mark in marks)


def candidate(name: str, marks: Sequence[Mark]) -> Candidate:
    """One that fits, as it is recorded."""
    weight = sum(mark.weight for mark in marks)
    told = ", ".join(f"{mark.criterion} {mark.points}×{mark.weight}" for mark in marks if mark.weight)
    return Candidate(name, "", weighed(marks) // weight if weight else 0, told)


def left_out(name: str, why: str) -> Candidate:
    """One that a filter leaves out."""
    return Candidate(name, why, 0, "")
