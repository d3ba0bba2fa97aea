"""What every check is, and how it reads the kernel's files. ``root`` stands for "/", so a check runs on any tree."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from nodeagent.conditions import Conditions

_MOST = 1 << 20  # bytes of one file


class Check(Protocol):
    """Blocking, in a thread of its own (see ``apart``), one look after the other. What cannot be read is not known: it
    neither begins nor ends a condition."""

    @property
    def period_ms(self) -> int:
        """How often ``look`` is worth its cost."""
        ...

    def look(self, seen: Conditions, now_ms: int) -> None:
        """Read, and put into ``seen`` what is new. ``now_ms``: boot-time clock."""
        ...


def text(path: Path) -> str:
    """The file's text without surrounding space; "" if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_MOST).strip()
    except OSError:  # absent, or a driver that answers with an error (a link that is down has no speed)
        return ""


def number(path: Path) -> float | None:
    """The file's number; None if it holds none."""
    try:
        return float(int(text(path), 0))
    except ValueError:
        return None


def total(paths: list[Path]) -> float | None:
    """The sum over files that hold a number; None if none does."""
    found = [value for path in paths if (value := number(path)) is not None]
    return sum(found) if found else None
