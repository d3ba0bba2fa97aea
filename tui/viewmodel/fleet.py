"""The grid map: region → rack → node, one glyph per device."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object
from tui.viewmodel import words
from tui.viewmodel.state import DEVICE, NODE, REGION, Now, State
from tui.viewmodel.table import Column, Ref, Row, Table
from tui.viewmodel.text import NONE, Span, Spans, Tone, cell, clean, duration, span


class Colouring(enum.Enum):
    """What a device's cell shows."""

    HEALTH = "health"
    TEMPERATURE = "temperature"
    UTILISATION = "utilisation"

    def next(self) -> Colouring:
        order = list(Colouring)
        return order[(order.index(self) + 1) % len(order)]

    @property
    def cell_width(self) -> int:
        return 2 if self is Colouring.HEALTH else 4


TELEMETRY_STALE_MS = 10_000
"""Older readings are not shown as if they were now."""

IDLE = words.Mark("healthy, idle", "□", Tone.GOOD)
CORDONED = words.Mark("cordoned", "c", Tone.INFO)
ABSENT = words.Mark("missing", "-", Tone.BAD)
_WORST = ("missing", "draining", "degraded", "drained", "suspect", "repairing", "probation")
TROUBLE = frozenset({"suspect", "degraded", "draining", "drained", "unknown", "missing"})

LEGEND: tuple[Spans, ...] = tuple(
    (Span(m.glyph, m.tone), Span(f" {m.word}", Tone.DIM))
    for m in (
        words.Mark("busy", "■", Tone.GOOD),
        words.Mark("idle", "□", Tone.GOOD),
        words.Mark("suspect", "s", Tone.WARN),
        words.Mark("degraded", "d", Tone.WARN),
        words.Mark("draining", "▼", Tone.BAD),
        words.Mark("drained", "▽", Tone.BAD),
        words.UNKNOWN,
        CORDONED,
        ABSENT,
        words.Mark("repair", "r", Tone.INFO),
        words.Mark("probation", "p", Tone.INFO),
        words.Mark("retired", "×", Tone.DIM),
    )
)


def device_mark(item: Object | None) -> words.Mark:
    """How a device is shown in the map; one that nobody has told of is unknown."""
    if item is None or item.WhichOneof("view") != "device":
        return words.UNKNOWN
    view = item.device
    if view.HasField("record") and not view.record.present:
        return ABSENT
    mark = words.health_of(view)
    if mark.word == "healthy":
        if item.labels.get("cordoned") == "yes" or view.cordon.reasons:
            return CORDONED
        return mark if view.job else IDLE
    return mark


def reading(view: api_pb2.DeviceView, name: str) -> float:
    """The newest known, fresh value of a metric; NaN otherwise."""
    if not 0 <= view.metrics_age_ms <= TELEMETRY_STALE_MS:
        return math.nan
    for metric in view.metrics:
        if metric.name == name:
            return metric.value if metric.known else math.nan
    return math.nan


def heat(item: Object | None, colouring: Colouring, known: words.Mark | None = None) -> Span:
    """One device's cell, ``colouring.cell_width`` wide. ``known``: its mark, if the caller has it."""
    mark = known or device_mark(item)
    if colouring is Colouring.HEALTH or item is None or item.WhichOneof("view") != "device":
        return Span(mark.glyph.ljust(colouring.cell_width), mark.tone)
    value = reading(item.device, colouring.value)
    if not math.isfinite(value):
        return Span("  ? ", Tone.UNKNOWN)
    if colouring is Colouring.TEMPERATURE:
        slowdown = reading(item.device, "temperature_slowdown")
        return Span(f"{value:3.0f} "[:4], _warmth(value, slowdown if math.isfinite(slowdown) else 90.0))
    return Span(f"{value:3.0f} "[:4], _load(value))


def _warmth(celsius: float, slowdown: float) -> Tone:
    if celsius >= slowdown:
        return Tone.FATAL
    if celsius >= slowdown - 5:
        return Tone.BAD
    if celsius >= slowdown - 15:
        return Tone.WARN
    return Tone.GOOD if celsius >= 50 else Tone.INFO


def _load(share: float) -> Tone:
    if share >= 80:
        return Tone.GOOD
    if share >= 20:
        return Tone.BUSY
    return Tone.DIM


