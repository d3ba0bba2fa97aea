"""The list screens: one per number key, and the devices of a node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget

from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Kind
from tui.screens.base import GridScreen, fitting
from tui.viewmodel import acts, describe, events, fleet, incidents, jobs, moves, node, sla
from tui.viewmodel.state import NODE, Now, State
from tui.viewmodel.table import BadSelector, Filter, Ref, Table, filtered, parse_filter
from tui.viewmodel.text import Span, Spans, Tone, joined, span
from tui.widgets.lines import Lines
from tui.widgets.rowtable import RowTable


class TableScreen(GridScreen):
    """A table, and on a wide terminal beside it what the cursor is on, in full."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("f", "faults", "faults only", show=False)]
    filterable = True

    def __init__(self, section: str = "") -> None:
        super().__init__()
        self.section = section
        self._filter = Filter()
        self._faults_only = False
        self._derived: tuple[object, ...] = ()

    def table(self, state: State, now: Now) -> Table:
        raise NotImplementedError

    def body(self) -> Iterable[Widget]:
        yield Horizontal(RowTable(id="rows"), Lines(id="side", indent=describe.LABEL), id="split")

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one(RowTable).focus()

    @property
    def rows(self) -> RowTable:
        return self.query_one(RowTable)

    @property
    def ref(self) -> Ref | None:
        return self.rows.ref

    def refresh_body(self, state: State, now: Now) -> None:
        # Ages count in seconds: without news nothing is derived more often than that.
        mark = (state.version, now.mono_ms // 1000, self.section, self._filter, self._faults_only, self.look())
        if mark != self._derived:
            self._derived = mark
            whole = self.table(state, now)
            try:
                shown = filtered(whole, self._filter, self._faults_only)
            except BadSelector as error:
                shown = Table(whole.columns, (), str(error))
            self.rows.show(shown)
        self._refresh_side(state, now)

    def look(self) -> object:
        """What else the table depends on."""
        return None

    def _refresh_side(self, state: State, now: Now) -> None:
        side = self.query_one("#side", Lines)
        if not side.display:
            return
        ref = self.rows.ref
        if ref is None:
            side.show([])
            return
        side.show([describe.heading(describe.title_of(ref)), (), *describe.lines(state, ref, now)])

    def on_row_table_moved(self, message: RowTable.Moved) -> None:
        self._refresh_side(self.grid.state, self.grid.now())
        self.query_one("#side", Lines).scroll_home(animate=False)

    def on_row_table_opened(self, message: RowTable.Opened) -> None:
        self.grid.open_object(message.ref)

    def trail(self) -> Spans:
        parts: list[Spans] = []
        if self.section:
            parts.append((Span(self.section, Tone.PLAIN),))
        if self._faults_only:
            parts.append((Span("faults only", Tone.WARN),))
        if self._filter:
            parts.append((span(f"/{self._filter.text}", Tone.WARN),))
        return joined(tuple(parts), " · ")

    def hint_pairs(self) -> tuple[tuple[str, str], ...]:
        act = (("x", "act"),) if not self.grid.readonly and acts.verbs(self.ref) else ()
        return (
            *(("enter", "open"), ("e", "explain"), ("d", "describe"), *act, ("/", "filter"), (":", "go")),
            *(*self.own_hints(), ("f", "faults only")),
        )

    def own_hints(self) -> tuple[tuple[str, str], ...]:
        return ()

    # -- filter ---------------------------------------------------------------------------------------------------

    def filter_changed(self, text: str) -> str:
        try:
            self._filter = parse_filter(text)
        except BadSelector as error:
            return str(error)
        return ""

    def filter_text(self) -> str:
        return self._filter.text

    def clear_filter(self) -> bool:
        had = bool(self._filter)
        self._filter = Filter()
        return had

    def action_faults(self) -> None:
        self._faults_only = not self._faults_only
        self.refresh_view()


class FleetScreen(TableScreen):
    """The grid map."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("c", "colour", "colour by", show=False)]
    tab = "fleet"

    def __init__(self) -> None:
        super().__init__()
        self._view = fleet.FleetView()

    def table(self, state: State, now: Now) -> Table:
        return self._view.table(state, now)

    def look(self) -> object:
        return self._view.colouring

    def own_hints(self) -> tuple[tuple[str, str], ...]:
        return (("←→", "device"), ("c", f"by {self._view.colouring.next().value}"))

    def note(self) -> Spans:
        health = self._view.colouring is fleet.Colouring.HEALTH
        return fitting(fleet.LEGEND, self.size.width - 4) if health else ()

    def polls(self) -> tuple[tuple[Kind.ValueType, str], ...]:
        return ((api_pb2.KIND_DEVICE, ""),) if self._view.colouring is not fleet.Colouring.HEALTH else ()

    def action_colour(self) -> None:
        self._view.colouring = self._view.colouring.next()
        self.grid.wake_poller()
        self.refresh_view()


class IncidentsScreen(TableScreen):
    tab = "incidents"

    def table(self, state: State, now: Now) -> Table:
        return incidents.table(state, now)


class MovesScreen(TableScreen):
    tab = "moves"

    def table(self, state: State, now: Now) -> Table:
        return moves.table(state, now, self.section)


class JobsScreen(TableScreen):
    tab = "jobs"

    def table(self, state: State, now: Now) -> Table:
        return jobs.table(state, now)

    def own_hints(self) -> tuple[tuple[str, str], ...]:
        return (("l", "log"),)


class SlaScreen(TableScreen):
    tab = "sla"

    def table(self, state: State, now: Now) -> Table:
        return sla.table(state, now)

    def polls(self) -> tuple[tuple[Kind.ValueType, str], ...]:
        return ((api_pb2.KIND_SLA, ""),)


class EventsScreen(TableScreen):
    tab = "events"

    def table(self, state: State, now: Now) -> Table:
        return events.table(state, now, self.section)


class NodeScreen(TableScreen):
    """The devices of one node."""

    tab = "fleet"

    def __init__(self, name: str) -> None:
        super().__init__()
        self.node = name

    def table(self, state: State, now: Now) -> Table:
        return node.table(state, now, self.node)

    @property
    def ref(self) -> Ref | None:
        return self.rows.ref or Ref(NODE, self.node)

    def trail(self) -> Spans:
        return joined(((span(self.node, Tone.STRONG),), super().trail()), " · ")

    def polls(self) -> tuple[tuple[Kind.ValueType, str], ...]:
        return ((api_pb2.KIND_DEVICE, f"node={self.node}"),)


ROOTS: dict[str, type[TableScreen]] = {
    "fleet": FleetScreen,
    "incidents": IncidentsScreen,
    "moves": MovesScreen,
    "jobs": JobsScreen,
    "sla": SlaScreen,
    "events": EventsScreen,
}
"""Screen of each number key, in order of ``commands.TABS``."""
