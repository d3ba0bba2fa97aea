"""The inbox: what is wrong, how long, and what the machine did about it."""

from __future__ import annotations

from gridkeeper.v1.api_pb2 import Object
from tui.viewmodel import words
from tui.viewmodel.moves import drain_progress, migration_line
from tui.viewmodel.state import DRAIN, INCIDENT, MIGRATION, Now, State
from tui.viewmodel.table import Column, Ref, Row, Table
from tui.viewmodel.text import Span, Spans, Tone, age, cell, duration, joined, span

SHORT = {"acknowledged": "acked"}

COLUMNS = (
    Column("severity", 9),
    Column("age", 4, right=True),
    Column("state", 10, rank=3),
    Column("subject", 12, most=28),
    Column("fault", 6, rank=5, most=14),
    Column("n", 3, right=True, rank=6),
    Column("what is wrong", 18, flex=2, wish=26),
    Column("what the machine did", 18, flex=3, rank=1, wish=46),
)


def table(state: State, now: Now) -> Table:
    """Open ones first, the worst first, the newest first."""
    items = [i for i in state.values(INCIDENT) if i.WhichOneof("view") == "incident"]
    items.sort(key=lambda i: (_settled(i), -i.incident.severity, -i.incident.opened_ms, i.name))
    by_incident = migrations_by_incident(state)
    empty = "no incidents: quiet night" if state.connection.synced else "waiting for the grid…"
    return Table(COLUMNS, [_row(state, i, now, by_incident) for i in items], empty, calm=state.connection.synced)


def open_count(state: State) -> tuple[int, int]:
    """(open or acknowledged, of these the fatal ones)."""
    live = [i for i in state.values(INCIDENT) if i.WhichOneof("view") == "incident" and not _settled(i)]
    return len(live), sum(words.mark(words.SEVERITY, i.incident.severity).word == "fatal" for i in live)


def migrations_by_incident(state: State) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for item in state.values(MIGRATION):
        if item.migration.incident:
            found.setdefault(item.migration.incident, []).append(item)
    for moves in found.values():
        moves.sort(key=lambda i: i.migration.requested_ms)
    return found


def _settled(item: Object) -> bool:
    return words.mark(words.INCIDENT, item.incident.state).word == "resolved"


def _row(state: State, item: Object, now: Now, moves: dict[str, list[Object]]) -> Row:
    record = item.incident
    severity = words.mark(words.SEVERITY, record.severity)
    life = words.mark(words.INCIDENT, record.state)
    settled = _settled(item)
    faded = Tone.DIM if settled else Tone.PLAIN
    return Row(
        key=item.name,
        cells=(
            (span(f"{severity.glyph} {severity.word}", Tone.DIM if settled else severity.tone),),
            cell(age(record.opened_ms, state.now_ms(now)), faded),
            (Span(f"{life.glyph} {SHORT.get(life.word, life.word)}", life.tone),),
            cell(record.subject, Tone.DIM if settled else Tone.STRONG),
            cell(record.fault_class, Tone.DIM),
            cell(record.count, Tone.DIM),
            cell(record.title, faded),
            machine_did(state, item, now, moves.get(item.name, [])),
        ),
        ref=Ref(INCIDENT, item.name),
        stale=state.is_stale(item.region, now),
        troubled=not settled,
        labels=dict(item.labels),
    )


def machine_did(state: State, item: Object, now: Now, moves: list[Object]) -> Spans:
    """One line: the drain, then each job that was moved."""
    record = item.incident
    parts: list[Spans] = []
    if record.drain:
        drain = state.get(DRAIN, record.drain)
        if drain is not None and drain.WhichOneof("view") == "drain":
            parts.append(drain_progress(drain.drain))
        else:
            parts.append((span("drain ordered", Tone.INFO),))
    parts.extend(migration_line(m.migration) for m in moves)
    if record.resolved_ms and record.opened_ms:
        took = duration(record.resolved_ms - record.opened_ms)
        parts.append((span(f"resolved after {took}", Tone.DIM),))
    if record.acknowledged_by and not record.resolved_ms:
        parts.append((span(f"seen by {record.acknowledged_by}", Tone.DIM),))
    return joined(tuple(parts), " · ") or (span("watching", Tone.DIM),)
