"""Places where a test may end the process, to prove that another one goes on from there.

A failpoint is armed by a file of its name in the directory that ``$GRIDKEEPER_FAILPOINTS`` names; who gets there first
takes the file away (so exactly one process is hit, once) and is killed as by ``kill -9``. Without the variable, which
is the case outside of tests, a failpoint costs one attribute look-up.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

ENVIRONMENT = "GRIDKEEPER_FAILPOINTS"


class Failpoints(Protocol):
    def hit(self, names: Iterable[str]) -> None:
        """Execution is at all of these places."""
        ...


class NoFailpoints:
    def hit(self, names: Iterable[str]) -> None:
        return None


class ArmedFailpoints:
    """``end``: what to do to the process; it does not return."""

    def __init__(self, directory: Path, end: Callable[[], None]) -> None:
        self._directory = directory
        self._end = end

    def hit(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                (self._directory / name).rename(self._directory / f"{name}.hit-{os.getpid()}")
            except FileNotFoundError:
                continue
            self._end()


def from_environment() -> Failpoints:
    """Those of this process."""
    directory = os.environ.get(ENVIRONMENT, "")
    if not directory:
        return NoFailpoints()
    return ArmedFailpoints(Path(directory), lambda: os.kill(os.getpid(), signal.SIGKILL))
