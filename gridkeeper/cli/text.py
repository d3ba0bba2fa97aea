"""Times, spans and sizes as people read and write them."""

from __future__ import annotations

import datetime
import re

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART = re.compile(r"(\d+)(ms|s|m|h|d)")


def span(ms: int) -> str:
    """A duration, two units at most: ``850ms``, ``12.3s``, ``4m5s``, ``2h3m``, ``3d4h``; negative: ``-``."""
    if ms < 0:
        return "-"
    if ms < 1_000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f}s".replace(".0s", "s")
    if ms < 3_600_000:
        return f"{ms // 60_000}m{ms % 60_000 // 1_000}s"
    if ms < 86_400_000:
        return f"{ms // 3_600_000}h{ms % 3_600_000 // 60_000}m"
    return f"{ms // 86_400_000}d{ms % 86_400_000 // 3_600_000}h"


def age(at_ms: int, now_ms: int) -> str:
    """How long ago ``at_ms`` (wall time) was; 0: not known. Clocks may differ a little: never negative."""
    return span(max(0, now_ms - at_ms)) if at_ms else "-"


def moment(at_ms: int) -> str:
    """UTC to the millisecond: ``2026-11-24 02:11:05.123Z``; 0: ``-``."""
    if not at_ms:
        return "-"
    whole, rest = divmod(at_ms, 1_000)
    try:
        when = datetime.datetime.fromtimestamp(whole, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return str(at_ms)
    return f"{when:%Y-%m-%d %H:%M:%S}.{rest:03d}Z"


def size(count: int) -> str:
    """Bytes: ``512 B``, ``3.4 MiB``."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def parse_moment(text: str, now_ms: int) -> int:
    """Wall time in ms of ``2026-11-25T05:00`` (UTC unless it has an offset) or ``+2h`` (from ``now_ms``). Raises
    ``ValueError`` with the text and the remedy."""
    if text.strip().startswith("+"):
        return now_ms + parse_span(text.strip()[1:])
    try:
        when = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is no moment; write for example 2026-11-25T05:00Z or +2h") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return round(when.timestamp() * 1_000)


def parse_span(text: str) -> int:
    """Milliseconds of ``90s``, ``2h30m``, ``500ms``. Raises ``ValueError`` with the text and the remedy."""
    compact = text.strip().replace(" ", "")
    if not compact or _PART.sub("", compact):
        raise ValueError(f"{text!r} is not a duration; write for example 30s, 5m, 2h30m or 1d")
    return sum(int(number) * _UNITS_MS[unit] for number, unit in _PART.findall(compact))
