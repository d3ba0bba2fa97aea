"""Traces as operators have them: a CSV of device, time and fault class or code, and optionally what became of it.

    device,time,class[,code][,message][,truth][,repaired_at][,region][,rack][,vendor][,model]
    east-17/gpu3,2024-03-05T14:02:11Z,memory,xid 48,,real,2024-03-06T09:00:00Z

``device``: <node>/<slot>, or a node alone. ``time``: ISO 8601 (UTC unless it says otherwise), or seconds or
milliseconds since the Unix epoch. ``truth``: real or false. Every faulty line is told, at most 20, and nothing is
replayed then.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from controlplane.backtest.classes import CLASSES, normal
from controlplane.backtest.trace import BadTrace, Fault, Trace, Truth, parse_code
from gridkeeper.ids import BadName, DeviceId, NodeId, RegionId, checked_name
from gridkeeper.records.fleet import DeviceRecord, EventKind

MAX_FAULTS: Final = 20
MAX_BYTES: Final = 1 << 30
TRUTHS: Final = {
    "": Truth.UNKNOWN, "unknown": Truth.UNKNOWN, "real": Truth.REAL, "true": Truth.REAL, "yes": Truth.REAL,
    "1": Truth.REAL, "false": Truth.FALSE, "no": Truth.FALSE, "0": Truth.FALSE,
}  # fmt: skip
LEMONS: Final = {"lemon": True, "bad": True, "true": True, "1": True, "good": False, "false": False, "0": False}
_MS_FROM: Final = 10**11  # seconds reach this in the year 5138, milliseconds had it in 1973
DEVICE_COLUMNS: Final = ("zone", "rack", "vendor", "model", "architecture")


@dataclass(slots=True)
class _Rows:
    """Rows of one file with their line numbers; collects what is wrong."""

    path: str
    wrong: list[str] = field(default_factory=list)

    def read(self, known: Iterable[str], required: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
        text = _text(self.path)
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        names: list[str] | None = None
        try:
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if names is None:
                    names = self._header(cells, tuple(known), tuple(required))
                    continue
                if len(cells) != len(names):
                    self.fault(
                        reader.line_num, "", f"{len(cells)} cells where the header has {len(names)}; quote commas"
                    )
                    continue
                yield reader.line_num, dict(zip(names, (cell.strip() for cell in cells), strict=True))
        except csv.Error as error:
            raise BadTrace(f"{self.path}:{reader.line_num}: not CSV: {error}; quote cells that hold quotes") from error
        if names is None:
            raise BadTrace(f"{self.path}: it is empty; it needs a header with {', '.join(required)}")

    def _header(self, cells: list[str], known: tuple[str, ...], required: tuple[str, ...]) -> list[str]:
        names = [cell.strip().lower() for cell in cells]
        missing = [name for name in required if name not in names]
        twice = sorted({name for name in names if names.count(name) > 1})
        unknown = [name for name in names if name not in known]
        if missing or twice or unknown:
            what = [f"the column {name!r} is missing" for name in missing]
            what += [f"the column {name!r} is there twice" for name in twice]
            what += [f"there is no column {name[:40]!r}" for name in unknown]
            raise BadTrace(f"{self.path}:1: {'; '.join(what)}; columns are {', '.join(known)}")
        return names

    def fault(self, line: int, name: str, text: str) -> None:
        self.wrong.append(f"{self.path}:{line}: {name + ': ' if name else ''}{text}")

    def check(self) -> None:
        if self.wrong:
            more = [f"… and {len(self.wrong) - MAX_FAULTS} more"] if len(self.wrong) > MAX_FAULTS else []
            raise BadTrace("\n".join([*self.wrong[:MAX_FAULTS], *more]))


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadTrace(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise BadTrace(f"{path}: larger than {MAX_BYTES} bytes; split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadTrace(f"{path}:{line}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def parse_time(text: str) -> int:
    """Milliseconds since the Unix epoch. Raises ``ValueError`` with value and remedy."""
    remedy = "use ISO 8601 like 2024-03-05T14:02:11Z, or seconds since the Unix epoch"
    digits = text.replace(".", "", 1)
    if digits.isascii() and digits.isdigit():
        whole = text.partition(".")[0]
        if int(whole or "0") >= _MS_FROM:
            return int(whole)
        fraction = (text.partition(".")[2] + "000")[:3]
        return int(whole or "0") * 1000 + int(fraction)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no time; {remedy}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    ms = round(moment.timestamp() * 1000)
    if ms < 0:
        raise ValueError(f"{text[:40]!r} lies before 1970; {remedy}")
    return ms


def _target(text: str) -> tuple[NodeId, DeviceId]:
    """Raises ``BadName``."""
    node, slash, slot = text.partition("/")
    checked_name("device", node)
    if slash:
        checked_name("device", slot)
    return NodeId(node), DeviceId(text if slash else "")


def read_classes(path: str) -> Mapping[str, tuple[EventKind, int]]:
    """A CSV of ``class,code``: what a site's own fault classes stand for. Raises ``BadTrace``."""
    rows, found = _Rows(path), dict[str, tuple[EventKind, int]]()
    for line, row in rows.read(("class", "code"), ("class", "code")):
        code = parse_code(row["code"])
        if code is None:
            rows.fault(line, "code", f"{row['code'][:40]!r} is no code; write it like 'xid 48' or 'ascend 80E01801'")
        else:
            found[normal(row["class"])] = code
    rows.check()
    return found


