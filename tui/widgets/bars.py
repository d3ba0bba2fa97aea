"""One-line bars: header, tabs, status, hints."""

from __future__ import annotations

from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tui.viewmodel.text import Span, Spans, Tone, fit, width
from tui.widgets.draw import is_dark, line


class Bar(Widget):
    """Spans on the left, and on the right if there is room for both; else the right ones win (they say how fresh the
    data is)."""

    DEFAULT_CSS = "Bar { height: 1; width: 1fr; }"

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._left: Spans = ()
        self._right: Spans = ()

    def show(self, left: Spans, right: Spans = ()) -> None:
        if (left, right) != (self._left, self._right):
            self._left, self._right = left, right
            self.refresh()

    @property
    def text(self) -> str:
        """What it says, for tests and screen readers."""
        return "".join(s.text for s in (*self._left, Span(" "), *self._right))

    def render_line(self, y: int) -> Strip:
        columns = self.size.width
        right = fit(self._right, min(width(self._right), columns - 2)) if self._right else ()
        left = fit((Span(" "), *self._left), columns - width(right) - 3)
        return line((*left, Span("  "), *right, Span(" ")), columns, self.rich_style, is_dark(self))


class Tabs(Bar):
    """The screens of the number keys; a click goes there."""

    class Chosen(Message):
        def __init__(self, screen: str) -> None:
            super().__init__()
            self.screen = screen

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._zones: tuple[tuple[int, int, str], ...] = ()

    def show_tabs(self, tabs: tuple[tuple[str, str, str], ...], active: str) -> None:
        """``tabs``: (screen, title, badge)."""
        spans: tuple[Span, ...] = ()
        zones: tuple[tuple[int, int, str], ...] = ()
        for index, (screen, title, badge) in enumerate(tabs, 1):
            here = screen == active
            start = width(spans)
            text = f" {title}" + (f" {badge}" if badge else "") + " "
            tone = Tone.TITLE if here else Tone.PLAIN
            spans += (Span(f"▎{index}" if here else f" {index}", Tone.TITLE if here else Tone.DIM), Span(text, tone))
            zones += ((start + 1, width(spans) + 1, screen),)
        self._zones = zones
        self.show(spans)

    def on_click(self, event: events.Click) -> None:
        for start, end, screen in self._zones:
            if start <= event.x < end:
                self.post_message(self.Chosen(screen))
                return
