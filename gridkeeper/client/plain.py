"""Messages as plain values for JSON and YAML: proto field names, integers as numbers, enum members as lower-case names
without their prefix, what is not known as null."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, cast

from google.protobuf.message import Message

Plain = dict[str, Any]
EnumDescriptor = Any
"""protobuf has two classes of each descriptor (the C one and the Python one) with nothing in common but the shape."""
FieldDescriptor = Any


def enum_prefix(descriptor: EnumDescriptor) -> str:
    """``HealthState`` -> ``HEALTH_STATE_``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", descriptor.name).upper() + "_"


def enum_word(descriptor: EnumDescriptor, number: int) -> str:
    """``draining`` for ``HEALTH_STATE_DRAINING``; a number that a newer server sent stays a number."""
    value = descriptor.values_by_number.get(number)
    return str(value.name).removeprefix(enum_prefix(descriptor)).lower() if value else str(number)


def word(message: Message, field: str) -> str:
    """The lower-case name in an enum field of ``message``."""
    descriptor = message.DESCRIPTOR.fields_by_name[field].enum_type
    assert descriptor is not None, f"{field} is no enum"
    return enum_word(descriptor, getattr(message, field))


def is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def plain(message: Message) -> Plain:
    """Every field of ``message``, defaults included, so that the shape never depends on the values. An unset message
    is null; of a oneof only the member that is set appears."""
    result: Plain = {}
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if is_map(field):
            result[field.name] = {key: value[key] for key in sorted(value)}
        elif field.is_repeated:
            result[field.name] = [_value(field, item) for item in value]
        elif field.message_type is not None and not message.HasField(field.name):
            result[field.name] = None
        else:
            result[field.name] = _value(field, value)
    return result


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return plain(cast(Message, value))
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value


def plain_list(kind: str, items: Iterable[Message], partial: Iterable[str], as_of_ms: int) -> Plain:
    """The one object that ``-o json`` prints for a listing; ``kind``: singular."""
    return {
        "kind": f"{kind.capitalize()}List",
        "as_of_ms": as_of_ms,
        "partial": list(partial),
        "items": [plain(item) for item in items],
    }
