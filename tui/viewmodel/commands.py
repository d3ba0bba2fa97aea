"""The command bar: what may follow ``:``."""

from __future__ import annotations

from dataclasses import dataclass

from gridkeeper.kinds import UnknownKind, object_named
from tui.viewmodel.table import Ref


@dataclass(frozen=True, slots=True)
class Place:
    """A screen of the number keys; ``section``: a part of it."""

    screen: str
    section: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """A word and its short forms."""

    words: tuple[str, ...]
    place: Place
    summary: str


COMMANDS: tuple[Command, ...] = (
    Command(("fleet", "no", "nodes", "re", "regions"), Place("fleet"), "the grid map: regions, racks, nodes, devices"),
    Command(("de", "dev", "devices"), Place("fleet"), "the same: pick a device with ← →, enter opens it"),
    Command(("incidents", "inc", "incident"), Place("incidents"), "what is wrong and what was done about it"),
    Command(("moves",), Place("moves"), "drains and migrations"),
    Command(("drains", "dr", "drain"), Place("moves", "drains"), "drains only"),
    Command(("migrations", "mig", "migration"), Place("moves", "migrations"), "migrations only"),
    Command(("jobs", "jo", "job"), Place("jobs"), "where jobs run and how far they are"),
    Command(("sla", "slas"), Place("sla"), "uptime of the month so far"),
    Command(("events", "ev", "event"), Place("events"), "what agents saw and what was concluded"),
    Command(("findings", "fi", "finding"), Place("events", "findings"), "what detection concluded"),
)
TABS: tuple[tuple[str, str], ...] = (
    ("fleet", "fleet"),
    ("incidents", "incidents"),
    ("moves", "drains & moves"),
    ("jobs", "jobs"),
    ("sla", "sla"),
    ("events", "events"),
)
"""(screen, title) in the order of the number keys."""

WORDS: tuple[str, ...] = (*(word for c in COMMANDS for word in c.words), "info", "help", "quit")


class BadCommand(ValueError):
    """Text that is no command; the message says what is."""


@dataclass(frozen=True, slots=True)
class Quit:
    pass


@dataclass(frozen=True, slots=True)
class Help:
    pass


@dataclass(frozen=True, slots=True)
class Info:
    pass


@dataclass(frozen=True, slots=True)
class Goto:
    """``filter``: what to filter that screen by at once (``:dr east``)."""

    place: Place
    filter: str = ""


@dataclass(frozen=True, slots=True)
class OpenObject:
    ref: Ref


Parsed = Quit | Help | Info | Goto | OpenObject


def parse(text: str) -> Parsed:
    """A command word (with an optional filter after it) or ``<kind>/<name>``. Raises ``BadCommand``."""
    word, _, rest = text.strip().removeprefix(":").strip().partition(" ")
    lower = word.lower()
    if lower in ("q", "q!", "quit", "exit"):
        return Quit()
    if lower in ("?", "h", "help"):
        return Help()
    if lower == "info":
        return Info()
    for command in COMMANDS:
        if lower in command.words:
            return Goto(command.place, rest.strip())
    if "/" in word:
        try:
            info, name = object_named(word)
        except UnknownKind as error:
            raise BadCommand(str(error)) from None
        return OpenObject(Ref(int(info.kind), name))
    known = ", ".join(command.words[0] for command in COMMANDS)
    raise BadCommand(f"command: {word[:40]!r} is none; use one of {known}, info, help, quit, or <kind>/<name>")
