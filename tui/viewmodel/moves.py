"""Drains and migrations: how far each has got, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from gridkeeper.v1 import records_pb2 as pb
from gridkeeper.v1.api_pb2 import Object
from tui.viewmodel import words
from tui.viewmodel.state import DRAIN, MIGRATION, Now, State
from tui.viewmodel.table import Column, Ref, Row, Table
from tui.viewmodel.text import NONE, Span, Spans, Tone, age, cell, duration, joined, progress, span

COLUMNS = (
    Column("what", 14, most=30),
    Column("state", 16, most=18),
    Column("progress", 11, rank=4),
    Column("from → to", 13, rank=1, most=34),
    Column("age", 4, right=True),
    Column("took", 8, right=True, rank=6),
    Column("RPO", 8, right=True, rank=2, most=20),
    Column("RTO", 7, right=True, rank=2),
    Column("why", 12, flex=1, rank=3, wish=16),
)

_PLANNED = (
    "planned",
    "pre copying",
    "stopping",
    "copying",
    "verified",
    "ownership moved",
    "starting",
    "running",
    "done",
)
_RECOVERY = ("planned", "fencing", "source fenced", "verified", "ownership moved", "starting", "running", "done")
_START = ("planned", "ownership moved", "starting", "running", "done")
STEPS = {"planned": _PLANNED, "recovery": _RECOVERY, "start": _START}
DRAIN_STEPS = ("planned", "admitted", "evacuating", "drained")

_ENDED_MOVES = frozenset({"done", "cancelled", "rolled back", "failed"})
_ENDED_DRAINS = frozenset({"drained", "refused", "cancelled", "failed", "expired", "shadow"})


def table(state: State, now: Now, section: str = "") -> Table:
    """``section``: "drains", "migrations" or "" for both. What is under way first, then the newest."""
    rows: list[Row] = []
    if section != "migrations":
        drains = [i for i in state.values(DRAIN) if i.WhichOneof("view") == "drain"]
        drains.sort(key=lambda i: (not drain_open(i), -i.drain.planned_ms, i.name))
        rows += _section("Drains", [_drain_row(state, i, now) for i in drains])
    if section != "drains":
        moves = [i for i in state.values(MIGRATION) if i.WhichOneof("view") == "migration"]
        moves.sort(key=lambda i: (not move_open(i), -i.migration.requested_ms, i.name))
        rows += _section("Migrations", [_move_row(state, i, now) for i in moves])
    empty = "nothing is being drained or moved" if state.connection.synced else "waiting for the grid…"
    return Table(COLUMNS, rows, empty, calm=state.connection.synced)


def _section(title: str, rows: list[Row]) -> list[Row]:
    if not rows:
        return []
    busy = sum(row.troubled for row in rows)
    note = f"{busy} under way, {len(rows)} in all" if busy else f"{len(rows)}, none under way"
    return [Row(title, ((Span(title, Tone.TITLE),), (Span(note, Tone.DIM),)), heading=True), *rows]


def drain_open(item: Object) -> bool:
    return words.mark(words.DRAIN, item.drain.state).word not in _ENDED_DRAINS


def move_open(item: Object) -> bool:
    return words.mark(words.MIGRATION, item.migration.state).word not in _ENDED_MOVES


def took(stages: Sequence[pb.Stamp]) -> int:
    """From the first stage to the last, ms; -1 with fewer than two."""
    times = [s.at_ms for s in stages if s.at_ms > 0]
    return max(times) - min(times) if len(times) > 1 else -1


def rpo(record: pb.MigrationRecord) -> str:
    """Work lost: steps, and the time they took. A dash while it is not known."""
    if record.rpo_steps < 0:
        return NONE
    if record.rpo_steps == 0:
        return "not known yet" if record.rpo_at_least else "none"
    least = "≥ " if record.rpo_at_least else ""
    steps = f"{least}{record.rpo_steps} step" + ("s" if record.rpo_steps != 1 else "")
    return f"{steps}, {duration(record.rpo_ms)}" if record.rpo_ms > 0 else steps


def rto(record: pb.MigrationRecord) -> str:
    return duration(record.rto_ms) if record.rto_ms >= 0 and record.source_region else NONE


def move_progress(record: pb.MigrationRecord, columns: int) -> Spans:
    mark = words.mark(words.MIGRATION, record.state)
    steps = STEPS.get(words.mark(words.MIGRATION_KIND, record.kind).word, _PLANNED)
    if mark.word in steps:
        return progress(steps.index(mark.word) + 1, len(steps), columns, mark.tone)
    reached = {s.name.replace("_", " ").lower() for s in record.stages}
    return progress(sum(s in reached for s in steps), len(steps), columns, mark.tone)


def drain_progress(record: pb.DrainRecord) -> Spans:
    """``✓ drained in 4.2 s`` or ``▼ evacuating``."""
    mark = words.mark(words.DRAIN, record.state)
    spent = took(record.stages)
    suffix = f" in {duration(spent)}" if mark.word == "drained" and spent >= 0 else ""
    return (Span(f"{mark.glyph} {mark.word}{suffix}", mark.tone),)


def migration_line(record: pb.MigrationRecord) -> Spans:
    """``train-1 east→west done, RTO 12.3 s``."""
    mark = words.mark(words.MIGRATION, record.state)
    cost = f", RTO {rto(record)}" if rto(record) != NONE else ""
    return (
        span(record.job, Tone.BUSY),
        span(f" {record.source_region or 'new'}→{record.target_region or '?'} ", Tone.PLAIN),
        Span(f"{mark.glyph} {mark.word}", mark.tone),
        Span(cost, Tone.DIM),
    )


def _drain_row(state: State, item: Object, now: Now) -> Row:
    record = item.drain
    mark = words.mark(words.DRAIN, record.state)
    live = drain_open(item)
    done = DRAIN_STEPS.index(mark.word) + 1 if mark.word in DRAIN_STEPS else 1
    jobs = ", ".join(record.jobs)
    return Row(
        key=f"drain/{item.name}",
        cells=(
            cell(record.device or record.node, Tone.STRONG if live else Tone.PLAIN),
            mark.spans(),
            progress(done, len(DRAIN_STEPS), 10, mark.tone),
            (span(f"jobs: {jobs}", Tone.BUSY),) if jobs else (Span("no jobs", Tone.DIM),),
            cell(age(record.planned_ms, state.now_ms(now))),
            cell(duration(took(record.stages)), Tone.DIM),
            (),
            (),
            cell(record.reason, Tone.DIM),
        ),
        ref=Ref(DRAIN, item.name),
        stale=state.is_stale(item.region, now),
        troubled=live or mark.tone is Tone.BAD,
        labels=dict(item.labels),
    )


def _move_row(state: State, item: Object, now: Now) -> Row:
    record = item.migration
    mark = words.mark(words.MIGRATION, record.state)
    live = move_open(item)
    source = record.source_node or record.source_region or "start"
    target = record.target_node or record.target_region or "…"
    lost = rpo(record)
    return Row(
        key=f"migration/{item.name}",
        cells=(
            cell(record.job, Tone.STRONG if live else Tone.PLAIN),
            mark.spans(),
            move_progress(record, 10),
            (span(source), Span(" → ", Tone.DIM), span(target, Tone.BUSY)),
            cell(age(record.requested_ms, state.now_ms(now))),
            cell(duration(took(record.stages)), Tone.DIM),
            cell(lost, Tone.GOOD if lost == "none" else Tone.PLAIN if lost != NONE else Tone.DIM),
            cell(rto(record), Tone.PLAIN if rto(record) != NONE else Tone.DIM),
            joined(
                (
                    (span(f"{words.mark(words.MIGRATION_KIND, record.kind).word}: {record.reason}", Tone.DIM),),
                    (span("; ".join(record.refused), Tone.WARN),) if record.refused else (),
                )
            ),
        ),
        ref=Ref(MIGRATION, item.name),
        stale=state.is_stale("", now),
        troubled=live or mark.tone is Tone.BAD,
        labels=dict(item.labels),
    )


def under_way(state: State) -> int:
    """Drains and migrations that have not ended."""
    drains = sum(i.WhichOneof("view") == "drain" and drain_open(i) for i in state.values(DRAIN))
    return drains + sum(i.WhichOneof("view") == "migration" and move_open(i) for i in state.values(MIGRATION))
