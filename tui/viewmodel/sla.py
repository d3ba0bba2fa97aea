"""The month so far: uptime by scope, exact, with the minutes behind it."""

from __future__ import annotations

from gridkeeper.v1.api_pb2 import Object, SlaView
from tui.viewmodel import words
from tui.viewmodel.state import SLA, Now, State
from tui.viewmodel.table import Column, Ref, Row, Table
from tui.viewmodel.text import Span, Spans, Tone, age, cell, duration, minutes, percent

COLUMNS = (
    Column("scope", 14, most=34),
    Column("now", 10),
    Column("for", 4, right=True, rank=3),
    Column("uptime %", 8, right=True),
    Column("month so far", 20, rank=4),
    Column("down min", 8, right=True),
    Column("degraded", 8, right=True, rank=2),
    Column("unknown", 8, right=True, rank=1),
    Column("excluded", 8, right=True, rank=5),
    Column("of", 8, right=True, rank=6),
    Column("why", 12, flex=1, rank=7),
)

_GROUPS = ("region", "job", "device")


def table(state: State, now: Now) -> Table:
    """Regions, then jobs, then devices; in each the most downtime first."""
    items = [i for i in state.values(SLA) if i.WhichOneof("view") == "sla"]
    items.sort(key=lambda i: (-i.sla.totals.down_ms, -i.sla.totals.unknown_ms, i.name))
    rows: list[Row] = []
    for group in (*_GROUPS, ""):
        members = [i for i in items if _group(i) == group]
        if members:
            title = f"{group.capitalize()}s" if group else "Others"
            month = members[0].sla.account.month
            rows.append(Row(title, ((Span(title, Tone.TITLE),), cell(month, Tone.DIM)), heading=True))
            rows.extend(_row(state, i, now) for i in members)
    return Table(COLUMNS, rows, "no accounts yet" if state.connection.synced else "waiting for the grid…")


def _group(item: Object) -> str:
    kind = scope_of(item).partition("/")[0]
    return kind if kind in _GROUPS else ""


def scope_of(item: Object) -> str:
    return item.sla.account.scope or item.name


def composition(view: SlaView, columns: int) -> Spans:
    """A bar of the elapsed time by class. A class that has any time gets at least one cell."""
    t = view.totals
    parts = (
        ("━", Tone.GOOD, t.up_ms),
        ("d", Tone.WARN, t.degraded_ms),
        ("×", Tone.BAD, t.down_ms),
        ("?", Tone.UNKNOWN, t.unknown_ms),
        ("╌", Tone.DIM, t.excluded_ms),
    )
    total = sum(ms for _, _, ms in parts)
    if total <= 0:
        return (Span("╌" * columns, Tone.DIM),)
    cells = [max(1, columns * ms // total) if ms > 0 else 0 for _, _, ms in parts]
    while sum(cells) > columns:
        cells[cells.index(max(cells))] -= 1
    cells[max(range(len(cells)), key=lambda i: parts[i][2])] += columns - sum(cells)
    return tuple(Span(glyph * n, tone) for (glyph, tone, _), n in zip(parts, cells, strict=True) if n)


def _row(state: State, item: Object, now: Now) -> Row:
    view = item.sla
    mark = words.mark(words.UPTIME, view.account.current) if view.HasField("account") else words.UNKNOWN
    down = view.totals.down_ms
    return Row(
        key=item.name,
        cells=(
            cell(scope_of(item).partition("/")[2] or item.name, Tone.STRONG),
            mark.spans(),
            cell(age(view.account.since_ms, state.now_ms(now)), Tone.DIM),
            cell(percent(view.uptime), Tone.STRONG),
            composition(view, 20),
            cell(minutes(down), Tone.BAD if down else Tone.DIM),
            cell(minutes(view.totals.degraded_ms), Tone.WARN if view.totals.degraded_ms else Tone.DIM),
            cell(minutes(view.totals.unknown_ms), Tone.UNKNOWN if view.totals.unknown_ms else Tone.DIM),
            cell(minutes(view.totals.excluded_ms), Tone.DIM),
            cell(duration(view.elapsed_ms), Tone.DIM),
            cell(view.account.reason, Tone.DIM),
        ),
        ref=Ref(SLA, item.name),
        stale=state.is_stale(item.region, now),
        troubled=mark.word in ("down", "degraded", "unknown"),
        labels=dict(item.labels),
    )
