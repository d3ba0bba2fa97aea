"""What was worked out from earlier snapshots and still holds: a cache beside the state, and nothing else.

A mirror hands out the same mapping until something in it changes, and the same record until it changes; so what was
derived from the very same objects need not be derived again. A function that uses a memo gives the same answer with an
empty one: tests and simulation hold it to that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar, TypeVarTuple

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
Inputs = TypeVarTuple("Inputs")


class Memo:
    """One per mirror and process. Bounded: one entry per function or class."""

    def __init__(self) -> None:
        self._last: dict[Callable[..., Any], tuple[tuple[Any, ...], Any]] = {}
        self._kept: dict[type[Any], Any] = {}

    def once(self, function: Callable[[*Inputs], T], *inputs: *Inputs) -> T:
        """``function(*inputs)``, from the last time if all inputs are the same objects (numbers: equal). ``function``
        must be pure, defined once (no lambda), and its result is never changed by anybody."""
        last = self._last.get(function)
        if last is not None and all(map(_same, last[0], inputs)):
            return last[1]  # type: ignore[no-any-return]
        value = function(*inputs)
        self._last[function] = (inputs, value)
        return value

    def of(self, kind: type[T]) -> T:
        """The one instance of a class that keeps more than one last result; made when first asked for."""
        found = self._kept.get(kind)
        if found is None:
            found = self._kept[kind] = kind()
        return found


def _same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, int) and one == other)


JOURNAL_STEPS = 256
JOURNAL_NAMES = 16_384
"""How much of its past a journal keeps: beyond that, mappings are compared, which costs more and finds the same."""


class Journal(Generic[K]):
    """Which names have changed from each published mapping to the next."""

    def __init__(self) -> None:
        self.newest = 0
        self._steps: deque[frozenset[K]] = deque(maxlen=JOURNAL_STEPS)
        self._names = 0

    def add(self, names: frozenset[K]) -> int:
        """The number of the mapping that is published with these changes."""
        if len(self._steps) == JOURNAL_STEPS:
            self._names -= len(self._steps[0])
        self._steps.append(names)
        self._names += len(names)
        while self._names > JOURNAL_NAMES:
            self._names -= len(self._steps.popleft())
        self.newest += 1
        return self.newest

    def between(self, old: int, new: int) -> set[K] | None:
        """Names that have changed from mapping number ``old`` to ``new``; None: too long ago."""
        steps = len(self._steps)
        first = old - (self.newest - steps)
        if first < 0 or new < old:
            return None
        return set[K]().union(*(self._steps[i] for i in range(first, new - (self.newest - steps))))


class Published(dict[K, V]):
    """A mapping that never changes once handed out, and knows by what it differs from earlier ones of its journal."""

    __slots__ = ("journal", "number")

    def __init__(self, held: Mapping[K, V], journal: Journal[K], changed: frozenset[K]) -> None:
        super().__init__(held)
        self.journal = journal
        self.number = journal.add(changed)


def differing(old: Mapping[K, V] | None, new: Mapping[K, V]) -> Collection[K]:
    """Names that are only in one of two mappings, or in both with another object; all of ``new`` if ``old`` is None.
    (Some more may be named: what has changed and changed back.)"""
    if old is new:
        return ()
    if old is None:
        return new.keys()
    if isinstance(old, Published) and isinstance(new, Published) and old.journal is new.journal:
        found = old.journal.between(old.number, new.number)
        if found is not None:
            return found
    return {name for name, value in new.items() if old.get(name) is not value} | (old.keys() - new.keys())
