"""A recorded or scripted trace as a backend: JSON lines, played at any speed.

    {"device": {"slot": "gpu0", "model": "NVIDIA H100", "pci_bus_id": "0000:91:00", ...}}      (optional)
    {"at_ms": 0,    "slot": "gpu0", "metrics": {"temperature": 40, "power": 310.5}}
    {"at_ms": 5000, "slot": "gpu0", "metrics": {"temperature": 95}}
    {"at_ms": 6000, "slot": "gpu0", "event": {"kind": "xid", "code": 48, "message": "…", "pid": 12}}

``at_ms`` counts from ``open`` and does not go backwards. Metrics hold until the next line that names them (null: not
known any more). A ``device_missing`` event makes the device's row NaN until ``device_found``.
"""

from __future__ import annotations

import bisect
import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gridkeeper.ids import BadName, checked_name
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.devices import BackendError, Device, Sighting
from gridkeeper.records.fleet import EventKind
from gridkeeper.telemetry import COLUMN, METRICS
from nodeagent.kernel.line import clip
from nodeagent.pci import normal_bus_id

_MAX_LINE = 64 * 1024
_INT32 = 1 << 31


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a trace: metrics that change, or an event."""

    at_ms: int
    slot: str
    metrics: tuple[tuple[int, float], ...] = ()  # (column, value)
    event: Sighting | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    devices: tuple[Device, ...]
    steps: tuple[Step, ...]  # by at_ms


def read_trace(path: Path) -> Trace:
    """Raises ``BackendError`` naming file, line, field and remedy."""
    devices: dict[str, Device] = {}
    steps: list[Step] = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    _read_line(line, devices, steps)
                except (ValueError, RecursionError) as error:
                    raise BackendError(f"replay {path}, line {number}: {error}") from error
    except OSError as error:
        raise BackendError(f"replay {path}: cannot be read ({error.strerror}); give the path of a trace") from error
    except UnicodeDecodeError as error:
        raise BackendError(f"replay {path}: is not UTF-8 ({error}); a trace is JSON lines") from error
    if not devices:
        raise BackendError(f"replay {path}: names no device; add lines with 'slot'")
    return Trace(tuple(devices.values()), tuple(steps))


class ReplayBackend:
    """``DeviceBackend`` over a ``Trace``. ``speed`` 2 plays twice as fast; it ends in the trace's last state."""

    name = "replay"

    def __init__(self, trace: Trace, clock: Clock, speed: float = 1.0) -> None:
        if not (math.isfinite(speed) and speed > 0):
            raise BackendError(f"replay: speed {speed} is not a number above 0")
        self._clock = clock
        self._speed = speed
        self._trace = trace
        self._events = [step for step in trace.steps if step.event]
        self._times = [step.at_ms for step in trace.steps]
        self._rows: dict[str, NDArray[np.float32]] = {}
        self._missing: set[str] = set()
        self._sampled = 0  # steps folded into _rows
        self._told = 0  # events handed out
        self._started_ms: int | None = None
        self._stop = threading.Event()

    def open(self) -> tuple[Device, ...]:
        self._stop.clear()
        self._rows = {d.slot: np.full(len(METRICS), np.nan, dtype=np.float32) for d in self._trace.devices}
        self._missing, self._sampled = set(), 0
        if self._started_ms is None:  # opened again, it goes on: an event is told once
            self._started_ms = self._clock.mono_ms()
        return self._trace.devices

    def sample(self, devices: tuple[Device, ...]) -> NDArray[np.float32]:
        end = bisect.bisect_right(self._times, self._position_ms())
        for step in self._trace.steps[self._sampled : end]:
            for column, value in step.metrics:
                self._rows[step.slot][column] = value
            if step.event and step.event.kind is EventKind.DEVICE_MISSING:
                self._missing.add(step.slot)
            elif step.event and step.event.kind is EventKind.DEVICE_FOUND:
                self._missing.discard(step.slot)
        self._sampled = max(self._sampled, end)
        nothing = np.full(len(METRICS), np.nan, dtype=np.float32)
        rows = [self._rows.get(d.slot, nothing) if d.slot not in self._missing else nothing for d in devices]
        return np.array(rows, dtype=np.float32).reshape(len(devices), len(METRICS))

    def wait_events(self, timeout_ms: int) -> tuple[Sighting, ...]:
        deadline = self._clock.mono_ms() + timeout_ms
        while True:
            now = self._clock.mono_ms()
            due = self._due(now)
            if due or now >= deadline or self._stop.is_set():
                return due
            wait_ms = deadline - now
            if self._told < len(self._events):
                wait_ms = min(wait_ms, self._when_ms(self._events[self._told]) - now)
            self._stop.wait(max(wait_ms, 1) / 1000)

    def processes(self, devices: tuple[Device, ...]) -> tuple[tuple[int, str], ...]:
        return ()

    def close(self) -> None:
        self._stop.set()

    def _due(self, now: int) -> tuple[Sighting, ...]:
        due: list[Sighting] = []
        while self._told < len(self._events) and self._when_ms(self._events[self._told]) <= now:
            step = self._events[self._told]
            if step.event:
                due.append(replace(step.event, seen_ms=self._when_ms(step)))
            self._told += 1
        return tuple(due)

    def _when_ms(self, step: Step) -> int:
        """This host's boot-time clock at which the step is due."""
        return (self._started_ms or 0) + math.ceil(step.at_ms / self._speed)

    def _position_ms(self) -> float:
        if self._started_ms is None:
            raise BackendError("replay: not open; call open() first")
        return (self._clock.mono_ms() - self._started_ms) * self._speed


