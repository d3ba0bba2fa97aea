"""Records to protobuf and back, driven by the dataclass: field names are equal, enum members go by name.

One reflective mapper instead of a pair of functions per record. A value that does not decode is a ``CorruptRecord``:
the reader treats what it stood for as unknown, never as healthy and never as failed.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import operator
import re
import types
import typing
import zlib
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """How one record class is mapped. ``read``: all its fields of a record or a message at once, in order; the fields
    that need more than that are in ``encoded`` and ``decoded``, with their places."""

    message: type[Message]
    names: tuple[str, ...]
    read: Callable[[Any], tuple[Any, ...]]
    encoded: tuple[tuple[int, Callable[[Any], Any]], ...]
    decoded: tuple[tuple[int, Callable[[Any, Any], Any]], ...]


@functools.cache
def _plan(record: Hashable) -> _Plan:
    hints = typing.get_type_hints(record)
    given = dataclasses.fields(typing.cast(Any, record))
    fields = tuple(_field(f.name, hints[f.name], f.default) for f in given)
    names = tuple(field.name for field in fields)
    get = operator.attrgetter(*names)
    read = get if len(names) > 1 else lambda value: (get(value),)
    return _Plan(
        message_type(typing.cast(Any, record)),
        names,
        read,
        tuple((i, _encoder(field)) for i, field in enumerate(fields) if field.encode is not _same or field.optional),
        tuple((i, _decoder(field)) for i, field in enumerate(fields) if field.decode is not _same or field.repeated),
    )


def _encoder(field: _Field) -> Callable[[Any], Any]:
    encode = field.encode
    if field.repeated:
        return lambda value: [encode(item) for item in value]
    if field.optional:
        return lambda value: None if value is None else encode(value)
    return encode


def _decoder(field: _Field) -> Callable[[Any, Any], Any]:
    """Of the message and the field's value in it."""
    decode, name, default = field.decode, field.name, field.default
    if field.repeated:
        if decode is _same:
            return lambda message, value: tuple(value)
        return lambda message, value: tuple([decode(item) for item in value])
    if field.optional:
        return lambda message, value: decode(value) if message.HasField(name) else None
    if default is not None:
        return lambda message, value: default if value == 0 else decode(value)
    return lambda message, value: decode(value)


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
    plan = _plan(typing.cast(Hashable, type(record)))
    values = list(plan.read(record))
    for index, encode in plan.encoded:
        values[index] = encode(values[index])
    return plan.message(**dict(zip(plan.names, values, strict=True)))


def from_message(record: type[R], message: Message) -> R:
    """The record of a protobuf message. Raises ``CorruptRecord``."""
    plan = _plan(typing.cast(Hashable, record))
    values = list(plan.read(message))
    for index, decode in plan.decoded:
        values[index] = decode(message, values[index])
    return record(*values)


PACKED = b"\x00z"
"""First bytes of a value that is deflated. No protobuf message begins so: there is no field number 0."""
PACK_ABOVE = 65_536
"""Bytes. etcd takes 1.5 MiB in one transaction, and a budget's record names each device that is out: of a region of
100,000 a quarter makes 1.5 MiB, and several such budgets are written together. Packed it is a fifth or less."""
MAX_UNPACKED = 16_777_216
"""Bytes: far more than etcd ever held of one value; what unpacks to more was not written by us."""


def encode(record: Any) -> bytes:
    """Deterministic bytes of a record, as stored: its message, deflated if it is large."""
    data = to_message(record).SerializeToString(deterministic=True)
    return data if len(data) <= PACK_ABOVE else PACKED + zlib.compress(data)


def _unpacked(data: bytes) -> bytes:
    """Raises ``zlib.error`` for what is damaged, cut off, followed by more, or too large."""
    inflate = zlib.decompressobj()
    found = inflate.decompress(data, MAX_UNPACKED)
    if not inflate.eof or inflate.unused_data:
        raise zlib.error(f"not one whole value of at most {MAX_UNPACKED} bytes")
    return found


def decode(record: type[R], data: bytes) -> R:
    """The record in ``data``. Raises ``CorruptRecord`` naming the kind of record."""
    message = message_type(record)()
    try:
        message.ParseFromString(_unpacked(data[len(PACKED) :]) if data.startswith(PACKED) else data)
    except (DecodeError, zlib.error) as error:
        raise CorruptRecord(f"{record.__name__}: {len(data)} bytes do not decode: {error}") from error
    return from_message(record, message)
