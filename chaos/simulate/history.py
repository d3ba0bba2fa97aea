"""What happened in a simulated run, in order: the input of the invariants, and what two runs of one seed are compared
by.

Entries hold only strings, numbers and bytes, so that their ``repr`` is canonical: it depends neither on addresses nor
on the hash seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from blake3 import blake3

from gridkeeper.ids import Epoch, JobId

GLOBAL_STORE = "global"


@dataclass(frozen=True, slots=True)
class Write:
    """``value`` None: the key was deleted."""

    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Held:
    """A compare that held when a transaction was made (see ``gridkeeper.ports.store.Compare``)."""

    key: str
    revision: int
    create: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """One revision of a store: ``"global"`` or a region's name."""

    at_ms: int
    store: str
    revision: int
    writes: tuple[Write, ...]
    guards: tuple[Held, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """A job's process came to life. ``resume_step`` -1: from scratch."""

    at_ms: int
    node: str
    job: JobId
    epoch: Epoch
    devices: tuple[str, ...]
    resume_step: int


@dataclass(frozen=True, slots=True)
class Stepped:
    at_ms: int
    node: str
    job: JobId
    epoch: Epoch
    step: int


@dataclass(frozen=True, slots=True)
class Gone:
    """No process of that epoch is left on the node."""

    at_ms: int
    node: str
    job: JobId
    epoch: Epoch
    exit_code: int
    exit_signal: int


@dataclass(frozen=True, slots=True)
class Renewed:
    """A replica acknowledged a renewal (when it sent the acknowledgement)."""

    at_ms: int
    replica: str
    node: str
    job: JobId
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Acked:
    """A replica acknowledged a node's events of a spool up to ``sequence``."""

    at_ms: int
    replica: str
    region: str
    node: str
    spool: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint's manifest is in a region's object store, all its chunks before it."""

    at_ms: int
    region: str
    job: JobId
    step: int
    digest: str


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that the scenario made, or its end. ``device``: the device whose hardware is at fault; "" when none is
    (a process, a host or a network)."""

    at_ms: int
    what: str
    device: str = ""


Entry = Commit | Started | Stepped | Gone | Renewed | Acked | Stored | Injected


class History:
    """Appends only."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.entries: list[Entry] = list(entries)

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def digest(self) -> str:
        """BLAKE3 of all entries in order, hex."""
        hasher = blake3()
        for entry in self.entries:
            hasher.update(repr(entry).encode())
            hasher.update(b"\n")
        return str(hasher.hexdigest())
