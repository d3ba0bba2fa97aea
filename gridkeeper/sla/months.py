"""Calendar months in a contract's billing time zone. Pure (the zones' rules come from the tzdata package)."""

from __future__ import annotations

import re
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gridkeeper.sla.spans import Window

_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


class BadMonth(ValueError):
    """A month or a time zone that there is not."""


def zone_of(name: str) -> ZoneInfo:
    """Raises ``BadMonth``."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadMonth(
            f"zone: {name!r} is no time zone; use a name of the IANA database, like Europe/Berlin"
        ) from error


def month_window(month: str, zone: str) -> Window:
    """From its first to the next month's first midnight there: an hour less or more where the clocks change. Raises
    ``BadMonth``."""
    matched = _MONTH.fullmatch(month)
    if matched is None or matched[1] == "9999":
        raise BadMonth(f"month: {month!r} is no month; write it like 2026-10")
    year, number = int(matched[1]), int(matched[2])
    if year < 1970:
        raise BadMonth(f"month: {month!r} is before 1970; no ledger is that old")
    there = zone_of(zone)
    begin = datetime(year, number, 1, tzinfo=there)
    end = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=there)
    return Window(int(begin.timestamp()) * 1000, int(end.timestamp()) * 1000)


def month_of(at_ms: int, zone: str) -> str:
    """The month there in which a time lies. Raises ``BadMonth``."""
    return datetime.fromtimestamp(at_ms // 1000, zone_of(zone)).strftime("%Y-%m")
