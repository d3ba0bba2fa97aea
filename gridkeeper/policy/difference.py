"""What differs between two policies, in one line each: for the audit trail and for ``--dry-run``. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any

from gridkeeper.policy.model import Policy

NAMED = ("rules", "events", "repeats")
"""Lists whose entries have names."""


def differences(old: Policy, new: Policy) -> tuple[str, ...]:
    """From ``old`` to ``new``; the version does not count."""
    found: list[str] = []
    for field in dataclasses.fields(Policy):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.name == "version" or before == after:
            continue
        if field.name in NAMED:
            found += _entries(field.name.removesuffix("s"), before, after)
        elif dataclasses.is_dataclass(after):
            found += _fields(field.name, before, after)
        elif isinstance(after, tuple):
            found.append(f"{field.name}: {_listed(before)} -> {_listed(after)}")
        else:
            found.append(f"{field.name}: {_shown(before)} -> {_shown(after)}")
    return tuple(found)


def _entries(what: str, before: tuple[Any, ...], after: tuple[Any, ...]) -> list[str]:
    old, new = {item.name: item for item in before}, {item.name: item for item in after}
    found = [f"{what} {name} removed" for name in old if name not in new]
    found += [f"{what} {name} added" for name in new if name not in old]
    for name, item in new.items():
        if name in old:
            found += _fields(f"{what} {name}", old[name], item)
    if not found:
        found.append(f"{what}s: in another order")
    return found


def _fields(path: str, before: Any, after: Any) -> list[str]:
    found: list[str] = []
    for field in dataclasses.fields(after):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new:
            continue
        if dataclasses.is_dataclass(new):
            found += _fields(f"{path}.{field.name}", old, new)
        elif isinstance(new, tuple):
            found.append(f"{path}.{field.name}: {_listed(old)} -> {_listed(new)}")
        else:
            found.append(f"{path}.{field.name}: {_shown(old)} -> {_shown(new)}")
    return found


def _listed(items: tuple[Any, ...]) -> str:
    return "[" + ", ".join(_entry(item) for item in items) + "]"


def _entry(item: Any) -> str:
    if not dataclasses.is_dataclass(item):
        return _shown(item)
    differing = [f for f in dataclasses.fields(item) if getattr(item, f.name) != f.default]
    return "{" + ", ".join(f"{f.name}: {_shown(getattr(item, f.name))}" for f in differing) + "}"


def _shown(value: Any) -> str:
    return repr(value) if value == "" else str(getattr(value, "value", value))
