"""Colours. Chosen to be told apart with the common colour blindnesses (blue-green, amber, vermilion, violet rather than
green and red), and never the only sign of anything."""

from __future__ import annotations

from rich.style import Style
from textual.theme import Theme

from tui.viewmodel.text import Tone

DARK = "gridkeeper-dark"
LIGHT = "gridkeeper-light"

THEMES: tuple[Theme, ...] = (
    Theme(
        name=DARK,
        primary="#7cc4ff",
        secondary="#3fb8a0",
        accent="#e8b44c",
        warning="#e8b44c",
        error="#ff7b52",
        success="#3fb8a0",
        foreground="#c9d1d9",
        background="#0c1116",
        surface="#121920",
        panel="#1b2530",
        dark=True,
        variables={"line": "#2a3644"},
    ),
    Theme(
        name=LIGHT,
        primary="#0550ae",
        secondary="#0f766e",
        accent="#8a5a00",
        warning="#8a5a00",
        error="#b3381a",
        success="#0f766e",
        foreground="#24292f",
        background="#fcfcfa",
        surface="#f1f3f4",
        panel="#e3e7ea",
        dark=False,
        variables={"line": "#cdd3d8"},
    ),
)

_DARK = {
    Tone.PLAIN: "#c9d1d9",
    Tone.DIM: "#748191",
    Tone.STRONG: "bold #f0f4f8",
    Tone.TITLE: "bold #7cc4ff",
    Tone.KEY: "#93a4b8",
    Tone.GOOD: "#3fb8a0",
    Tone.BUSY: "#7cc4ff",
    Tone.INFO: "#5aa7ff",
    Tone.WARN: "#e8b44c",
    Tone.BAD: "bold #ff7b52",
    Tone.FATAL: "bold #0c1116 on #ff7b52",
    Tone.UNKNOWN: "#bb9af7",
    Tone.QUIET: "#3fb8a0",
}
_LIGHT = {
    Tone.PLAIN: "#24292f",
    Tone.DIM: "#69727d",
    Tone.STRONG: "bold #0d1117",
    Tone.TITLE: "bold #0550ae",
    Tone.KEY: "#4b5560",
    Tone.GOOD: "#0f766e",
    Tone.BUSY: "#0550ae",
    Tone.INFO: "#0969da",
    Tone.WARN: "#8a5a00",
    Tone.BAD: "bold #b3381a",
    Tone.FATAL: "bold #ffffff on #b3381a",
    Tone.UNKNOWN: "#6f42c1",
    Tone.QUIET: "#0f766e",
}

STYLES: dict[bool, dict[Tone, Style]] = {
    dark: {tone: Style.parse(text) for tone, text in colours.items()}
    for dark, colours in ((True, _DARK), (False, _LIGHT))
}
"""Is the theme dark? -> tone -> style."""

CURSOR: dict[bool, Style] = {True: Style.parse("on #22384d"), False: Style.parse("on #cfe3f7")}
PICK: dict[bool, Style] = {True: Style.parse("bold #0c1116 on #e8b44c"), False: Style.parse("bold #ffffff on #8a5a00")}
STALE: Style = Style.parse("italic dim")
