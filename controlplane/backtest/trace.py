"""What is replayed: an inventory, the faults that were seen on it, and what was done about them. Pure."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gridkeeper.ids import DeviceId, NodeId
from gridkeeper.records.common import Action
from gridkeeper.records.fleet import DeviceRecord, EventKind


class BadTrace(ValueError):
    """What is wrong with a trace, labels or class file: file, line, field, value and remedy, one line per fault."""


class Truth(enum.StrEnum):
    """What an operator later found out about one fault, or about one device."""

    UNKNOWN = ""
    REAL = "real"  # the hardware was broken
    FALSE = "false"  # it was not


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that was seen. ``device`` "": on the node. ``count``: sightings. ``repaired_ms`` 0: not told."""

    at_ms: int
    node: NodeId
    device: DeviceId
    kind: EventKind
    code: int
    message: str
    truth: Truth = Truth.UNKNOWN
    repaired_ms: int = 0
    count: int = 1
    source: str = "trace"
    id: str = ""  # of the recorded event

    @property
    def name(self) -> str:
        """``xid 48``; what it is in reports."""
        return f"{self.kind.value} {self.code:X}" if self.kind is EventKind.ASCEND else f"{self.kind.value} {self.code}"


@dataclass(frozen=True, slots=True)
class Drained:
    """One drain. ``state``: admitted, refused, shadow. ``faults``: positions in the trace of what it rests on.
    ``back_ms`` 0: still out when the trace ends."""

    id: str
    device: DeviceId
    state: str
    wanted_ms: int
    admitted_ms: int
    back_ms: int
    action: Action
    rule: str
    reason: str
    faults: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """``faults`` in order of time. ``lemons``: devices that are known to be bad (True) or good (False). ``notes``: what
    was assumed while reading, one sentence each. ``busy``: when each device had a job (from, until); None: not known,
    so that every device may have had one. ``recorded``: what was really drained. ``telemetry``: the recording whose
    samples belong to it."""

    devices: Mapping[DeviceId, DeviceRecord]
    faults: tuple[Fault, ...]
    from_ms: int
    until_ms: int
    lemons: Mapping[DeviceId, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    busy: Mapping[DeviceId, tuple[tuple[int, int], ...]] | None = None
    recorded: tuple[Drained, ...] = ()
    telemetry: Path | None = None


_CODE = re.compile(r"^([a-z_]+)[ :_-]*(?:code[ :_-]*)?(0x)?([0-9a-f]+)$", re.IGNORECASE)
_HEX_KINDS = frozenset({EventKind.ASCEND})


def parse_code(text: str) -> tuple[EventKind, int] | None:
    """``XID 48``, ``xid-48``, ``sxid:20034``, ``ascend 80E01801``, ``host 12`` -> kind and number; None: it is none."""
    match = _CODE.match(text.strip())
    if match is None:
        return None
    word, prefix, digits = match.groups()
    kinds = {kind.value: kind for kind in EventKind}
    kind = kinds.get(word.lower())
    if kind is None:
        return None
    base = 16 if prefix or kind in _HEX_KINDS else 10
    try:
        number = int(digits, base)
    except ValueError:
        return None
    return (kind, number) if number < 1 << 62 else None
