"""Plays a scenario on a simulated grid from a seed, and judges what came of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from chaos.simulate.grid import NotSeen, Shape, SimGrid
from chaos.simulate.history import History
from chaos.simulate.invariants import check
from chaos.simulate.loop import run_virtual
from chaos.simulate.store import FaultRates
from chaos.simulate.violation import Violation
from gridkeeper.snapshot import Settings

LIMIT_S = 600
"""Of virtual time, per run."""

ROUGH = FaultRates(refused=0.01, request_lost=0.005, reply_lost=0.005, late=0.005, late_ms=3_000)
"""Of every hundred calls to a store between two and three go wrong."""


@dataclass(frozen=True, slots=True)
class Claim:
    """``detail``: what was found. ``calm``: expected only while the stores do not fail: a job may then be fenced and
    moved once more, which is no fault."""

    text: str
    true: bool
    detail: str = ""
    calm: bool = False


Play = Callable[[SimGrid], Awaitable[tuple[Claim, ...]]]


@dataclass(frozen=True, slots=True)
class Story:
    name: str
    title: str
    play: Play
    shape: Shape


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. ``good``: every claim that was expected is true and no invariant was violated."""

    story: str
    seed: int
    rough: bool
    history: History
    claims: tuple[Claim, ...]
    violations: tuple[Violation, ...]

    @property
    def false(self) -> tuple[Claim, ...]:
        """What should be true and is not."""
        return tuple(claim for claim in self.claims if not claim.true and not (claim.calm and self.rough))

    @property
    def good(self) -> bool:
        return not self.violations and not self.false


def play(story: Story, seed: int, rough: bool = False) -> Outcome:
    """One run from a seed. ``rough``: on stores that fail now and then. Raises ``TimeoutError`` if it does not end, and
    what ended a daemon that nobody ended."""
    shape = replace(story.shape, weather=ROUGH) if rough else story.shape
    settings = Settings(shape.timings, shape.policy)

    async def main() -> Outcome:
        async with SimGrid(f"{story.name}/{seed}", shape) as grid:
            try:
                claims = await story.play(grid)
            except NotSeen as error:
                claims = (Claim("everything came in time", False, str(error)),)
            history = History(grid.history)
        return Outcome(story.name, seed, rough, history, (*claims, failures.claim()), check(history, settings))

    with Failures() as failures:
        return run_virtual(main(), LIMIT_S)


class Failures(logging.Handler):
    """Hears of exceptions that a daemon survived and logged: in a simulation they are failures."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._found.append(f"{record.getMessage()}: {_cause(record.exc_info[1])!r}")

    def __enter__(self) -> Failures:
        logging.getLogger("gridkeeper").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("gridkeeper").removeHandler(self)

    def claim(self) -> Claim:
        return Claim("no part of a daemon failed", not self._found, "; ".join(self._found[:3]))


def _cause(error: BaseException) -> BaseException:
    """The first exception in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
