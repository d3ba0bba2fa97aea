"""What a pure core returns: writes that hold only against the revisions they were decided on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from gridkeeper.ids import Revision

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

ABSENT = Revision(0)


@dataclass(frozen=True, slots=True)
class Versioned(Generic[R_co]):
    """A record as a mirror of the store holds it.

    ``revision``: mod revision. ``created``: create revision. ``seen_ms``: local boot-time clock when this process
    first saw this revision; timers of the safety rules (R) run from it, never from a stored time.
    """

    record: R_co
    revision: Revision
    created: Revision
    seen_ms: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write ``record`` if the key's mod revision is still ``expected`` (``ABSENT``: if it does not exist)."""

    key: str
    record: Any
    expected: Revision


@dataclass(frozen=True, slots=True)
class Delete:
    key: str
    expected: Revision


@dataclass(frozen=True, slots=True)
class Guard:
    """Read, not written: its mod revision must still be ``expected``."""

    key: str
    expected: Revision


@dataclass(frozen=True, slots=True)
class Decision:
    """One transaction, all or nothing, in one store.

    ``step``: a name from the path of one fault (``drain.plan``, ``fence.bump_epoch`` …). ``sentence``: why, fit for the
    audit log and the TUI. ``audit``: False for bookkeeping that no human asks about (ledger entries, capacity). The
    shell adds the leader guard and the audit record.
    """

    step: str
    sentence: str
    writes: tuple[Put | Delete, ...]
    guards: tuple[Guard, ...] = ()
    subject: str = ""
    evidence: tuple[str, ...] = ()
    trace: str = ""
    audit: bool = True


@dataclass(frozen=True, slots=True)
class Now:
    """The clock as a decision sees it. ``mono_ms``: this process's boot-time clock (compare with ``seen_ms``).
    ``ledger_ms``: ms since the Unix epoch at election, advanced monotonically (write into records).
    ``steady_ms``: since when, by the first, this process has kept its own time: it saw late whatever it saw before."""

    mono_ms: int
    ledger_ms: int
    steady_ms: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """Collects the writes of one decision, later ones on the same key replacing earlier ones."""

    puts: dict[str, Put | Delete] = field(default_factory=dict)

    def put(self, key: str, record: Any, old: Versioned[Any] | None) -> None:
        """Write over ``old`` (None: create)."""
        first = self.puts.get(key)
        expected = first.expected if first else (old.revision if old else ABSENT)
        self.puts[key] = Put(key, record, expected)

    def delete(self, key: str, old: Versioned[Any]) -> None:
        self.puts[key] = Delete(key, old.revision)

    def writes(self) -> tuple[Put | Delete, ...]:
        return tuple(self.puts.values())


def guards_of(pairs: Iterable[tuple[str, Versioned[Any] | None]]) -> tuple[Guard, ...]:
    """Guards on the revisions of what a decision read but does not write."""
    return tuple(Guard(key, v.revision if v else ABSENT) for key, v in pairs)
