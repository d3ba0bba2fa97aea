"""The lines that every screen has: the grid at a glance, and how old what you see is."""

from __future__ import annotations

from tui.viewmodel import incidents, jobs, moves, words
from tui.viewmodel.state import JOB, NODE, REGION, Now, State
from tui.viewmodel.text import Span, Spans, Tone, clean, duration, joined, span, width


def pulse(state: State, now: Now) -> Spans:
    """``● live`` while every region speaks; else what is wrong, with the age of the data."""
    connection = state.connection
    age = connection.age_ms(now)
    if connection.error:
        old = f", data {duration(age)} old" if age is not None else ""
        return (Span(f"◌ OFFLINE{old}", Tone.FATAL),)
    if not connection.synced:
        return (Span("◌ connecting…", Tone.WARN),)
    stale = connection.stale_regions(now)
    if stale:
        return (Span(f"◌ STALE {', '.join(map(clean, sorted(stale)))} {duration(age or 0)}", Tone.BAD),)
    if connection.partial:
        return (Span("◐ PARTIAL", Tone.WARN),)
    return (Span("● live", Tone.GOOD), Span(f" {seconds(age or 0)}", Tone.DIM))


def seconds(ms: int) -> str:
    """``0.4 s``: of one width, so that it does not flicker."""
    return f"{ms // 1000}.{ms % 1000 // 100} s" if ms < 60_000 else duration(ms)


def trouble(state: State) -> str:
    """One sentence about the connection; empty when all is well."""
    if state.connection.error:
        return clean(state.connection.error)
    return "; ".join(clean(s) for s in state.connection.partial)


def summary(state: State) -> Spans:
    """Open incidents, jobs, what is under way."""
    count, fatal = incidents.open_count(state)
    if not state.connection.synced and count == 0:
        first: Spans = (Span("? incidents", Tone.UNKNOWN),)
    elif count == 0:
        first = (Span("✓ no incidents", Tone.GOOD),)
    else:
        plural = "s" if count != 1 else ""
        text = f"! {count} incident{plural}" + (f", {fatal} fatal" if fatal else "")
        first = (Span(text, Tone.FATAL if fatal else Tone.BAD),)
    busy = moves.under_way(state)
    running, total = jobs.running(state), len(state.all(JOB))
    return joined(
        (
            first,
            (Span(f"{running}", Tone.BUSY if running else Tone.PLAIN), Span(f"/{total} jobs running", Tone.PLAIN)),
            (Span(f"▸ {busy} under way", Tone.WARN),) if busy else (Span("0 under way", Tone.DIM),),
        ),
        "  ",
    )


def region(state: State, name: str, now: Now) -> Spans:
    """One region: leader, nodes alive, devices usable."""
    item = state.get(REGION, name)
    stale = state.is_stale(name, now)
    mark = Span("◌ " if stale else "● ", Tone.BAD if stale else Tone.GOOD)
    title = span(name, Tone.TITLE)
    if item is None or not item.region_view.HasField("record"):
        return (mark, title, Span(" not told yet", Tone.DIM))
    record = item.region_view.record
    leader = item.region_view.leader or record.leader
    alive = alive_nodes(state, name)
    lead = span(f" ★{leader}", Tone.DIM) if leader else Span(" no leader", Tone.BAD)
    return (
        mark,
        title,
        lead,
        Span(f" {alive}/{record.nodes}", Tone.PLAIN if alive == record.nodes else Tone.BAD),
        Span(" nodes ", Tone.DIM),
        Span(f"{record.usable}/{record.devices}", Tone.PLAIN if record.usable == record.devices else Tone.WARN),
        Span(" dev", Tone.DIM),
        *((Span(" FROZEN", Tone.FATAL),) if record.in_doubt else ()),
    )


def alive_nodes(state: State, name: str) -> int:
    """Nodes of a region that are alive by the leader's judgement."""
    return sum(
        item.region == name
        and item.node.HasField("liveness")
        and words.mark(words.NODE, item.node.liveness.state).word == "alive"
        for item in state.values(NODE)
    )


def regions(state: State, now: Now, columns: int) -> Spans:
    """As many regions as fit, and how many more there are; those in trouble come first."""
    names = sorted(set(state.all(REGION)) | set(state.connection.heard))
    names.sort(key=lambda n: not state.is_stale(n, now))
    if not names:
        return (Span("no region has answered yet", Tone.DIM),)
    parts: list[Spans] = []
    used = 0
    for index, name in enumerate(names):
        part = region(state, name, now)
        rest = len(names) - index - 1
        room = columns - used - (10 if rest else 0)
        if parts and width(part) > room:
            parts.append((Span(f"+{rest + 1} more", Tone.DIM),))
            break
        parts.append(part)
        used += width(part) + 3
    return joined(tuple(parts), " │ ")
