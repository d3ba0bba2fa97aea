"""How the terminal interface writes numbers and names, lays out columns and filters rows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from gridkeeper.selector import BadSelector
from tui import sample
from tui.viewmodel.state import Now
from tui.viewmodel.table import Column, Filter, Row, Table, filtered, layout, parse_filter
from tui.viewmodel.text import (
    Span,
    age,
    clean,
    duration,
    fit,
    minutes,
    percent,
    plain,
    sparkline,
    width,
    wrap,
)

NOW = Now(mono_ms=1_000_000, wall_ms=sample.NOW_MS)


# -- text ---------------------------------------------------------------------------------------------------------


@given(st.text(max_size=300), st.integers(0, 60), st.booleans())
def test_fitted_text_is_exactly_as_wide_as_asked(text: str, columns: int, right: bool) -> None:
    assert width(fit((Span(clean(text)),), columns, right)) == columns


@given(st.text(max_size=200), st.integers(10, 60), st.integers(0, 20))
def test_wrapped_lines_fit_and_lose_nothing_but_blanks(text: str, columns: int, indent: int) -> None:
    cleaned = clean(text)
    lines = wrap((Span(cleaned),), columns, indent)
    assert all(cell_len(plain(line).rstrip()) <= max(columns, indent + 8) for line in lines)
    assert "".join(plain(line) for line in lines).replace(" ", "") == cleaned.replace(" ", "")


@given(st.text())
def test_cleaned_text_cannot_steer_a_terminal(text: str) -> None:
    cleaned = clean(text)
    assert "\x1b" not in cleaned
    assert all(ord(c) >= 32 and not 0x7F <= ord(c) <= 0x9F and not 0x202A <= ord(c) <= 0x202E for c in cleaned)
    assert len(cleaned) <= 2_000


def test_durations_and_ages_read_the_same_at_every_size() -> None:
    assert [duration(ms) for ms in (-1, 0, 850, 12_345, 245_000, 11_520_000, 800_000_000)] == [
        "–", "0 ms", "850 ms", "12.3 s", "4m 05s", "3h 12m", "9d 06h",
    ]  # fmt: skip
    ages = (-5_000, 5_000, 119_000, 120_000, 7_200_000, 9 * 86_400_000)
    assert [age(NOW.wall_ms - ms, NOW.wall_ms) for ms in ages] == [
        "0s", "5s", "119s", "2m", "2h", "9d",
    ]  # fmt: skip
    assert age(0, NOW.wall_ms) == "–"


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_a_percentage_never_hides_downtime(up: int, down: int) -> None:
    shown = percent(f"{up}/{up + down}")
    assert shown != "100" and float(shown) <= 100 * up / (up + down) + 1e-9
    assert float(minutes(down)) > 0


def test_uptime_without_a_divisor_is_a_dash() -> None:
    assert [percent(text) for text in ("", "0/0", "a/b", "7")] == ["–"] * 4
    assert percent("5/5") == "100"


def test_a_sparkline_shows_gaps_and_survives_a_flat_line() -> None:
    assert sparkline([0.0, math.nan, 7.0], 3) == "▁·█"
    assert sparkline([5.0, 5.0], 10) == "▁▁"
    assert sparkline([], 10) == "" and sparkline([math.nan], 10) == ""


# -- layout and filter --------------------------------------------------------------------------------------------


SPECS = st.tuples(st.integers(1, 30), st.integers(0, 3), st.integers(0, 7), st.integers(0, 60))


@given(st.lists(SPECS, min_size=1, max_size=12), st.integers(1, 300))
def test_columns_never_overflow_a_terminal_that_can_hold_one(
    specs: list[tuple[int, int, int, int]], available: int
) -> None:
    columns = [Column("t", least, flex, rank) for least, flex, rank, _ in specs]
    widths = layout(columns, [content for *_, content in specs], available)
    fixed = [i for i, c in enumerate(columns) if c.rank == 0]
    assert set(fixed) <= set(widths)
    assert all(w >= 1 for w in widths.values())
    least_possible = len(widths) + 2 * (len(widths) - 1)
    assert sum(widths.values()) + 2 * (len(widths) - 1) <= max(available, least_possible)


def rows_named(*names: str) -> Table:
    rows = [Row(n, ((Span(n),),), labels={"region": n[:4], "state": "alive"}) for n in names]
    heads = [Row("east", ((Span("east"),),), heading=True), *rows[:2], Row("west", ((Span("west"),),), heading=True)]
    return Table((Column("name", 4),), [*heads, *rows[2:]])


def test_filters_keep_the_headings_of_what_is_left() -> None:
    table = rows_named("east-1", "east-2", "west-1")

    def names(text: str) -> list[str]:
        return [row.key for row in filtered(table, parse_filter(text)).rows]

    assert names("WEST") == ["west", "west-1"]
    assert names("!east-1") == ["east", "east-2", "west", "west-1"]
    assert names("-l region=east") == ["east", "east-1", "east-2"]
    assert names("-l region!=east") == ["west", "west-1"]
    assert names("nowhere") == []
    assert filtered(table, Filter()) is table


def test_a_mistyped_selector_is_an_error_and_not_an_empty_fleet() -> None:
    with pytest.raises(BadSelector, match="regoin"):
        filtered(rows_named("east-1"), parse_filter("-l regoin=east"))
    with pytest.raises(BadSelector):
        parse_filter("-l =")
