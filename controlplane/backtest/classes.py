"""What a fault class of a repair database stands for, when the trace names no code."""

from __future__ import annotations

from collections.abc import Mapping

from gridkeeper.records.fleet import EventKind

CLASSES: Mapping[str, tuple[EventKind, int]] = {
    "memory": (EventKind.XID, 48),
    "ecc": (EventKind.XID, 48),
    "memory-contained": (EventKind.XID, 94),
    "memory-uncontained": (EventKind.XID, 95),
    "row-remap": (EventKind.XID, 63),
    "row-remap-failed": (EventKind.XID, 64),
    "bus": (EventKind.XID, 79),
    "fallen-off-the-bus": (EventKind.XID, 79),
    "nvlink": (EventKind.XID, 74),
    "link": (EventKind.XID, 74),
    "gsp": (EventKind.XID, 119),
    "firmware": (EventKind.XID, 62),
    "hang": (EventKind.XID, 46),
    "timeout": (EventKind.XID, 109),
    "power": (EventKind.XID, 54),
    "app": (EventKind.XID, 31),
    "application": (EventKind.XID, 31),
    "software": (EventKind.XID, 13),
}
"""Class -> the event that is its usual first sign (NVIDIA, "Analyzing XID Errors"). An assumption: the report names
each class that was read so, and a class file overrides them."""


def normal(word: str) -> str:
    """``Fallen off the Bus`` -> ``fallen-off-the-bus``."""
    return "-".join(word.lower().replace("_", " ").replace("-", " ").split())
