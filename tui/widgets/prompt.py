"""The line that ``:`` and ``/`` open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.suggester import SuggestFromList
from textual.widgets import Input


class Prompt(Input):
    """Hidden until ``open``. ``kind`` is ":" or "/"."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "leave", show=False)]

    class Entered(Message):
        """Enter. ``kind`` and what was typed."""

        def __init__(self, kind: str, text: str) -> None:
            super().__init__()
            self.kind, self.text = kind, text

    class Typed(Message):
        """A filter changes while it is typed."""

        def __init__(self, kind: str, text: str) -> None:
            super().__init__()
            self.kind, self.text = kind, text

    class Left(Message):
        """Escape."""

        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, compact=True, select_on_focus=False)
        self.kind = ":"
        self.display = False

    def open(self, kind: str, text: str = "", words: Sequence[str] = ()) -> None:
        self.kind = kind
        self.suggester = SuggestFromList(words, case_sensitive=False) if words else None
        self.placeholder = (
            "a screen or <kind>/<name>: fleet, inc, dr, mig, jobs, sla, ev …"
            if kind == ":"
            else "text   !text (without)   -l key=value,key!=value"
        )
        self.value = text
        self.cursor_position = len(text)
        self.display = True
        self.focus()

    def close(self) -> None:
        self.display = False

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.post_message(self.Entered(self.kind, self.value))

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        if self.display and self.kind == "/":
            self.post_message(self.Typed(self.kind, self.value))

    def action_leave(self) -> None:
        self.post_message(self.Left(self.kind))
