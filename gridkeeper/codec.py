"""Records to protobuf and back, driven by the dataclass: field names are equal, enum members go by name.

One reflective mapper instead of a pair of functions per record. A value that does not decode is a ``CorruptRecord``:
the reader treats what it stood for as unknown, never as healthy and never as failed.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import types
import typing
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from gridkeeper.v1 import records_pb2

R = TypeVar("R")


class CorruptRecord(ValueError):
    """Bytes that are no valid record of the kind that the key promises."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    name: str
    repeated: bool
    optional: bool  # a message field that may be absent
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    message: bool
    default: Any = None  # of an enum that older records do not have (number 0)


def _base(kind: Any) -> Any:
    while hasattr(kind, "__supertype__"):
        kind = kind.__supertype__
    return kind


def enum_prefix(kind: type[enum.Enum]) -> str:
    """``HealthState`` -> ``HEALTH_STATE_``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).upper() + "_"


def _same(value: Any) -> Any:
    return value


def _enum_codec(kind: type[enum.Enum]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    wrapper = getattr(records_pb2, kind.__name__)
    prefix = enum_prefix(kind)
    to_number = {member: wrapper.Value(prefix + member.name) for member in kind}
    from_number = {number: member for member, number in to_number.items()}

    def decode(number: int) -> Any:
        try:
            return from_number[number]
        except KeyError:
            raise CorruptRecord(f"{kind.__name__}: number {number} is not a member") from None

    return to_number.__getitem__, decode


@functools.cache
def _plan(record: Hashable) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(record)
    return tuple(_field(f.name, hints[f.name], f.default) for f in dataclasses.fields(typing.cast(Any, record)))


def _field(name: str, hint: Any, default: Any) -> _Field:
    repeated = typing.get_origin(hint) is tuple
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if repeated:
        hint = typing.get_args(hint)[0]
    elif optional:
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    kind = _base(hint)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _Field(name, repeated, optional, to_message, functools.partial(from_message, kind), True)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        encode, decode = _enum_codec(kind)
        return _Field(name, repeated, False, encode, decode, False, default if isinstance(default, kind) else None)
    return _Field(name, repeated, False, _same, _same, False)


def message_type(record: type[Any]) -> type[Message]:
    """The generated message class of a record class."""
    return typing.cast(type[Message], getattr(records_pb2, record.__name__))


def to_message(record: Any) -> Message:
    """The protobuf message of a record."""
    arguments: dict[str, Any] = {}
    for field in _plan(typing.cast(Hashable, type(record))):
        value = getattr(record, field.name)
        if field.repeated:
            arguments[field.name] = [field.encode(item) for item in value]
        elif value is not None:
            arguments[field.name] = field.encode(value)
    return message_type(type(record))(**arguments)


def from_message(record: type[R], message: Message) -> R:
    """The record of a protobuf message. Raises ``CorruptRecord``."""
    arguments: dict[str, Any] = {}
    for field in _plan(typing.cast(Hashable, record)):
        value = getattr(message, field.name)
        if field.repeated:
            arguments[field.name] = tuple(field.decode(item) for item in value)
        elif field.optional and not message.HasField(field.name):
            arguments[field.name] = None
        elif field.default is not None and value == 0:
            arguments[field.name] = field.default
        else:
            arguments[field.name] = field.decode(value)
    return record(**arguments)


def encode(record: Any) -> bytes:
    """Deterministic bytes of a record, as stored."""
    return to_message(record).SerializeToString(deterministic=True)


def decode(record: type[R], data: bytes) -> R:
    """The record in ``data``. Raises ``CorruptRecord`` naming the kind of record."""
    message = message_type(record)()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise CorruptRecord(f"{record.__name__}: {len(data)} bytes do not decode: {error}") from error
    return from_message(record, message)
