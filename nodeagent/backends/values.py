"""Numbers out of what vendors' tools print: "N/A", {"value": 41, "unit": "W"}, "88.2", "16 GT/s". Pure."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from gridkeeper.ports.devices import BackendError

_NUMBER = re.compile(r"\s*(-?[0-9]{1,18}(?:\.[0-9]{1,9})?)\s*(?:[A-Za-z%°/]{1,8})?\s*\Z")

_GENERATION = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
"""PCIe: GT/s per lane -> generation."""

MIB_PER = {"B": 1 / 1048576, "KB": 1 / 1024, "MB": 1.0, "MIB": 1.0, "GB": 1024.0, "GIB": 1024.0}
"""amd-smi and its peers write MB and mean MiB."""


def number(value: Any) -> float | None:
    """A finite number, or None for what is none ("N/A", "-", text, a list)."""
    if isinstance(value, dict):
        value = value.get("value")
    if isinstance(value, str):
        match = _NUMBER.match(value)
        value = float(match.group(1)) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def mib(value: Any) -> float | None:
    """A size with its unit, in MiB."""
    size = number(value)
    unit = value.get("unit", "MB") if isinstance(value, dict) else "MB"
    factor = MIB_PER.get(str(unit).upper())
    return None if size is None or factor is None else size * factor


def generation(speed: Any) -> float | None:
    """PCIe generation of a speed in GT/s."""
    found = number(speed)
    return None if found is None else _GENERATION.get(found)


def part(value: Any, *names: str) -> Any:
    """``value[names[0]][names[1]]…``; None where that leads nowhere."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def rows_of_json(text: str, said: str, wrapper: str) -> list[dict[str, Any]]:
    """The list of objects in a tool's JSON, bare or under ``wrapper``. Raises ``BackendError``."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BackendError(f"{said}: prints no JSON ({str(error)[:80]}): {text[:80]!r}") from error
    if isinstance(found, dict):
        found = found.get(wrapper)
    if not isinstance(found, list):
        raise BackendError(f"{said}: prints no list of devices; has its format changed?")
    return [row for row in found if isinstance(row, dict)]


def word(value: Any, limit: int = 128) -> str:
    """A short text; "" for what is none and for "N/A"."""
    text = str(value).strip()[:limit] if isinstance(value, str | int) else ""
    return "" if text in ("N/A", "NA", "-") else text
