"""A table that draws only what is visible, keeps the cursor on its object while rows come and go, and repaints only the
lines that changed."""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tui.viewmodel.table import Ref, Row, Table, layout
from tui.viewmodel.text import Span, Spans, Tone, fit, joined, width
from tui.widgets.draw import CURSOR, PICK, STALE, is_dark, line, segments

MEASURED = 200
"""Rows whose cells decide the widths of the columns, besides the visible ones."""

GUTTER = 2


class RowTable(ScrollView, can_focus=True):
    """Show tables with ``show``. The first line holds the titles and does not scroll."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "down", show=False),
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "page down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "page up", show=False),
        Binding("home,g", "edge(-1)", "first", show=False),
        Binding("end,G", "edge(1)", "last", show=False),
        Binding("left,h", "pick(-1)", "device", show=False),
        Binding("right", "pick(1)", "device", show=False),
        Binding("enter", "open", "open", show=False),
    ]

    class Opened(Message):
        """Enter, or a click on the row that has the cursor."""

        def __init__(self, ref: Ref) -> None:
            super().__init__()
            self.ref = ref

    class Moved(Message):
        """The cursor is on another object."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._table = Table((), ())
        self._widths: dict[int, int] = {}
        self._content: list[int] = []
        self._cursor = 0
        self._key = ""
        self._pick = -1
        self._columns = 0

    # -- what is shown --------------------------------------------------------------------------------------------

    def show(self, table: Table) -> None:
        """Show ``table``; the cursor stays on its object, or near to where it was."""
        old, self._table = self._table, table
        if old.columns != table.columns:
            self._content = []
        self._place_cursor()
        relaid = self._lay_out()
        if len(old.rows) != len(table.rows):
            self._measure()
        if relaid or old.columns != table.columns or not old.rows or not table.rows:
            self.refresh()
            return
        top = int(self.scroll_offset.y)
        for y in range(1, self.size.height):
            index = top + y - 1
            before = old.rows[index] if index < len(old.rows) else None
            after = table.rows[index] if index < len(table.rows) else None
            if before is not after and before != after:
                self.refresh(Region(0, y, self.size.width, 1))

    @property
    def ref(self) -> Ref | None:
        """What the cursor is on: the picked device, else the row's object."""
        row = self.row
        if row is None:
            return None
        return row.picks[self._pick] if 0 <= self._pick < len(row.picks) else row.ref

    @property
    def row(self) -> Row | None:
        rows = self._table.rows
        return rows[self._cursor] if 0 <= self._cursor < len(rows) and not rows[self._cursor].heading else None

    @property
    def text(self) -> str:
        """All rows, for tests."""
        return "\n".join(" | ".join("".join(s.text for s in c) for c in row.cells) for row in self._table.rows)

    def select(self, key: str) -> None:
        """Put the cursor on the row with ``key``, if it is there."""
        for index, row in enumerate(self._table.rows):
            if row.key == key and not row.heading:
                self._go(index)
                return

    def _place_cursor(self) -> None:
        rows = self._table.rows
        if not rows:
            self._cursor, self._key = 0, ""
            return
        if not (0 <= self._cursor < len(rows) and rows[self._cursor].key == self._key):
            found = next((i for i, row in enumerate(rows) if row.key == self._key), None) if self._key else None
            moved = found is not None and found != self._cursor
            self._cursor = found if found is not None else self._near(min(self._cursor, len(rows) - 1), 1)
            self._key = rows[self._cursor].key
            if moved or found is None:
                self.call_after_refresh(self._reveal)
                self.post_message(self.Moved())

    def _near(self, index: int, direction: int) -> int:
        """The nearest row that takes the cursor, looking first in ``direction``."""
        rows = self._table.rows
        for step in (direction, -direction):
            at = index
            while 0 <= at < len(rows):
                if not rows[at].heading:
                    return at
                at += step
        return index

    def _lay_out(self) -> bool:
        """Widths only grow while the size stays, so that columns do not jump."""
        columns = self.scrollable_content_region.width
        table = self._table
        if columns != self._columns or len(self._content) != len(table.columns):
            self._content = [0] * len(table.columns)
            self._columns = columns
        top = int(self.scroll_offset.y)
        for row in (*table.rows[:MEASURED], *table.rows[max(top, MEASURED) : top + self.size.height]):
            if not row.heading:
                for index, spans in enumerate(row.cells[: len(self._content)]):
                    self._content[index] = max(self._content[index], width(spans))
        widths = layout(table.columns, self._content, columns - GUTTER)
        changed = widths != self._widths
        self._widths = widths
        return changed

    def _measure(self) -> None:
        self.virtual_size = Size(self.scrollable_content_region.width, len(self._table.rows) + 1)

    def on_resize(self, event: events.Resize) -> None:
        self._lay_out()
        self._measure()
        self._reveal()
        self.refresh()

    # -- drawing --------------------------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        base, dark, columns = self.rich_style, is_dark(self), self.scrollable_content_region.width
        if y == 0:
            return self._titles(columns)
        rows = self._table.rows
        if not rows:
            return self._nothing(y, columns)
        index = y - 1 + int(self.scroll_offset.y)
        if index >= len(rows):
            return Strip.blank(columns, base)
        row = rows[index]
        if row.heading:
            deep = "\x00" in row.key
            spans = fit((Span(" "), *joined(row.cells)), columns) if deep else _ruled(joined(row.cells), columns)
            return line(spans, columns, base, dark)
        here = index == self._cursor
        if here:
            base = base + CURSOR[dark] if self.has_focus else base
        parts: list[Segment] = segments((self._gutter(row, here),), base, dark)
        for number, (column, size) in enumerate(self._widths.items()):
            if number:
                parts.append(Segment("  ", base))
            spans = row.cells[column] if column < len(row.cells) else ()
            drawn = segments(fit(spans, size, self._table.columns[column].right), base, dark)
            if here and column == row.pick_column and 0 <= self._pick < len(drawn):
                picked = drawn[self._pick]
                drawn[self._pick] = Segment(picked.text, PICK[dark])
            parts.extend(drawn)
        if row.stale:
            parts = [Segment(s.text, (s.style or base) + STALE) for s in parts]
        return Strip(parts).adjust_cell_length(columns, base)

    def _gutter(self, row: Row, here: bool) -> Span:
        if here:
            return Span("~▌" if row.stale else " ▌", Tone.TITLE)
        return Span("~ " if row.stale else "  ", Tone.BAD)

    def _titles(self, columns: int) -> Strip:
        parts: list[Span] = [Span(" " * GUTTER)]
        for number, (column, size) in enumerate(self._widths.items()):
            spec = self._table.columns[column]
            parts += [Span("  " if number else ""), *fit((Span(spec.title, Tone.KEY),), size, spec.right)]
        return line(tuple(parts), columns, self.rich_style, is_dark(self))

    def _nothing(self, y: int, columns: int) -> Strip:
        if y != max(2, self.size.height // 3):
            return Strip.blank(columns, self.rich_style)
        tone = Tone.GOOD if self._table.calm else Tone.DIM
        text = ("✓ " if self._table.calm else "") + self._table.empty
        spans: Spans = (Span(" " * max(0, (columns - len(text)) // 2)), Span(text, tone))
        return line(spans, columns, self.rich_style, is_dark(self))

    # -- moving ---------------------------------------------------------------------------------------------------

    def _go(self, index: int) -> None:
        rows = self._table.rows
        if not rows:
            return
        before = self._cursor
        self._cursor = index
        self._key = rows[index].key
        self._pick = min(self._pick, len(rows[index].picks) - 1)
        self._reveal()
        top = int(self.scroll_offset.y)
        for at in (before, index):
            self.refresh(Region(0, at - top + 1, self.size.width, 1))
        self.post_message(self.Moved())

    def _reveal(self) -> None:
        """Scroll so that the cursor is visible, with the headings above the first row."""
        page = max(1, self.scrollable_content_region.height - 1)
        top = int(self.scroll_offset.y)
        at = self._cursor
        if at < top or at == self._near(0, 1):
            first = at
            while first > 0 and self._table.rows[first - 1].heading and at - first + 1 < page:
                first -= 1
            if first < top:
                self.scroll_to(y=first, animate=False, force=True)
        elif at >= top + page:
            self.scroll_to(y=at - page + 1, animate=False, force=True)

    def action_move(self, by: int) -> None:
        rows, at = self._table.rows, self._cursor + by
        while 0 <= at < len(rows) and rows[at].heading:
            at += by
        if 0 <= at < len(rows):
            self._go(at)

    def action_page(self, direction: int) -> None:
        if rows := self._table.rows:
            target = min(max(self._cursor + direction * max(1, self.size.height - 2), 0), len(rows) - 1)
            self._go(self._near(target, direction))

    def action_edge(self, direction: int) -> None:
        if rows := self._table.rows:
            self._go(self._near(0, 1) if direction < 0 else self._near(len(rows) - 1, -1))

    def action_pick(self, by: int) -> None:
        row = self.row
        if row is None or not row.picks:
            return
        self._pick = min(max(self._pick + by, -1), len(row.picks) - 1)
        self.refresh(Region(0, self._cursor - int(self.scroll_offset.y) + 1, self.size.width, 1))
        self.post_message(self.Moved())

    def action_open(self) -> None:
        if (ref := self.ref) is not None:
            self.post_message(self.Opened(ref))

    def on_click(self, event: events.Click) -> None:
        index = event.y - 1 + int(self.scroll_offset.y)
        rows = self._table.rows
        if event.y < 1 or not 0 <= index < len(rows) or rows[index].heading:
            return
        again = index == self._cursor
        pick = self._pick_at(rows[index], event.x)
        same = pick == self._pick
        self._pick = pick
        self._go(index)
        if again and same:
            self.action_open()

    def _pick_at(self, row: Row, x: int) -> int:
        left = GUTTER
        for column, size in self._widths.items():
            if column == row.pick_column and left <= x < left + size:
                for number, one in enumerate(row.cells[column][: len(row.picks)]):
                    left += width((one,))
                    if x < left:
                        return number
            left += size + 2
        return -1

    def on_focus(self, event: events.Focus) -> None:
        self.refresh()

    def on_blur(self, event: events.Blur) -> None:
        self.refresh()


def _ruled(spans: Spans, columns: int) -> Spans:
    rest = columns - width(spans) - 3
    return (Span(" "), *spans, Span(" " + "─" * rest if rest > 0 else "", Tone.DIM))
