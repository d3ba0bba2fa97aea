"""What a checker found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """``at_ms``: virtual time of the entry that broke the rule."""

    at_ms: int
    invariant: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.at_ms / 1000:8.3f} s  VIOLATED {self.invariant}: {self.sentence}"
