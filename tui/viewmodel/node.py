"""The devices of one node, with their readings."""

from __future__ import annotations

import math

from gridkeeper.v1.api_pb2 import Object
from tui.viewmodel.fleet import TROUBLE, device_mark, device_names, reading
from tui.viewmodel.state import DEVICE, NODE, Now, State
from tui.viewmodel.table import Column, Ref, Row, Table
from tui.viewmodel.text import Span, Spans, Tone, age, cell, number, span

COLUMNS = (
    Column("device", 8, most=16),
    Column("health", 15),
    Column("for", 4, right=True, rank=2),
    Column("job", 8, most=28),
    Column("°C", 4, right=True),
    Column("util %", 6, right=True),
    Column("W", 5, right=True, rank=3),
    Column("mem %", 5, right=True, rank=1),
    Column("ecc", 4, right=True, rank=4),
    Column("model", 10, rank=6, most=24),
    Column("why", 12, flex=1, rank=5),
)


def table(state: State, now: Now, node: str) -> Table:
    rows = [_row(state, name, state.get(DEVICE, name), now) for name in device_names(state, node)]
    item = state.get(NODE, node)
    return Table(
        COLUMNS, rows, "this node has no devices" if item is not None else f"node {node} is not there any more"
    )


def _reading(item: Object, name: str, tone: Tone = Tone.PLAIN) -> Spans:
    value = reading(item.device, name)
    if not math.isfinite(value):
        return (Span("?", Tone.UNKNOWN),)
    return (Span(number(value, 3), tone),)


def _memory(item: Object) -> Spans:
    used, total = reading(item.device, "memory_used"), reading(item.device, "memory_total")
    if not math.isfinite(used) or not math.isfinite(total) or total <= 0:
        return (Span("?", Tone.UNKNOWN),)
    return (Span(f"{100 * used / total:.0f}"),)


def _row(state: State, name: str, item: Object | None, now: Now) -> Row:
    mark = device_mark(item)
    slot = name.rpartition("/")[2]
    if item is None or item.WhichOneof("view") != "device":
        nothing: Spans = ()
        return Row(
            name,
            (cell(slot), mark.spans(), nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing),
            ref=Ref(DEVICE, name),
            troubled=True,
        )
    view = item.device
    health = view.health
    cordon = view.cordon.reasons[0] if view.cordon.reasons else None
    why = health.reason or (f"cordoned by {cordon.owner}: {cordon.reason}" if cordon else "")
    uncorrected = reading(view, "ecc_uncorrected")
    return Row(
        key=name,
        cells=(
            cell(slot, Tone.STRONG),
            mark.spans(),
            cell(age(health.since_ms, state.now_ms(now)), Tone.DIM),
            cell(view.job, Tone.BUSY),
            _reading(item, "temperature"),
            _reading(item, "utilisation"),
            _reading(item, "power"),
            _memory(item),
            _reading(item, "ecc_uncorrected", Tone.BAD if math.isfinite(uncorrected) and uncorrected > 0 else Tone.DIM),
            cell(view.record.model, Tone.DIM),
            (span(why, Tone.DIM),),
        ),
        ref=Ref(DEVICE, name),
        stale=state.is_stale(item.region, now),
        troubled=mark.word in TROUBLE,
        labels=dict(item.labels),
    )
