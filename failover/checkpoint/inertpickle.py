"""Reads a pickle that nobody vouches for: what it says, without importing, calling, hashing or allocating at its word.

``pickle.Unpickler`` with a harmless ``find_class`` runs no foreign code, but still lets a file of nine bytes ask for
exabytes, and one of a few hundred hash a tuple for ever. Here ``pickletools`` reads the operations, each of which has
its argument in the file, and a small machine without any hashing puts them together, in memory that is linear in the
file's size.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_OPERATIONS = 20_000_000
"""About 400,000 shard entries of a PyTorch checkpoint, at fewer than 50 operations each."""


class NotRead(ValueError):
    """The bytes are no pickle, or one that needs what this reader does not do; says what."""


@dataclass(slots=True)
class Pairs:
    """A dict as it is written: keys are compared by who reads them, never hashed."""

    pairs: list[tuple[object, object]] = field(default_factory=list)


@dataclass(slots=True)
class Thing(Pairs):
    """An object of whatever class the pickle names, with the state that it would be given."""

    state: object = None

    def fields(self) -> dict[str, object]:
        """Its attributes by name."""
        halves = self.state if isinstance(self.state, tuple) else (self.state,)
        return {
            key: value
            for half in halves
            if isinstance(half, Pairs)
            for key, value in half.pairs
            if isinstance(key, str)
        }


class _Machine:
    def __init__(self) -> None:
        self.stack: list[object] = []
        self.below: list[list[object]] = []
        self.memo: dict[int, object] = {}

    def push(self, value: object) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[object]:
        """What lies above the last mark, which goes with it."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def drop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def drop_to_mark(self) -> None:
        self.since_mark()

    def dict_since_mark(self) -> None:
        items = self.since_mark()
        self.push(Pairs())
        self.put(items)

    def some(self, count: int) -> list[object]:
        """The last ``count`` values, taken off. Raises ``IndexError`` if there are fewer."""
        if len(self.stack) < count:
            raise IndexError("fewer values than the operation takes")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def made(self, taken: int) -> None:
        """An object of ``taken`` values: its class and its arguments."""
        self.some(taken)
        self.push(Thing())

    def made_since_mark(self) -> None:
        self.since_mark()
        self.push(Thing())

    def add(self, items: list[object]) -> None:
        holder = self.stack[-1]
        if isinstance(holder, list):
            holder.extend(items)
        elif not isinstance(holder, Thing):
            raise NotRead("values are added to what holds none")

    def put(self, items: list[object]) -> None:
        holder = self.stack[-1]
        if not isinstance(holder, Pairs) or len(items) % 2:
            raise NotRead("keys and values are put into what is no dict")
        holder.pairs.extend(zip(items[::2], items[1::2], strict=True))

    def build(self) -> None:
        (state,) = self.some(1)
        thing = self.stack[-1]
        if not isinstance(thing, Thing):
            raise NotRead("a state is given to what is no object")
        thing.state = state


_NO_ARGUMENT: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": lambda m: m.push(m.stack[-1]),
    "NONE": lambda m: m.push(None),
    "NEWTRUE": lambda m: m.push(True),
    "NEWFALSE": lambda m: m.push(False),
    "EMPTY_LIST": lambda m: m.push([]),
    "EMPTY_SET": lambda m: m.push([]),
    "EMPTY_TUPLE": lambda m: m.push(()),
    "EMPTY_DICT": lambda m: m.push(Pairs()),
    "LIST": lambda m: m.push(m.since_mark()),
    "FROZENSET": lambda m: m.push(m.since_mark()),
    "TUPLE": lambda m: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m: m.push(tuple(m.some(1))),
    "TUPLE2": lambda m: m.push(tuple(m.some(2))),
    "TUPLE3": lambda m: m.push(tuple(m.some(3))),
    "DICT": _Machine.dict_since_mark,
    "APPEND": lambda m: m.add(m.some(1)),
    "APPENDS": lambda m: m.add(m.since_mark()),
    "ADDITEMS": lambda m: m.add(m.since_mark()),
    "SETITEM": lambda m: m.put(m.some(2)),
    "SETITEMS": lambda m: m.put(m.since_mark()),
    "STACK_GLOBAL": lambda m: m.made(2),
    "OBJ": _Machine.made_since_mark,
    "NEWOBJ": lambda m: m.made(2),
    "NEWOBJ_EX": lambda m: m.made(3),
    "REDUCE": lambda m: m.made(2),
    "BINPERSID": lambda m: m.made(1),
    "BUILD": _Machine.build,
}
_OBJECTS = {"GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PLAIN = (int, float, str, bytes, bytearray)


def read(data: bytes) -> object:
    """What the pickle holds: ``Thing`` for objects, ``Pairs`` for dicts, lists for sets.

    Raises ``NotRead``.
    """
    machine = _Machine()
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_OPERATIONS:
                raise NotRead(f"more than {MAX_OPERATIONS} operations")
            if operation.name == "STOP":
                return machine.stack[-1]
            _step(machine, operation.name, argument)
    except NotRead:
        raise
    except (ValueError, IndexError, KeyError) as error:
        raise NotRead(f"no pickle: {error}") from error
    raise NotRead("no pickle: it does not end")


def _step(machine: _Machine, name: str, argument: object) -> None:
    act = _NO_ARGUMENT.get(name)
    if act is not None:
        act(machine)
    elif name in _PUTS and isinstance(argument, int):
        machine.memo[argument] = machine.stack[-1]
    elif name == "MEMOIZE":
        machine.memo[len(machine.memo)] = machine.stack[-1]
    elif name in _GETS and isinstance(argument, int):
        machine.push(machine.memo[argument])
    elif name in _OBJECTS:
        machine.push(Thing())
    elif name == "INST":
        machine.made_since_mark()
    elif name in ("PROTO", "FRAME"):
        pass
    elif isinstance(argument, _PLAIN):
        machine.push(argument)
    else:
        raise NotRead(f"operation {name} is not one that a checkpoint needs")
