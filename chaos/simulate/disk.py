"""A simulated disk for the spool: in memory, with faults on order. Same contract as ``nodeagent.disklog``."""

from __future__ import annotations

from dataclasses import dataclass, field

from gridkeeper.ports.clock import Clock, Rng
from gridkeeper.ports.disk import DiskError


@dataclass(slots=True)
class _Content:
    """What is on the platter. ``writing``: handed to the disk, not synced yet: lost, or torn, in a crash."""

    id: str
    first: int = 1
    records: list[bytes] = field(default_factory=list)
    writing: list[bytes] = field(default_factory=list)


class SimDisk:
    """``LogSource`` of one simulated host. ``full`` and ``read_only`` may be set at any time; ``crash`` is a power cut:
    logs opened before it are dead, and the next ``open`` finds what had reached the platter."""

    def __init__(self, clock: Clock, rng: Rng, max_bytes: int = 64 << 20, latency_ms: int = 1) -> None:
        self._clock = clock
        self._rng = rng
        self._max_bytes = max_bytes
        self._latency_ms = latency_ms
        self._content: _Content | None = None
        self.generation = 0
        self.full = False
        self.read_only = False

    def check(self, generation: int, grows: int, in_use: int) -> None:
        """Raises ``DiskError`` for a write that the disk would not take now."""
        if generation != self.generation:
            raise DiskError("simulated disk: the host has crashed")
        if self.read_only:
            raise DiskError("simulated disk: read-only file system")
        if grows and (self.full or in_use + grows > self._max_bytes):
            raise DiskError("simulated disk: no space left on device")

    def crash(self) -> None:
        """Of an append under way, any number of its leading records may be whole; the next one is torn."""
        self.generation += 1
        content = self._content
        if content is not None:
            content.records += content.writing[: int(self._rng.uniform(0, len(content.writing) + 0.999))]
            content.writing = []

    async def sync(self) -> None:
        await self._clock.sleep(self._latency_ms)

    async def open(self) -> SimLog:
        if self._content is None:
            self.check(self.generation, 1, 0)
            self._content = _Content(self._rng.token(8))
        return SimLog(self, self._content)

    async def replace(self, records: list[bytes]) -> SimLog:
        generation = self.generation
        self.check(generation, 1 + sum(map(len, records)), 0)
        await self.sync()
        self.check(generation, 1 + sum(map(len, records)), 0)
        self._content = _Content(self._rng.token(8), 1, list(records))
        return SimLog(self, self._content)


class SimLog:
    """``DiskLog`` on a ``SimDisk``."""

    def __init__(self, disk: SimDisk, content: _Content) -> None:
        self._disk = disk
        self._content = content
        self._generation = disk.generation

    @property
    def id(self) -> str:
        return self._content.id

    @property
    def last(self) -> int:
        return self._content.first + len(self._content.records) - 1

    @property
    def size_bytes(self) -> int:
        return sum(len(record) + 9 for record in self._content.records)

    def read(self) -> list[tuple[int, bytes]]:
        return list(enumerate(self._content.records, self._content.first))

    async def append(self, records: list[bytes]) -> None:
        self._disk.check(self._generation, sum(len(record) + 9 for record in records), self.size_bytes)
        self._content.writing = list(records)
        await self._disk.sync()
        self._disk.check(self._generation, 0, 0)
        self._content.records += self._content.writing
        self._content.writing = []

    async def release(self, sequence: int) -> None:
        self._disk.check(self._generation, 0, 0)
        count = max(0, min(sequence + 1 - self._content.first, len(self._content.records)))
        del self._content.records[:count]
        self._content.first += count

    async def close(self) -> None:
        return