def read_lemons(path: str) -> Mapping[DeviceId, bool]:
    """A CSV of ``device,label`` with the labels lemon and good. Raises ``BadTrace``."""
    rows, found = _Rows(path), dict[DeviceId, bool]()
    for line, row in rows.read(("device", "label"), ("device", "label")):
        label = LEMONS.get(row["label"].lower())
        if label is None:
            rows.fault(line, "label", f"{row['label'][:40]!r} is none; use lemon or good")
            continue
        try:
            _, device = _target(row["device"])
        except BadName as error:
            rows.fault(line, "device", str(error).partition(": ")[2])
            continue
        if not device:
            rows.fault(line, "device", f"{row['device'][:40]!r} is a node; label devices as <node>/<slot>")
            continue
        if found.setdefault(device, label) is not label:
            rows.fault(line, "device", f"{device} is labelled both lemon and good; leave one out")
    rows.check()
    return found


def read_inventory(path: str, region: RegionId) -> dict[DeviceId, DeviceRecord]:
    """A CSV of ``device[,zone,rack,vendor,model,architecture]``. Raises ``BadTrace``."""
    rows, found = _Rows(path), dict[DeviceId, DeviceRecord]()
    for line, row in rows.read(("device", *DEVICE_COLUMNS), ("device",)):
        try:
            node, device = _target(row["device"])
        except BadName as error:
            rows.fault(line, "device", str(error).partition(": ")[2])
            continue
        if not device:
            rows.fault(line, "device", f"{row['device'][:40]!r} is a node; list its devices as <node>/<slot>")
        elif device in found:
            rows.fault(line, "device", f"{device} is there twice; leave one out")
        else:
            found[device] = device_record(node, device, region, row)
    rows.check()
    return found


def device_record(node: NodeId, device: DeviceId, region: RegionId, row: Mapping[str, str]) -> DeviceRecord:
    """An inventory entry from what a row says; what it does not say is the commonest."""
    return DeviceRecord(
        id=device,
        node=node,
        slot=device.partition("/")[2],
        uuid=device,
        vendor=row.get("vendor", "") or "nvidia",
        model=row.get("model", ""),
        architecture=row.get("architecture", "") or "hopper",
        pci_bus_id="",
        serial="",
        memory_mib=0,
        driver_version="",
        rack=row.get("rack", "") or "default",
        region=region,
        present=True,
        zone=row.get("zone", ""),
    )


