"""Text as the screens draw it: spans with a tone, and how ages, durations, sizes and numbers read.

Whatever comes from outside goes through ``clean`` once; no text is ever parsed as markup.
"""

from __future__ import annotations

import datetime
import enum
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

MAX_TEXT = 2_000
"""Characters kept of any one field. A terminal is a few hundred wide."""

MAX_CELL = 400
"""Characters kept of one table cell."""

NONE = "–"
"""Shown where there is nothing to show."""


class Tone(enum.Enum):
    """What a piece of text means; a theme gives it a colour. A tone never stands alone: glyph or word says the same."""

    PLAIN = "plain"
    DIM = "dim"
    STRONG = "strong"
    TITLE = "title"
    KEY = "key"
    GOOD = "good"
    BUSY = "busy"
    INFO = "info"
    WARN = "warn"
    BAD = "bad"
    FATAL = "fatal"
    UNKNOWN = "unknown"
    QUIET = "quiet"


@dataclass(frozen=True, slots=True)
class Span:
    """``text`` holds no control characters."""

    text: str
    tone: Tone = Tone.PLAIN


Spans = tuple[Span, ...]

_LINE_BREAKS = {ord(c): " " for c in "\n\r\t\v\f\x85\u2028\u2029"}
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """``text`` fit for one line of a terminal: no escape sequences, no direction overrides, no zero-width tricks, and
    at most ``limit`` characters (an ellipsis says that there was more)."""
    cut = text[: limit + 1]
    if not cut.isascii() or not cut.isprintable():
        cut = "".join(
            "·" if unicodedata.category(c) in _HIDDEN or (unicodedata.combining(c) and cell_len(c) == 0) else c
            for c in cut.translate(_LINE_BREAKS)
        )
    return cut[: limit - 1] + "…" if len(cut) > limit else cut


def span(text: object, tone: Tone = Tone.PLAIN) -> Span:
    """A span of text that came from outside."""
    return Span(clean(str(text)), tone)


def cell(text: object, tone: Tone = Tone.PLAIN) -> Spans:
    """A table cell of one span; empty text shows as a dash."""
    cleaned = clean(str(text), MAX_CELL)
    return (Span(cleaned, tone),) if cleaned else (Span(NONE, Tone.DIM),)


def plain(spans: Iterable[Span]) -> str:
    return "".join(s.text for s in spans)


def width(spans: Iterable[Span]) -> int:
    """Columns on the terminal."""
    return sum(cell_len(s.text) for s in spans)


def fit(spans: Spans, columns: int, right: bool = False) -> Spans:
    """Exactly ``columns`` wide: cut with an ellipsis or padded (on the left if ``right``)."""
    if columns <= 0:
        return ()
    have = width(spans)
    if have <= columns:
        pad = Span(" " * (columns - have))
        if have == columns:
            return spans
        return (pad, *spans) if right else (*spans, pad)
    kept: list[Span] = []
    left = columns - 1
    for s in spans:
        size = cell_len(s.text)
        if size > left:
            kept.append(Span(set_cell_size(s.text, left) + "…", s.tone))
            break
        kept.append(s)
        left -= size
    return tuple(kept)


def joined(parts: Sequence[Spans], between: str = "  ") -> Spans:
    """Parts with a separator between those that are not empty."""
    out: list[Span] = []
    for part in parts:
        if part:
            if out:
                out.append(Span(between, Tone.DIM))
            out.extend(part)
    return tuple(out)


def wrap(spans: Spans, columns: int, indent: int = 0) -> list[Spans]:
    """Lines at most ``columns`` wide, broken at blanks where there are any; lines after the first are indented."""
    columns = max(columns, indent + 8)
    lines: list[list[Span]] = [[]]
    used = 0
    for s in spans:
        for word in _words(s.text):
            size = cell_len(word)
            if used + cell_len(word.rstrip()) > columns and used > (indent if len(lines) > 1 else 0):
                lines.append([Span(" " * indent)] if indent else [])
                used = indent
                word = word.lstrip()
                size = cell_len(word)
            while used + cell_len(word.rstrip()) > columns:
                head = set_cell_size(word, columns - used).rstrip("\x00")
                taken = _taken(word, columns - used)
                lines[-1].append(Span(head[:taken], s.tone))
                lines.append([Span(" " * indent)] if indent else [])
                used, word = indent, word[taken:]
                size = cell_len(word)
            if word:
                lines[-1].append(Span(word, s.tone))
                used += size
    return [tuple(line) for line in lines]


