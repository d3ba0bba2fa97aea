"""What every screen has: header, tabs, body, status line, hints, and the line for ``:`` and ``/``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen, Screen
from textual.widget import Widget

from gridkeeper.v1.api_pb2 import Kind
from tui.viewmodel import commands, header, incidents, moves
from tui.viewmodel.commands import BadCommand
from tui.viewmodel.state import Now, State
from tui.viewmodel.table import Ref
from tui.viewmodel.text import Span, Spans, Tone, joined, span, width
from tui.widgets.bars import Bar, Tabs
from tui.widgets.prompt import Prompt

if TYPE_CHECKING:
    from tui.app import GridApp


def hints(*pairs: tuple[str, str]) -> Spans:
    """``e explain  x act``."""
    return joined(tuple((Span(key, Tone.BUSY), Span(f" {what}", Tone.DIM)) for key, what in pairs))


def fitting(parts: Sequence[Spans], columns: int, between: str = "  ") -> Spans:
    """Parts from the left as far as whole ones fit."""
    shown: Spans = ()
    for end in range(1, len(parts) + 1):
        longer = joined(parts[:end], between)
        if width(longer) > columns:
            break
        shown = longer
    return shown


class GridScreen(Screen[None]):
    """Subclasses give ``body``, ``refresh_body`` and what the keys act on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("colon", "prompt(':')", "command", show=False),
        Binding("slash", "prompt('/')", "filter", show=False),
        Binding("escape", "back", "back", show=False),
        Binding("d", "describe", "describe", show=False),
        Binding("e", "explain", "explain", show=False),
        Binding("y", "yaml", "YAML", show=False),
        Binding("l", "logs", "job log", show=False),
        Binding("x", "act", "act", show=False),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (150, "-wide")]  # noqa: RUF012 (Textual declares it as an instance's)
    VERTICAL_BREAKPOINTS = [(0, "-short"), (32, "-tall")]  # noqa: RUF012 (the same)
    tab = ""
    filterable = False

    @property
    def grid(self) -> GridApp:
        return cast("GridApp", self.app)

    # -- for subclasses -------------------------------------------------------------------------------------------

    def body(self) -> Iterable[Widget]:
        return ()

    def refresh_body(self, state: State, now: Now) -> None:
        """Show the newest state. Called a few times a second."""

    @property
    def ref(self) -> Ref | None:
        """What the keys act on."""
        return None

    def trail(self) -> Spans:
        """Where we are, beyond the tab; with the filter in force."""
        return ()

    def note(self) -> Spans:
        """In the status line when there is nothing else to say."""
        return ()

    def hint_pairs(self) -> tuple[tuple[str, str], ...]:
        """(key, what it does), the most useful first."""
        return ((":", "command"), ("esc", "back"))

    def polls(self) -> tuple[tuple[Kind.ValueType, str], ...]:
        """(kind, selector) of objects whose readings this screen wants fresh, besides what the watch tells."""
        return ()

    def filter_changed(self, text: str) -> str:
        """A filter was typed; returns what is wrong with it, or ""."""
        return ""

    def filter_text(self) -> str:
        return ""

    def clear_filter(self) -> bool:
        """True if there was one."""
        return False

    # -- the common frame -----------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        with Vertical(id="top"):
            yield Bar(id="summary")
            yield Bar(id="regions")
        yield Tabs(id="tabs")
        yield Bar(id="crumb")
        with Vertical(id="body"):
            yield from self.body()
        yield Bar(id="status")
        yield Prompt(id="prompt")
        yield Bar(id="hints")

    def on_mount(self) -> None:
        self.refresh_view()

    def on_screen_resume(self) -> None:
        self.refresh_view()
        self.grid.wake_poller()

    def refresh_view(self) -> None:
        if not self.is_mounted or not self.query("#hints"):
            return
        state, now = self.grid.state, self.grid.now()
        name = (Span("GRIDKEEPER", Tone.TITLE), Span("  read-only" if self.grid.readonly else "", Tone.WARN))
        self.query_one("#summary", Bar).show(joined((name, header.summary(state)), "  "), header.pulse(state, now))
        self.query_one("#regions", Bar).show(header.regions(state, now, self.size.width - 2))
        count, _ = incidents.open_count(state)
        badges = {"incidents": count, "moves": moves.under_way(state)}
        tabs = tuple((s, t, f"({badges[s]})" if badges.get(s) else "") for s, t in commands.TABS)
        self.query_one("#tabs", Tabs).show_tabs(tabs, self.tab)
        trail = self.trail()
        crumb = self.query_one("#crumb", Bar)
        crumb.display = bool(trail)
        crumb.show(trail)
        problem, notice = header.trouble(state), self.grid.notice
        shown = (Span(f"◌ {problem}", Tone.WARN),) if problem and not notice else notice
        self.query_one("#status", Bar).show(shown or self.note())
        self.query_one("#hints", Bar).show(
            fitting([hints(pair) for pair in self.hint_pairs()], self.size.width - 20),
            hints(("?", "help"), ("q", "quit")),
        )
        self.refresh_body(state, now)

    # -- the line for : and / -------------------------------------------------------------------------------------

    def action_prompt(self, kind: str) -> None:
        if kind == "/" and not self.filterable:
            return
        words = commands.WORDS if kind == ":" else ()
        self.query_one(Prompt).open(kind, self.filter_text() if kind == "/" else "", words)
        self.query_one("#status", Bar).display = False

    def _close_prompt(self) -> None:
        self.query_one(Prompt).close()
        self.query_one("#status", Bar).display = True
        self.focus_body()

    def focus_body(self) -> None:
        for widget in self.query("#body *"):
            if widget.can_focus:
                widget.focus()
                return

    async def on_prompt_entered(self, message: Prompt.Entered) -> None:
        self._close_prompt()
        if message.kind == "/":
            self.grid.say(self.filter_changed(message.text), Tone.WARN)
            self.refresh_view()
            return
        if not message.text.strip():
            return
        try:
            parsed = commands.parse(message.text)
        except BadCommand as error:
            self.grid.say(str(error), Tone.WARN)
            self.refresh_view()
            return
        await self.grid.run_command(parsed)

    def on_prompt_typed(self, message: Prompt.Typed) -> None:
        self.filter_changed(message.text)
        self.refresh_view()

    def on_prompt_left(self, message: Prompt.Left) -> None:
        if message.kind == "/":
            self.clear_filter()
        self._close_prompt()
        self.refresh_view()

    async def on_tabs_chosen(self, message: Tabs.Chosen) -> None:
        await self.grid.goto(commands.Place(message.screen))

    # -- keys -----------------------------------------------------------------------------------------------------

    def action_back(self) -> None:
        if self.clear_filter():
            self.refresh_view()
        else:
            self.grid.back()

    def action_describe(self) -> None:
        if self.ref is not None:
            self.grid.open_page(self.ref, "describe")

    def action_explain(self) -> None:
        if self.ref is not None:
            self.grid.open_page(self.ref, "explain")

    def action_yaml(self) -> None:
        if self.ref is not None:
            self.grid.open_page(self.ref, "yaml")

    def action_logs(self) -> None:
        if self.ref is not None:
            self.grid.open_logs(self.ref)

    def action_act(self) -> None:
        if self.ref is not None:
            self.grid.open_act(self.ref)


class GridModal(ModalScreen[None]):
    """A dialogue over a screen."""

    @property
    def grid(self) -> GridApp:
        return cast("GridApp", self.app)

    def refresh_view(self) -> None:
        """Show the newest state."""


__all__ = ["GridModal", "GridScreen", "hints", "span"]
