"""What was worked out from earlier snapshots and still holds: a cache beside the state, and nothing else.

A mirror hands out the same mapping until something in it changes, and the same record until it changes; so what was
derived from the very same objects need not be derived again. A function that uses a memo gives the same answer with an
empty one: tests and simulation hold it to that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
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
