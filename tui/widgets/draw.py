"""From spans to what Textual draws. Text is placed as it is, never parsed as markup."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from tui.palette import CURSOR, PICK, STALE, STYLES
from tui.viewmodel.text import Span, Spans, Tone, fit


def is_dark(widget: Widget) -> bool:
    return widget.app.current_theme.dark


def segments(spans: Spans, base: Style, dark: bool) -> list[Segment]:
    """Segments on the background of ``base``."""
    styles = STYLES[dark]
    return [Segment(s.text, base + styles[s.tone]) for s in spans if s.text]


def line(spans: Spans, columns: int, base: Style, dark: bool) -> Strip:
    """One line, exactly ``columns`` wide."""
    return Strip(segments(fit(spans, columns), base, dark), columns)


__all__ = ["CURSOR", "PICK", "STALE", "Span", "Spans", "Tone", "is_dark", "line", "segments"]