def _read_line(line: str, devices: dict[str, Device], steps: list[Step]) -> None:
    if len(line) > _MAX_LINE:
        raise ValueError(f"is longer than {_MAX_LINE} characters")
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"is not a JSON object but {type(row).__name__}")
    if "device" in row:
        device = _device(_object(row, "device"))
        devices[device.slot] = device
        return
    _only(row, {"at_ms", "slot", "metrics", "event"}, "")
    at_ms = _integer(row, "at_ms", 0, 1 << 53)
    if steps and at_ms < steps[-1].at_ms:
        raise ValueError(f"at_ms: {at_ms} is before the line above ({steps[-1].at_ms}); sort the trace")
    slot = _slot(row)
    if ("metrics" in row) == ("event" in row):
        raise ValueError("give either 'metrics' or 'event'")
    device = devices.setdefault(slot, _default_device(slot))
    if "metrics" in row:
        metrics = _object(row, "metrics")
        steps.append(Step(at_ms, slot, tuple((_column(name), _number(name, v)) for name, v in metrics.items())))
    else:
        steps.append(Step(at_ms, slot, event=_event(_object(row, "event"), device)))


def _default_device(slot: str) -> Device:
    return Device(slot, f"replay-{slot}", "replay", "recorded device", "unknown", "", "", 0, "")


def _device(row: Mapping[str, Any]) -> Device:
    known = {field.name for field in fields(Device)}
    _only(row, known, "device.")
    device = _default_device(_slot(row))
    values: dict[str, Any] = {}
    for name in known - {"slot", "memory_mib"} & row.keys():
        if not isinstance(row[name], str):
            raise ValueError(f"device.{name}: {row[name]!r} is not a string")
        values[name] = clip(row[name], 256)
    device = replace(device, **values)
    if "memory_mib" in row:
        device = replace(device, memory_mib=_integer(row, "memory_mib", 0, 1 << 53))
    if device.pci_bus_id:
        bus_id = normal_bus_id(device.pci_bus_id)
        if not bus_id:
            raise ValueError(f"device.pci_bus_id: {device.pci_bus_id!r} is not like 0000:91:00.0")
        device = replace(device, pci_bus_id=bus_id)
    return device


def _event(row: Mapping[str, Any], device: Device) -> Sighting:
    _only(row, {"kind", "code", "message", "pid"}, "event.")
    try:
        kind = EventKind(row.get("kind", "replay"))
    except ValueError:
        kinds = ", ".join(kind.value for kind in EventKind)
        raise ValueError(f"event.kind: {row['kind']!r} is not one of {kinds}") from None
    code = _integer(row, "code", -_INT32, _INT32 - 1) if "code" in row else 0
    pid = _integer(row, "pid", 0, _INT32 - 1) if "pid" in row else 0
    message = row.get("message", f"{kind.value} {code} (replay)")
    if not isinstance(message, str):
        raise ValueError(f"event.message: {message!r} is not a string")
    return Sighting(device.slot, kind, code, clip(message), ReplayBackend.name, 0, pid, device.pci_bus_id)


def _only(row: Mapping[str, Any], known: set[str], prefix: str) -> None:
    for name in row:
        if name not in known:
            raise ValueError(f"{prefix}{name}: is not known here; known are {', '.join(sorted(known))}")


def _object(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = row[name]
    if not isinstance(value, dict):
        raise ValueError(f"{name}: {value!r} is not a JSON object")
    return value


def _integer(row: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}: {value!r} is not an integer between {low} and {high}")
    return value


def _slot(row: Mapping[str, Any]) -> str:
    slot = row.get("slot")
    if not isinstance(slot, str):
        raise ValueError(f"slot: {slot!r} is not a string")
    try:
        return checked_name("slot", slot)
    except BadName as error:
        raise ValueError(str(error)) from error


def _column(name: str) -> int:
    if name not in COLUMN:
        raise ValueError(f"metrics.{name}: is not a metric; known are {', '.join(COLUMN)}")
    return COLUMN[name]


def _number(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"metrics.{name}: {value!r} is not a number or null")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise ValueError(f"metrics.{name}: is no finite 32-bit number; write null for 'not known'")
    return number
