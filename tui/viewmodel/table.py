"""Rows and columns as every list screen shows them, and the filter over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gridkeeper import selector
from gridkeeper.selector import BadSelector, Selector
from tui.viewmodel.text import Spans, Tone, plain


@dataclass(frozen=True, slots=True)
class Ref:
    """An object of the grid. ``kind``: a number of ``api.proto``'s ``Kind``."""

    kind: int
    name: str


LUXURY = 4


@dataclass(frozen=True, slots=True)
class Column:
    """``least``: never narrower while shown. ``flex``: share of the width that is left. ``rank``: columns with the
    highest rank are left out first when there is no room; 0 stays always. ``wish``: columns of rank ``LUXURY`` and more
    are left out also to give this one so much."""

    title: str
    least: int
    flex: int = 0
    rank: int = 0
    right: bool = False
    most: int = 40
    wish: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """``key``: what the cursor stays on. ``picks``: objects inside the row that left and right move between (the
    devices of a node), each one span of the cell in ``pick_column``. ``heading``: takes no cursor; its cells are drawn
    one after the other. A NUL in the key of a heading puts it one level deeper."""

    key: str
    cells: tuple[Spans, ...]
    ref: Ref | None = None
    heading: bool = False
    stale: bool = False
    troubled: bool = False
    picks: tuple[Ref, ...] = ()
    pick_column: int = -1
    labels: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """What a text filter sees."""
        return " ".join(plain(c) for c in self.cells).lower()


@dataclass(frozen=True, slots=True)
class Table:
    """``empty``: what to say when there are no rows, and ``calm`` whether that is good news."""

    columns: tuple[Column, ...]
    rows: Sequence[Row]
    empty: str = "nothing here"
    calm: bool = False


@dataclass(frozen=True, slots=True)
class Filter:
    """Never anything but a filter. ``text`` as typed; one of ``words``, ``selector`` is in force."""

    text: str = ""
    words: tuple[str, ...] = ()
    inverse: bool = False
    selector: Selector = selector.EVERYTHING

    def __bool__(self) -> bool:
        return bool(self.words or self.selector)

    def keeps(self, row: Row) -> bool:
        if self.selector and not self.selector.matches(row.labels):
            return False
        if not self.words:
            return True
        text = row.text()
        return all(word in text for word in self.words) is not self.inverse


def parse_filter(text: str) -> Filter:
    """``word word`` (all of them), ``!word`` (rows without), ``-l key=value,key!=value``. Raises ``BadSelector``."""
    stripped = text.strip()
    if stripped == "-l" or stripped.startswith("-l "):
        return Filter(stripped, selector=selector.parse(stripped[2:].strip()))
    if stripped.startswith("-l"):
        return Filter(stripped, selector=selector.parse(stripped[2:]))
    inverse = stripped.startswith("!")
    return Filter(stripped, tuple(stripped.lstrip("!").lower().split()), inverse)


def filtered(table: Table, chosen: Filter, faults_only: bool = False) -> Table:
    """The rows that pass; a heading stays when a row under it does.

    Raises ``BadSelector`` for a label that no row of the whole table has, so that a typing error is not read as
    "nothing there".
    """
    if not chosen and not faults_only:
        return table
    if chosen.selector and table.rows:
        known = {key for row in table.rows for key in row.labels}
        selector.check_keys(chosen.selector, known)
    kept: list[Row] = []
    headings: list[Row] = []
    for row in table.rows:
        if row.heading:
            depth = _depth(row)
            headings = [*(h for h in headings if _depth(h) < depth), row]
        elif chosen.keeps(row) and (row.troubled or not faults_only):
            kept.extend(headings)
            headings = []
            kept.append(row)
    what = f"nothing matches /{chosen.text}" if chosen else "no faults here"
    return Table(table.columns, kept, f"{what}: esc shows all", calm=not chosen)


def _depth(row: Row) -> int:
    return row.key.count("\x00")


def layout(columns: Sequence[Column], content: Sequence[int], available: int, gap: int = 2) -> dict[int, int]:
    """Column index -> width for those that are shown, in order; they and the gaps fill at most ``available``.

    ``content``: the widest cell of each column. The columns of the highest rank go first when there is no room.
    """
    wanted = [
        max(c.least, min(max(w, len(c.title)), c.most if not c.flex else c.least))
        for c, w in zip(columns, content, strict=True)
    ]
    shown = list(range(len(columns)))

    def total(wishes: bool) -> int:
        sizes = (max(wanted[i], columns[i].wish) if wishes else wanted[i] for i in shown)
        return sum(sizes) + gap * (len(shown) - 1)

    for wishes, least_rank in ((True, LUXURY), (False, 1)):
        while total(wishes) > available:
            optional = [i for i in shown if columns[i].rank >= least_rank]
            if not optional or len(shown) == 1:
                break
            shown.remove(max(optional, key=lambda i: (columns[i].rank, i)))
    widths = {i: wanted[i] for i in shown}
    spare = available - total(wishes=False)
    if spare < 0:  # only the columns that stay always are left: they give way from the right
        for i in reversed(shown):
            give = min(widths[i] - 1, -spare)
            widths[i] -= give
            spare += give
            if spare == 0:
                break
        return widths
    flexible = [i for i in shown if columns[i].flex]
    shares = sum(columns[i].flex for i in flexible)
    for i in flexible:
        widths[i] += spare * columns[i].flex // shares
    return widths


__all__ = [
    "BadSelector",
    "Column",
    "Filter",
    "Ref",
    "Row",
    "Table",
    "Tone",
    "filtered",
    "layout",
    "parse_filter",
]
