"""Jobs: where each runs, how far it has come, and how much would be lost."""

from __future__ import annotations

from gridkeeper.v1.api_pb2 import JobView, Object
from tui.viewmodel import words
from tui.viewmodel.state import JOB, Now, State
from tui.viewmodel.table import Column, Ref, Row, Table
from tui.viewmodel.text import NONE, Span, Spans, Tone, age, cell, number, span

COLUMNS = (
    Column("job", 12, most=32),
    Column("state", 11),
    Column("epoch", 5, right=True, rank=5),
    Column("region", 6, rank=2, most=16),
    Column("node", 7, rank=1, most=24),
    Column("dev", 3, right=True, rank=7),
    Column("step", 7, right=True),
    Column("loss", 7, right=True, rank=3),
    Column("progress", 8, right=True, rank=4),
    Column("checkpoint", 12, right=True),
    Column("redo", 5, right=True, rank=6),
    Column("what", 12, flex=1, rank=3, wish=26),
)

_ORDER = ("failed", "unknown", "pending", "stopping", "starting", "running", "stopped", "succeeded")


def table(state: State, now: Now) -> Table:
    """Those in trouble first, then by name."""
    items = [i for i in state.values(JOB) if i.WhichOneof("view") == "job"]
    items.sort(key=lambda i: (_ORDER.index(job_mark(i).word), i.name))
    if not state.connection.synced:
        return Table(COLUMNS, [_row(state, i, now) for i in items], "waiting for the grid…")
    return Table(COLUMNS, [_row(state, i, now) for i in items], "no jobs: submit one with `gridkeeper job submit`")


def job_mark(item: Object) -> words.Mark:
    return words.mark(words.JOB, item.job.record.state) if item.job.HasField("record") else words.UNKNOWN


def running(state: State) -> int:
    return sum(i.WhichOneof("view") == "job" and job_mark(i).word == "running" for i in state.values(JOB))


def epoch(view: JobView) -> str:
    if not view.HasField("ownership") or not view.ownership.HasField("epoch"):
        return NONE
    return f"{view.ownership.epoch.generation}.{view.ownership.epoch.number}"


def last_step(view: JobView) -> int:
    """-1: none yet, or not told."""
    return view.run.last_step if view.HasField("run") else -1


def checkpoint(view: JobView, now_ms: int) -> Spans:
    """``1200 45s ago``."""
    if not view.HasField("head"):
        return (Span(NONE, Tone.DIM),)
    return (Span(f"{view.head.step}", Tone.PLAIN), Span(f" {age(view.head.committed_ms, now_ms)} ago", Tone.DIM))


def redo(view: JobView) -> str:
    """Steps since the last verified checkpoint: what a crash now would cost."""
    step = last_step(view)
    if step < 0:
        return NONE
    return str(max(0, step - view.head.step)) if view.HasField("head") else str(step)


def _row(state: State, item: Object, now: Now) -> Row:
    view = item.job
    mark = job_mark(item)
    now_ms = state.now_ms(now)
    step = last_step(view)
    owner = view.ownership
    run = view.run
    loss = number(run.last_loss, 6) if view.HasField("run") and step >= 0 else NONE
    revoked = view.HasField("ownership") and owner.HasField("revoke")
    why = owner.revoke.reason if revoked else view.record.reason
    return Row(
        key=item.name,
        cells=(
            cell(item.name, Tone.STRONG),
            mark.spans(),
            cell(epoch(view)),
            cell(owner.region),
            cell(owner.node),
            cell(len(owner.devices) or ""),
            cell(step if step >= 0 else ""),
            cell(loss),
            cell(f"{age(run.last_step_ms, now_ms)} ago" if run.last_step_ms > 0 else "", Tone.DIM),
            checkpoint(view, now_ms),
            cell(redo(view), Tone.DIM),
            (span("leaving: " if revoked else "", Tone.WARN), span(why, Tone.DIM)),
        ),
        ref=Ref(JOB, item.name),
        stale=state.is_stale(owner.region, now),
        troubled=mark.word in ("failed", "unknown", "pending", "stopping"),
        labels=dict(item.labels),
    )
