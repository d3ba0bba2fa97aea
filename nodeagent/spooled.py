"""One spooled event as bytes, the merging of equal events, and the log that stands in for a disk."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError

from gridkeeper.ports.disk import DiskError
from gridkeeper.v1 import records_pb2
from gridkeeper.v1.agent_pb2 import AgentEvent

MEMORY_BYTES = 4 << 20
OVERFLOW_SPOOL = 1
"""Code of the ``OVERFLOW`` event "the spool was full"."""

_HEAD = struct.Struct(">BqqH")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Spooled:
    """One event as kept. ``seen_ms``: boot-time clock of the host's boot ``boot_id``; ``wall_ms``: the same moment on
    the wall clock, used only when that boot is over."""

    event: AgentEvent
    seen_ms: int
    wall_ms: int
    boot_id: str


def to_bytes(spooled: Spooled) -> bytes:
    boot = spooled.boot_id.encode()
    head = _HEAD.pack(_VERSION, spooled.seen_ms, spooled.wall_ms, len(boot))
    return head + boot + spooled.event.SerializeToString()


def from_bytes(data: bytes) -> Spooled | None:
    """None for what is damaged."""
    try:
        version, seen_ms, wall_ms, length = _HEAD.unpack_from(data)
        if version != _VERSION:
            return None
        boot = data[_HEAD.size : _HEAD.size + length].decode()
        return Spooled(AgentEvent.FromString(data[_HEAD.size + length :]), seen_ms, wall_ms, boot)
    except (struct.error, UnicodeDecodeError, DecodeError):
        return None


class MemoryLog:
    """A ``DiskLog`` for while there is no disk: bounded, and gone with the process."""

    def __init__(self, log_id: str, records: Iterable[bytes] = ()) -> None:
        self._id = log_id
        self._records = list(records)
        self._first = 1

    @property
    def id(self) -> str:
        return self._id

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self._records))

    @property
    def last(self) -> int:
        return self._first + len(self._records) - 1

    def read(self) -> list[tuple[int, bytes]]:
        return list(enumerate(self._records, self._first))

    async def append(self, records: list[bytes]) -> None:
        if self.size_bytes + sum(map(len, records)) > MEMORY_BYTES:
            raise DiskError(f"spool in memory: full, {MEMORY_BYTES} bytes")
        self._records += records

    async def release(self, sequence: int) -> None:
        count = max(0, sequence + 1 - self._first)
        del self._records[:count]
        self._first += count

    async def close(self) -> None:
        self._records.clear()


def merged(events: Iterable[Spooled]) -> list[Spooled]:
    """Equal (slot, kind, code) become one event with the sum of counts, dated by the first. Order of first sighting."""
    found: OrderedDict[tuple[str, int, int], Spooled] = OrderedDict()
    for spooled in events:
        event = spooled.event
        key = (event.slot, int(event.kind), event.code)
        if key not in found:
            found[key] = replace(spooled, event=AgentEvent.FromString(event.SerializeToString()))
        else:
            into = found[key].event
            into.count += event.count
            into.sources[:] = sorted({*into.sources, *event.sources})
    return list(found.values())


OF = ", of "


def is_notice(spooled: Spooled) -> bool:
    """Whether it is our own word that the spool was full: those are folded into one, and never dropped."""
    event = spooled.event
    return event.kind == records_pb2.EVENT_KIND_OVERFLOW and event.code == OVERFLOW_SPOOL and not event.slot
