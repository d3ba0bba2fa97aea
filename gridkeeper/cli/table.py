"""Tables: drawn with rich on a terminal, plain aligned columns in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

GOOD = frozenset({"healthy", "alive", "running", "succeeded", "done", "up", "resolved", "applied"})
BAD = frozenset({"failed", "fatal", "error", "unreachable", "expired", "down", "refused", "retired", "drained"})
WATCHED = frozenset(
    {"suspect", "degraded", "draining", "warning", "open", "unknown", "evacuating", "stopping", "probation", "true"}
)


def style(text: str) -> str:
    """The colour of a state: green, red, yellow or none."""
    return "green" if text in GOOD else "red" if text in BAD else "yellow" if text in WATCHED else ""


def print_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    states: frozenset[int] = frozenset(),
    file: TextIO | None = None,
) -> None:
    """``states``: indexes of columns that are coloured by what they say."""
    out = file or sys.stdout
    if out.isatty():
        _rich(titles, rows, states, out)
    else:
        for line in plain_lines(titles, rows):
            print(line, file=out)


def widths(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max([len(title), *(len(row[i]) for row in rows)]) for i, title in enumerate(titles)]


def plain_line(row: Sequence[str], width: Sequence[int]) -> str:
    return "  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip()


def plain_lines(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """One line per row, columns two spaces apart, no colour, nothing cut off."""
    clean = [[one_line(cell) for cell in row] for row in rows]
    width = widths(titles, clean)
    return [plain_line(titles, width), *(plain_line(row, width) for row in clean)]


def one_line(text: str) -> str:
    """What an agent or a user wrote must not steer the terminal or break the line."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)


def _rich(titles: Sequence[str], rows: Sequence[Sequence[str]], states: frozenset[int], out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, title in enumerate(titles):
        last = index == len(titles) - 1
        table.add_column(title, no_wrap=not last, overflow="fold" if last else "ellipsis")
    for row in rows:
        table.add_row(*(Text(one_line(c), style(c) if i in states else "") for i, c in enumerate(row)))
    Console(file=out).print(table)