@dataclass(slots=True)
class FleetView:
    """Keeps the rows of nodes that did not change."""

    colouring: Colouring = Colouring.HEALTH
    _rows: dict[tuple[str, bool], tuple[int, Colouring, Row]] = field(default_factory=dict)

    def table(self, state: State, now: Now) -> Table:
        """Regions in name order, their racks, their nodes."""
        nodes: dict[str, dict[str, list[str]]] = {name: {} for name in state.all(REGION)}
        for name, item in state.all(NODE).items():
            rack = item.node.record.rack if item.node.HasField("record") else ""
            nodes.setdefault(item.region, {}).setdefault(rack, []).append(name)
        for name in state.devices_of:  # devices of a node that nobody has told of
            if state.get(NODE, name) is None and state.devices_of[name]:
                device = state.get(DEVICE, min(state.devices_of[name]))
                nodes.setdefault(device.region if device else "", {}).setdefault("?", []).append(name)
        rows: list[Row] = []
        widest = 8
        for region in sorted(nodes):
            rows.append(self._region_row(state, region, now))
            stale = state.is_stale(region, now)
            for rack in sorted(nodes[region]):
                for name in sorted(nodes[region][rack]):
                    row = self._node_row(state, name, stale)
                    widest = max(widest, len(row.picks))
                    rows.append(row)
        cells = self.colouring.cell_width * widest
        columns = (
            Column("rack", 4, rank=5, most=16),
            Column("node", 8, most=28),
            Column("state", 13, rank=2),
            Column(f"devices by {self.colouring.value}", min(cells, 96), most=192),
            Column("use", 5, right=True, rank=1),
            Column("jobs", 10, rank=2, most=24),
            Column("what", 16, flex=1, rank=3, wish=40),
        )
        empty = "no nodes yet: waiting for the first agent" if state.connection.synced else "waiting for the grid…"
        return Table(columns, rows, empty)

    def _region_row(self, state: State, region: str, now: Now) -> Row:
        item = state.get(REGION, region)
        stale = state.is_stale(region, now)
        age = state.connection.region_age_ms(region, now)
        cells: list[Spans] = [(Span(clean(region) or "(no region)", Tone.TITLE),), (), (), ()]
        if stale:
            since = f"STALE {duration(age)}" if age is not None else "STALE"
            cells[1] = (Span(since, Tone.BAD),)
        if item is not None and item.region_view.HasField("record"):
            record = item.region_view.record
            room = f"{record.free} free, at most {record.largest_free} on one node"
            text = f"{record.usable} of {record.devices} devices usable, {room}"
            cells[2] = (Span(text, Tone.DIM),)
            if record.in_doubt:
                cells[3] = (Span("FROZEN: too much looks dead at once", Tone.BAD),)
        return Row(region, tuple(cells), heading=True, stale=stale)

    def _node_row(self, state: State, name: str, stale: bool) -> Row:
        stamp = state.node_stamps.get(name, 0)
        held = self._rows.get((name, stale))
        if held is not None and held[0] == stamp and held[1] is self.colouring:
            return held[2]
        row = node_row(state, name, self.colouring, stale)
        self._rows[(name, stale)] = (stamp, self.colouring, row)
        return row


def device_names(state: State, node: str) -> list[str]:
    """Devices of a node in slot order (gpu2 before gpu10): those told of, and those that only the node names."""
    item = state.get(NODE, node)
    names = set(state.devices_of.get(node, ()))
    if item is not None:
        names.update(item.node.record.devices)
    return sorted(names, key=lambda n: (len(n), n))


def node_row(state: State, name: str, colouring: Colouring, stale: bool) -> Row:
    """One node with its devices."""
    item = state.get(NODE, name)
    devices = [(d, state.get(DEVICE, d)) for d in device_names(state, name)]
    alive = item.node.liveness if item is not None and item.node.HasField("liveness") else None
    mark = words.mark(words.NODE, alive.state) if alive is not None else words.UNKNOWN
    marks = [device_mark(d) for _, d in devices]
    usable = sum(m.word in ("healthy", "healthy, idle", "suspect") for m in marks)
    cordoned = item is not None and bool(item.node.cordon.reasons)
    troubled = mark.word != "alive" or any(m.word in TROUBLE for m in marks)
    jobs = sorted({d.device.job for _, d in devices if d is not None and d.device.job})
    tone = Tone.PLAIN if usable == len(devices) else Tone.WARN
    return Row(
        key=f"{item.region if item else ''}\x00\x00{name}",
        cells=(
            cell(item.node.record.rack if item is not None else "", Tone.DIM),
            cell(name, Tone.STRONG if troubled else Tone.PLAIN),
            (Span(f"{mark.glyph} {mark.word}", mark.tone), Span(" c" if cordoned else "", Tone.INFO)),
            tuple(heat(d, colouring, m) for (_, d), m in zip(devices, marks, strict=True))
            or cell("no devices", Tone.DIM),
            (Span(f"{usable}/{len(devices)}", tone),),
            (span(", ".join(jobs), Tone.BUSY),) if jobs else (Span(NONE, Tone.DIM),),
            _what(item, [(d, m) for (_, d), m in zip(devices, marks, strict=True) if d is not None]),
        ),
        ref=Ref(NODE, name),
        stale=stale,
        troubled=troubled,
        picks=tuple(Ref(DEVICE, d) for d, _ in devices),
        pick_column=3,
        labels=dict(item.labels) if item is not None else {},
    )


def _what(node: Object | None, devices: list[tuple[Object, words.Mark]]) -> Spans:
    """The worst thing on the node, in a sentence."""
    alive = node.node.liveness if node is not None and node.node.HasField("liveness") else None
    if alive is not None and words.mark(words.NODE, alive.state).word != "alive" and alive.reason:
        return (span(alive.reason, Tone.WARN),)
    odd = {mark.word: item for item, mark in reversed(devices) if mark.word in _WORST}
    for wanted in _WORST if odd else ():
        if (worst := odd.get(wanted)) is not None:
            mark = device_mark(worst)
            slot = worst.name.rpartition("/")[2]
            why = worst.device.health.reason if worst.device.HasField("health") else ""
            return (span(f"{slot} {mark.word}", mark.tone), span(f": {why}" if why else "", Tone.DIM))
    if node is not None and node.node.cordon.reasons:
        reason = node.node.cordon.reasons[0]
        return (Span("cordoned", Tone.INFO), span(f" by {reason.owner}: {reason.reason}", Tone.DIM))
    return ()
