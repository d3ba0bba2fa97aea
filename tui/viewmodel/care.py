"""What is planned for a device or node, done to it, and what a drain costs."""

from __future__ import annotations

from collections.abc import Iterator

from gridkeeper.client.plain import word
from gridkeeper.v1 import records_pb2 as pb
from tui.viewmodel import words
from tui.viewmodel.state import MAINTENANCE, REPAIR, State
from tui.viewmodel.text import Span, Spans, Tone, clock_time, date_time, duration, span


def entries(state: State, subject: str) -> Iterator[tuple[int, Spans]]:
    """Repairs and announced maintenance for a timeline: when, and the words."""
    for item in state.values(REPAIR):
        repair = item.repair
        if subject in (repair.device, repair.node):
            mark = words.mark(words.REPAIR, repair.state)
            what = f"{mark.glyph} repair ({word(repair, 'kind').replace('_', ' ')}) {mark.word}"
            newest = repair.stages[-1].at_ms if repair.stages else repair.proposed_ms
            yield newest, (Span(what, mark.tone), span(f"  {repair.result or repair.reason}", Tone.DIM))
    for item in state.values(MAINTENANCE):
        window = item.maintenance
        if window.target in (subject, subject.partition("/")[0]):
            mark = words.mark(words.MAINTENANCE, window.state)
            when = f"  {date_time(window.from_ms)} until {date_time(window.until_ms)}: {window.reason}"
            yield window.announced_ms, (Span(f"{mark.glyph} maintenance {mark.word}", mark.tone), span(when, Tone.DIM))


def manner(record: pb.DrainRecord) -> str:
    """How a drain lets jobs leave."""
    until = f" until {clock_time(record.wait_until_ms)}" if record.wait_until_ms else ""
    return f"{word(record, 'mode')}{until}" + (f", for {record.maintenance}" if record.maintenance else "")


def cost(record: pb.DrainRecord) -> list[Spans]:
    """One line per job that the drain hits, and what is left in service; none if it was not admitted."""
    if not record.HasField("cost"):
        return []
    out: list[Spans] = []
    for job in record.cost.jobs:
        saved = "no checkpoint"
        if job.checkpoint_step >= 0:
            saved = f"checkpoint {job.checkpoint_step}, {duration(job.checkpoint_age_ms)} old"
        where = f"→ {job.target_region}" if job.target_region else "no room elsewhere"
        out.append(
            (span(f"  {job.job}", Tone.BUSY), Span(f"  {job.devices} devices, step {job.step}, {saved}, "), span(where))
        )
    left = f"  {record.cost.capacity_left} of {record.cost.capacity_total} devices left in service"
    return [*out, (Span(left, Tone.DIM),)]
