"""A simulated host's kernel log: lines in a ring, behind the agent's own reader."""

from __future__ import annotations

from collections.abc import Mapping

from gridkeeper.ports.clock import Clock
from nodeagent.kernel.line import read_line
from nodeagent.kernel_log import Entry, Gap, KernelLog, Memory

RING_LINES = 4_096


class SimKernel:
    """Belongs to the host: the lines and the saved position outlive the agents that read it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lines: list[tuple[int, bytes]] = []
        self._next = 0
        self._memory = _SavedPosition()

    def say(self, text: str) -> None:
        """One record, stamped with the boot-time clock, as printk does."""
        record = f"4,{self._next},{self._clock.mono_ms() * 1000},-;{text}\n"
        self._lines.append((self._next, record.encode()))
        self._next += 1
        del self._lines[:-RING_LINES]

    def xid(self, pci_bus_id: str, code: int, pid: int, text: str) -> None:
        """The driver's line for an XID."""
        address = pci_bus_id.rpartition(".")[0][4:]
        process = f"{pid}, name=train" if pid else "'<unknown>', name=<unknown>"
        self.say(f"NVRM: Xid (PCI:{address}): {code}, pid={process}, {text}")

    def lines(self, after: int, limit: int) -> tuple[Entry, ...]:
        """Records with a greater sequence than ``after``, behind a gap if some have left the ring."""
        found: list[Entry] = []
        if self._lines and self._lines[0][0] > after + 1:
            found.append(Gap("the kernel's ring buffer overran before it was read"))
        found += [read_line(record) for sequence, record in self._lines if sequence > after][:limit]
        return tuple(found)

    @property
    def newest(self) -> int:
        """Sequence of the last record; -1: none."""
        return self._next - 1

    def reader(self, clock: Clock) -> KernelLog:
        """As the agent opens it. ``clock``: the agent's own (a frozen agent reads nothing)."""
        return KernelLog(lambda saved: _Source(self, saved), self._memory, clock)


class _SavedPosition(Memory):
    """Kept by the host, not by a file."""

    def __init__(self) -> None:
        super().__init__(None)
        self._position: Mapping[str, str | int] | None = None

    def load(self) -> Mapping[str, str | int] | None:
        return self._position

    def save(self, position: Mapping[str, str | int]) -> None:
        self._position = dict(position)


class _Source:
    """``nodeagent.kernel_log.Source``: from the saved position on; without one, from now on."""

    def __init__(self, kernel: SimKernel, saved: Mapping[str, str | int] | None) -> None:
        self._kernel = kernel
        sequence = saved.get("sequence") if saved else None
        self._last = sequence if isinstance(sequence, int) else kernel.newest

    def poll(self, limit: int) -> tuple[Entry, ...]:
        entries = self._kernel.lines(self._last, limit)
        sequences = [entry.sequence for entry in entries if not isinstance(entry, Gap)]
        self._last = max(sequences, default=self._last)
        return entries

    def position(self) -> Mapping[str, str | int]:
        return {"sequence": self._last}

    def close(self) -> None:
        return
