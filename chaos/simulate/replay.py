"""A history with its commits decoded: what each changed, from which record to which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from chaos.simulate.history import GLOBAL_STORE, Commit, Entry
from gridkeeper import codec
from gridkeeper.ids import RegionId
from gridkeeper.keys import GLOBAL, kind_of, region_root


@dataclass(frozen=True, slots=True)
class Changed:
    """One key in one commit. ``kind``: first element of the key under its root; ``name``: the rest. ``old`` and
    ``new``: records, None where there is none. ``old_revision``: mod revision before (0: it did not exist).
    ``created``: create revision of the key after the commit."""

    key: str
    kind: str
    name: str
    old: Any
    new: Any
    old_revision: int
    created: int


@dataclass(frozen=True, slots=True)
class Moment:
    """``changes``: of a commit; empty for other entries."""

    entry: Entry
    changes: tuple[Changed, ...] = ()

    @property
    def at_ms(self) -> int:
        return self.entry.at_ms


@dataclass(frozen=True, slots=True)
class _Key:
    record: Any
    revision: int
    created: int


def replay(entries: Iterable[Entry]) -> tuple[Moment, ...]:
    """Raises ``CorruptRecord`` for a value that does not decode: nothing in the system may write one."""
    held: dict[tuple[str, str], _Key] = {}
    return tuple(Moment(e, _changes(e, held)) if isinstance(e, Commit) else Moment(e) for e in entries)


def _changes(commit: Commit, held: dict[tuple[str, str], _Key]) -> tuple[Changed, ...]:
    root = GLOBAL if commit.store == GLOBAL_STORE else region_root(RegionId(commit.store))
    found: list[Changed] = []
    for write in commit.writes:
        place = (commit.store, write.key)
        old = held.get(place)
        record_type = kind_of(write.key)
        new = codec.decode(record_type, write.value) if record_type and write.value is not None else None
        created = old.created if old else commit.revision
        if write.value is None:
            held.pop(place, None)
        else:
            held[place] = _Key(new, commit.revision, created)
        kind, _, name = write.key.removeprefix(root).partition("/")
        before = old.record if old else None
        found.append(Changed(write.key, kind, name, before, new, old.revision if old else 0, created))
    return tuple(found)
