"""What agents saw and what detection concluded, the newest first."""

from __future__ import annotations

from gridkeeper.v1.api_pb2 import Object
from tui.viewmodel import words
from tui.viewmodel.state import EVENT, FINDING, Now, State, moment
from tui.viewmodel.table import Column, Ref, Row, Table
from tui.viewmodel.text import Span, Tone, age, cell, clock_time

COLUMNS = (
    Column("time UTC", 8, rank=2),
    Column("age", 4, right=True),
    Column("kind", 12, most=18),
    Column("code", 6, most=24),
    Column("where", 12, most=28),
    Column("n", 3, right=True, rank=4),
    Column("seen by", 9, rank=3, most=20),
    Column("message", 20, flex=1),
)


def table(state: State, now: Now, section: str = "") -> Table:
    """``section``: "events", "findings" or "" for both together in time."""
    items: list[Object] = []
    if section != "findings":
        items += [i for i in state.values(EVENT) if i.WhichOneof("view") == "event"]
    if section != "events":
        items += [i for i in state.values(FINDING) if i.WhichOneof("view") == "finding"]
    items.sort(key=lambda i: (-moment(i), i.name))
    empty = "no events: nothing was seen" if state.connection.synced else "waiting for the grid…"
    rows = [row(state, i, now) for i in items]
    return Table(COLUMNS, rows, empty, calm=state.connection.synced)


def row(state: State, item: Object, now: Now) -> Row:
    """One event or finding."""
    now_ms = state.now_ms(now)
    stale = state.is_stale(item.region, now)
    when = moment(item)
    if item.WhichOneof("view") == "finding":
        finding = item.finding
        severity = words.mark(words.SEVERITY, finding.severity)
        tone = severity.tone if finding.active else Tone.DIM
        return Row(
            key=f"finding/{item.name}",
            cells=(
                cell(clock_time(when), Tone.DIM),
                cell(age(when, now_ms)),
                (Span(f"{severity.glyph} finding", tone),),
                cell(finding.code, Tone.STRONG),
                cell(finding.device or finding.node),
                (),
                cell(finding.rule, Tone.DIM),
                cell(finding.sentence if finding.active else f"cleared: {finding.sentence}"),
            ),
            ref=Ref(FINDING, item.name),
            stale=stale,
            troubled=finding.active and severity.word in ("error", "fatal"),
            labels=dict(item.labels),
        )
    event = item.event
    kind = words.mark(words.EVENT_KIND, event.kind)
    return Row(
        key=f"event/{item.name}",
        cells=(
            cell(clock_time(when), Tone.DIM),
            cell(age(when, now_ms)),
            kind.spans(),
            cell(event.code or "", Tone.STRONG),
            cell(event.device or event.node),
            cell(event.count, Tone.DIM) if event.count > 1 else (),
            cell("+".join(event.sources), Tone.DIM),
            cell(event.message),
        ),
        ref=Ref(EVENT, item.name),
        stale=stale,
        troubled=kind.tone is Tone.BAD,
        labels=dict(item.labels),
    )
