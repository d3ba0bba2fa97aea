"""Help, and the confirmation of an act."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Input

from tui.screens.base import GridModal, hints
from tui.viewmodel import acts, commands, fleet
from tui.viewmodel.acts import Verb
from tui.viewmodel.table import Ref
from tui.viewmodel.text import Span, Spans, Tone, joined
from tui.widgets.bars import Bar
from tui.widgets.lines import Lines

KEYS: tuple[tuple[str, str], ...] = (
    ("1 … 6", "fleet, incidents, drains & moves, jobs, sla, events"),
    (":", "command: a screen (below), or <kind>/<name> such as device/east-1/gpu3"),
    ("/", "filter: text, !text (rows without), -l key=value,key!=value; esc clears"),
    ("↑ ↓ j k g G", "move; page up and down; ← → picks a device in the map"),
    ("enter", "open: node → devices → device page"),
    ("d  e  y", "describe, explain (chain of evidence), YAML"),
    ("l", "log of the job"),
    ("x", "act: cordon, uncordon, drain, …; shows what it hits and asks first"),
    ("f", "faults only"),
    ("c", "colour the map by health, temperature, utilisation"),
    ("i", "info: who answers, who leads, who you are"),
    ("t", "dark and light"),
    ("r", "ask again (on a page that was fetched)"),
    ("esc  q", "back; quit"),
)


class HelpScreen(GridModal):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "leave", "close", show=False),
    ]

    def compose(self) -> ComposeResult:
        with Vertical(id="dialogue", classes="help"):
            yield Lines(id="help", indent=16)
            yield Bar(id="dialogue-hints")

    def on_mount(self) -> None:
        lines: list[Spans] = [(Span("Keys", Tone.TITLE),)]
        lines += [(Span(f"  {key:<14}", Tone.BUSY), Span(what)) for key, what in KEYS]
        lines += [(), (Span("Map", Tone.TITLE),), (Span("  "), *joined(fleet.LEGEND, "  "))]
        lines += [
            (
                Span("  ~", Tone.BAD),
                Span("  before a row: its region is silent, what you see is old"),
            ),
            (),
            (Span("Commands", Tone.TITLE),),
        ]
        for command in commands.COMMANDS:
            lines.append((Span(f"  {' '.join(command.words[:3]):<26}", Tone.BUSY), Span(command.summary)))
        self.query_one("#help", Lines).show(lines)
        self.query_one("#help", Lines).focus()
        self.query_one("#dialogue-hints", Bar).show(hints(("esc", "close"), ("↓", "more")))

    def action_leave(self) -> None:
        self.dismiss()


class ActScreen(GridModal):
    """First a verb, then a reason, then a button that is not the default: no key alone does anything."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "cancel", show=False)]

    def __init__(self, ref: Ref) -> None:
        super().__init__()
        self._ref = ref
        self._verbs = acts.verbs(ref)
        self._verb: Verb | None = self._verbs[0] if len(self._verbs) == 1 else None

    def compose(self) -> ComposeResult:
        with Vertical(id="dialogue", classes="act"):
            yield Bar(id="act-title")
            yield Lines(id="act-hits", indent=14)
            yield Input(id="act-reason", placeholder="reason: goes to the audit log", compact=True)
            with Horizontal(id="act-buttons"):
                yield Button("Cancel", id="act-cancel", compact=True)
                yield Button("Confirm", id="act-confirm", compact=True)
            yield Bar(id="dialogue-hints")

    def on_mount(self) -> None:
        self._arrange()

    def _arrange(self) -> None:
        chosen = self._verb is not None
        for name in ("#act-reason", "#act-buttons"):
            self.query_one(name).display = chosen
        self.refresh_view()
        if self._verb is None:
            self.query_one("#act-hits", Lines).focus()
            choices = tuple((v.key, v.name) for v in self._verbs)
            self.query_one("#dialogue-hints", Bar).show(hints(*choices, ("esc", "cancel")))
            return
        self.query_one("#act-confirm", Button).label = f"{self._verb.name.capitalize()} it"
        self.query_one("#act-confirm", Button).set_class(self._verb.destructive, "destructive")
        self.query_one("#act-reason", Input).focus()
        self.query_one("#dialogue-hints", Bar).show(hints(("enter", "next"), ("tab", "move"), ("esc", "cancel")))

    def refresh_view(self) -> None:
        state, now = self.grid.state, self.grid.now()
        name = self._verb.name.capitalize() if self._verb else "Act on"
        self.query_one("#act-title", Bar).show((Span(f"{name} ", Tone.TITLE), *acts.title(self._ref, state)))
        lines: list[Spans] = []
        if self._verb is None:
            for verb in self._verbs:
                tone = Tone.WARN if verb.destructive else Tone.PLAIN
                lines.append(
                    (Span(f" {verb.key}  ", Tone.BUSY), Span(f"{verb.name:<14}", tone), Span(verb.summary, Tone.DIM))
                )
        else:
            lines.append((Span(self._verb.summary, Tone.DIM),))
            lines += [(), *acts.hits(state, self._ref, self._verb, now)]
        self.query_one("#act-hits", Lines).show(lines)

    def on_key(self, event: events.Key) -> None:
        if self._verb is None:
            for verb in self._verbs:
                if event.key == verb.key:
                    event.stop()
                    self._verb = verb
                    self._arrange()
                    return

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self._reason_given():
            self.query_one("#act-cancel", Button).focus()

    def _reason_given(self) -> bool:
        if (
            self._verb is not None
            and self._verb.needs_reason
            and not self.query_one("#act-reason", Input).value.strip()
        ):
            self.query_one("#dialogue-hints", Bar).show(
                (Span("give a reason first: it goes to the audit log", Tone.WARN),)
            )
            self.query_one("#act-reason", Input).focus()
            return False
        return True

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "act-cancel":
            self.dismiss()
        elif self._verb is not None and self._reason_given():
            self.grid.act(self._verb, self._ref, self.query_one("#act-reason", Input).value.strip())
            self.dismiss()

    def action_leave(self) -> None:
        self.dismiss()