def _taken(word: str, columns: int) -> int:
    used = 0
    for index, char in enumerate(word):
        used += cell_len(char)
        if used > columns:
            return max(index, 1)
    return len(word)


def _words(text: str) -> Iterable[str]:
    start = 0
    for index in range(1, len(text)):
        if text[index - 1] == " " and text[index] != " ":
            yield text[start:index]
            start = index
    if text:
        yield text[start:]


# -- numbers ------------------------------------------------------------------------------------------------------


def duration(ms: int) -> str:
    """``850 ms``, ``12.3 s``, ``4m 05s``, ``3h 12m``, ``9d 04h``: two units at most, always rounded down."""
    if ms < 0:
        return NONE
    if ms < 1_000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms // 1000}.{ms % 1000 // 100} s"
    minutes = ms // 60_000
    if minutes < 60:
        return f"{minutes}m {ms // 1000 % 60:02d}s"
    if minutes < 60 * 24:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes // 1440}d {minutes // 60 % 24:02d}h"


def age(since_ms: int, now_ms: int) -> str:
    """How long ago, in one unit of whole numbers (``5s``, ``12m``, ``3h``, ``9d``); a dash for "never"."""
    if since_ms <= 0:
        return NONE
    seconds = max(now_ms - since_ms, 0) // 1000
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 7_200:
        return f"{seconds // 60}m"
    if seconds < 48 * 3_600:
        return f"{seconds // 3600}h"
    return f"{seconds // 86_400}d"


def clock_time(ms: int) -> str:
    """``02:17:45`` UTC."""
    return _utc(ms, "%H:%M:%S")


def date_time(ms: int) -> str:
    """``2026-11-24 02:17:45.120Z``; a dash for 0."""
    return _utc(ms, "%Y-%m-%d %H:%M:%S.") + f"{ms % 1000:03d}Z" if 0 < ms < _FAR else NONE


_FAR = 253_402_300_800_000  # the year 10000


def _utc(ms: int, form: str) -> str:
    if not 0 < ms < _FAR:
        return NONE
    return datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC).strftime(form)


def size(count: int) -> str:
    """``1.5 GiB``."""
    value = float(max(count, 0))
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def number(value: float, digits: int = 4) -> str:
    """A measured value, short; a dash when it is not finite."""
    if not math.isfinite(value):
        return NONE
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.{digits}g}"


def minutes(ms: int) -> str:
    """Minutes with one decimal, rounded up so that no downtime looks like none."""
    tenths = -(-max(ms, 0) // 6_000)
    return f"{tenths // 10}.{tenths % 10}"


def percent(fraction: str) -> str:
    """``"a/b"`` as a percentage with four decimals, rounded *down*: 100 is only shown when it is exactly so.
    ``""`` or nonsense: a dash."""
    above, slash, below = fraction.partition("/")
    if not slash or not above.isdigit() or not below.isdigit() or int(below) == 0:
        return NONE
    units = int(above) * 1_000_000 // int(below)
    return "100" if units >= 1_000_000 else f"{units // 10_000}.{units % 10_000:04d}"


# -- little pictures ----------------------------------------------------------------------------------------------

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], columns: int) -> str:
    """The newest ``columns`` values as bars between their own least and greatest; a gap is a dot."""
    recent = list(values)[-columns:] if columns > 0 else []
    known = [v for v in recent if math.isfinite(v)]
    if not known:
        return ""
    low, high = min(known), max(known)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((v - low) * scale)] if math.isfinite(v) else "·" for v in recent)


def progress(done: int, total: int, columns: int, tone: Tone) -> Spans:
    """``━━━╌╌``: ``done`` of ``total``."""
    total = max(total, 1)
    full = min(max(done, 0), total) * columns // total
    return (Span("━" * full, tone), Span("╌" * (columns - full), Tone.DIM))
