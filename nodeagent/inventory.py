"""The devices that this host is known to have, remembered across restarts.

A device id names a place. So a slot keeps its name when the card before it is gone: the file maps bus addresses to
slots, and tells the agent after a reboot that a device which used to be there is missing.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from gridkeeper.ports.devices import BackendError, Device

log = logging.getLogger("gridkeeper.agent.inventory")

_FIELDS = {field.name: field.type for field in dataclasses.fields(Device)}


def assign_slots(prefix: str, bus_ids: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """Bus address -> slot. Addresses in ``known`` keep theirs; others get, in the order given, the lowest number that
    no known address has. On a host never seen before that is the rank. Pure."""
    slots = {bus_id: known[bus_id] for bus_id in bus_ids if bus_id in known}
    taken = set(known.values())
    number = 0
    for bus_id in bus_ids:
        if bus_id in slots:
            continue
        while f"{prefix}{number}" in taken:
            number += 1
        slots[bus_id] = f"{prefix}{number}"
        taken.add(slots[bus_id])
    return slots


class Inventory:
    """One backend's devices in a JSON file (``path`` None: only in memory)."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._devices: tuple[Device, ...] | None = None

    def load(self) -> tuple[Device, ...]:
        """What was saved last; empty on a host never seen before. Raises ``BackendError`` for a file that is there but
        cannot be read: guessing would rename devices."""
        if self._devices is None:
            self._devices = self._read()
        return self._devices

    def save(self, devices: tuple[Device, ...]) -> None:
        """Durable on return if it changed. A disk that does not take it is logged: the inventory of this run stands."""
        if devices == self.load():
            return
        self._devices = devices
        if self._path is None:
            return
        scratch = self._path.with_name(self._path.name + ".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(scratch, "w", encoding="utf-8") as file:
                json.dump([dataclasses.asdict(device) for device in devices], file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self._path)
        except OSError as error:
            log.error(
                "The device inventory %s could not be saved (%s); slots may be renamed by a restart.", scratch, error
            )

    def _read(self) -> tuple[Device, ...]:
        if self._path is None:
            return ()
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError) as error:
            raise BackendError(
                f"inventory {self._path}: unreadable ({error}); restore it, or delete it to name slots anew"
            ) from error
        try:
            return tuple(_device(row) for row in rows)
        except (TypeError, KeyError, ValueError) as error:
            raise BackendError(
                f"inventory {self._path}: not a list of devices ({error}); restore it, or delete it to name slots anew"
            ) from error


def _device(row: Mapping[str, object]) -> Device:
    values: dict[str, object] = {}
    for name, kind in _FIELDS.items():
        value = row[name]
        if not isinstance(value, int if kind == "int" else str):
            raise ValueError(f"{name}: {value!r} is not of type {kind}")
        values[name] = value
    return Device(**values)  # type: ignore[arg-type]
