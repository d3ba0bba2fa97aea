"""Running a repair's command on this host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class CannotTell(Exception):
    """Whether the command has done anything is not known."""


@dataclass(frozen=True, slots=True)
class Ended:
    """``code``: exit status; negative: the signal. ``output``: the end of what it said, both streams."""

    code: int
    output: str
    timed_out: bool = False


class HostRunner(Protocol):
    async def run(self, argv: Sequence[str], environment: Mapping[str, str], timeout_ms: int) -> Ended:
        """Run it to its end; past the timeout its whole process group is killed. A command that cannot be started ends
        with status 127. Raises ``CannotTell``."""
        ...
