"""A page of lines: wraps, scrolls, keeps its place while its content changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tui.viewmodel.text import Spans, wrap
from tui.widgets.draw import is_dark, line


class Lines(ScrollView, can_focus=True):
    """Lines are wrapped to the width; continued ones are indented by ``indent``."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "down", show=False),
        Binding("k", "scroll_up", "up", show=False),
        Binding("g", "scroll_home", "top", show=False),
        Binding("G", "scroll_end", "end", show=False),
        Binding("space,ctrl+f", "page_down", "page down", show=False),
        Binding("ctrl+b", "page_up", "page up", show=False),
    ]

    def __init__(self, *, id: str | None = None, indent: int = 0) -> None:
        super().__init__(id=id)
        self._source: tuple[Spans, ...] = ()
        self._wrapped: list[Spans] = []
        self._columns = 0
        self._indent = indent

    def show(self, lines: Sequence[Spans]) -> None:
        source = tuple(lines)
        if source != self._source:
            self._source = source
            self._lay_out()

    @property
    def text(self) -> str:
        """Everything it holds, for tests and the clipboard."""
        return "\n".join("".join(s.text for s in spans) for spans in self._source)

    def on_resize(self, event: events.Resize) -> None:
        if self.scrollable_content_region.width != self._columns:
            self._lay_out()

    def _lay_out(self) -> None:
        columns = self.scrollable_content_region.width
        self._columns = columns
        self._wrapped = [part for spans in self._source for part in wrap(spans, max(columns - 2, 10), self._indent)]
        self.virtual_size = Size(columns, len(self._wrapped))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        index = y + int(self.scroll_offset.y)
        columns = self.scrollable_content_region.width
        base = self.rich_style
        if index >= len(self._wrapped):
            return Strip.blank(columns, base)
        return line(self._wrapped[index], columns, base, is_dark(self))

    def action_page_down(self) -> None:
        self.scroll_page_down(animate=False)

    def action_page_up(self) -> None:
        self.scroll_page_up(animate=False)

    def action_scroll_down(self) -> None:
        self.scroll_to(y=self.scroll_offset.y + 1, animate=False)

    def action_scroll_up(self) -> None:
        self.scroll_to(y=self.scroll_offset.y - 1, animate=False)
