"""How decisions name things and say times. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from gridkeeper.ids import DeviceId

SEPARATOR = ":"
"""Joins the parts of an id that we make. Node and slot names may hold dots and dashes but no colon, so no two
subjects share an id."""


def slug(subject: str) -> str:
    """A device or node id as the beginning of another id: ``east-1/gpu3`` -> ``east-1:gpu3``."""
    return subject.replace("/", SEPARATOR)


def made_id(subject: str, *parts: object) -> str:
    """``made_id("east-1/gpu3", "memory", 812)`` -> ``east-1:gpu3:memory:812``."""
    return SEPARATOR.join((slug(subject), *(str(part) for part in parts)))


def clock_time(ms: int) -> str:
    """``12:03:04 UTC``."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M:%S UTC")


def moment(ms: int) -> str:
    """``2026-11-24 12:03 UTC``, with seconds if there are any."""
    when = datetime.fromtimestamp(ms / 1000, UTC)
    return when.strftime("%Y-%m-%d %H:%M:%S UTC" if when.second else "%Y-%m-%d %H:%M UTC")


def duration(ms: int) -> str:
    """``0.4 s``, ``2 min``, ``3.5 h``."""
    if ms < 120_000:
        return f"{ms / 1000:.1f} s"
    if ms < 7_200_000:
        return f"{ms // 60_000} min"
    return f"{ms / 3_600_000:.1f} h"


def listed(items: tuple[str, ...] | list[str], most: int = 4) -> str:
    """``a, b and 3 more``; ``none`` for nothing."""
    if not items:
        return "none"
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def device_reference(device: DeviceId) -> str:
    """The subject of a decision about a device."""
    return f"device/{device}"