def read_csv(
    path: str | Path,
    region: RegionId,
    inventory: Mapping[DeviceId, DeviceRecord] | None = None,
    classes: Mapping[str, tuple[EventKind, int]] | None = None,
) -> Trace:
    """The trace in ``path``. ``inventory`` None: the devices that the trace itself names. Raises ``BadTrace``."""
    columns = ("device", "time", "class", "code", "message", "truth", "repaired_at", *DEVICE_COLUMNS)
    rows, faults, assumed = _Rows(str(path)), list[Fault](), set[str]()
    devices = dict(inventory or {})
    meanings = {**CLASSES, **(classes or {})}
    nodes = {device.node for device in devices.values()}
    seen: set[tuple[str, int, str]] = set()
    doubles = 0
    for line, row in rows.read(columns, ("device", "time")):
        fault = _fault(rows, line, row, meanings, assumed, classes or {})
        if fault is None:
            continue
        key = (row["device"], fault.at_ms, f"{fault.name} {fault.message}")
        if key in seen:
            doubles += 1
            continue
        seen.add(key)
        if inventory is None:
            if fault.device and fault.device not in devices:
                devices[fault.device] = device_record(fault.node, fault.device, region, row)
        elif (fault.device or fault.node) not in (devices if fault.device else nodes):
            rows.fault(line, "device", f"{row['device']} is not in the inventory; add it there")
            continue
        faults.append(fault)
    rows.check()
    if not faults:
        raise BadTrace(f"{path}: it holds no faults; each row is one")
    faults.sort(key=lambda fault: fault.at_ms)
    notes = [f"class {name!r} is read as {_shown(meanings[name])} (an assumption; --classes overrides it)" for name in
             sorted(assumed)]  # fmt: skip
    if doubles:
        notes.append(f"{doubles} rows were there twice and are counted once")
    if inventory is None:
        notes.append(f"no inventory was given: budgets are of the {len(devices)} devices that the trace names")
    last = max(max(fault.at_ms, fault.repaired_ms) for fault in faults)
    return Trace(devices, tuple(faults), faults[0].at_ms, last, notes=tuple(notes))


def _shown(code: tuple[EventKind, int]) -> str:
    return f"{code[0].value} {code[1]:X}" if code[0] is EventKind.ASCEND else f"{code[0].value} {code[1]}"


def _fault(
    rows: _Rows,
    line: int,
    row: Mapping[str, str],
    meanings: Mapping[str, tuple[EventKind, int]],
    assumed: set[str],
    own: Mapping[str, tuple[EventKind, int]],
) -> Fault | None:
    """One row; None: it is wrong, and said so."""
    before = len(rows.wrong)
    node, device = NodeId(""), DeviceId("")
    try:
        node, device = _target(row["device"])
    except BadName as error:
        rows.fault(line, "device", str(error).partition(": ")[2])
    times = {"time": 0, "repaired_at": 0}
    for name in times:
        if name == "time" or row.get(name):
            try:
                times[name] = parse_time(row[name])
            except (ValueError, OverflowError) as error:
                rows.fault(line, name, str(error))
    if times["repaired_at"] and times["repaired_at"] < times["time"]:
        rows.fault(line, "repaired_at", f"{row['repaired_at'][:40]!r} lies before the fault; correct one of them")
    truth = TRUTHS.get(row.get("truth", "").lower())
    if truth is None:
        rows.fault(line, "truth", f"{row['truth'][:40]!r} is none; use real, false or nothing")
    code = _meaning(rows, line, row, meanings, assumed, own)
    if len(rows.wrong) > before or code is None or truth is None:
        return None
    message = row.get("message", "") or row.get("class", "") or f"{code[0].value} {code[1]}"
    return Fault(times["time"], node, device, code[0], code[1], message, truth, times["repaired_at"])


def _meaning(
    rows: _Rows,
    line: int,
    row: Mapping[str, str],
    meanings: Mapping[str, tuple[EventKind, int]],
    assumed: set[str],
    own: Mapping[str, tuple[EventKind, int]],
) -> tuple[EventKind, int] | None:
    if row.get("code"):
        code = parse_code(row["code"])
        if code is None:
            rows.fault(line, "code", f"{row['code'][:40]!r} is no code; write it like 'xid 48' or 'ascend 80E01801'")
        return code
    word = normal(row.get("class", ""))
    direct = parse_code(row.get("class", ""))
    if direct is not None:
        return direct
    if word in meanings:
        if word not in own:
            assumed.add(word)
        return meanings[word]
    known = ", ".join(sorted(meanings))
    shown = f"{row.get('class', '')[:40]!r} is not known" if word else "there is neither a class nor a code"
    rows.fault(line, "class", f"{shown}; give a code like 'xid 48', or map it with --classes; known are {known}")
    return None
