"""Protects: burn-rate alerts look at exactly their windows, and a forecast says when the budget ends."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridkeeper.sla.budget import DAY_MS, HOUR_MS, MINUTE_MS, standard_windows
from gridkeeper.sla.burn import Errors, Forecast, Tick, firing, forecast, turns

TARGET = Fraction("0.995")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40), st.integers(0, 50), st.integers(1, 30))
def test_a_window_is_the_sum_of_its_ticks(counts: list[tuple[int, int]], now: int, window: int) -> None:
    ticks = [Tick(10 * n, Fraction(min(bad, total)), Fraction(total)) for n, (bad, total) in enumerate(counts)]
    within = [tick for tick in ticks if 10 * (now - window) < tick.at_ms <= 10 * now]
    total = sum((tick.total for tick in within), Fraction(0))
    wanted = sum((tick.bad for tick in within), Fraction(0)) / total if total else None
    assert Errors(ticks).ratio(10 * now, 10 * window) == wanted


def test_an_alert_begins_and_ends_with_its_short_window() -> None:
    ticks = [Tick(n * MINUTE_MS, Fraction(n in range(60, 80))) for n in range(200)]
    errors, quick = Errors(ticks), standard_windows()[:1]
    found = turns(errors, TARGET, quick, 0, 199 * MINUTE_MS, MINUTE_MS)
    assert [(turn.at_ms // MINUTE_MS, turn.fires) for turn in found] == [(64, True), (84, False)]
    assert not firing(errors, TARGET, quick, 10 * DAY_MS), "no data is no reason to page"
    with pytest.raises(ValueError, match="their times must grow"):
        Errors([Tick(1, Fraction(0)), Tick(1, Fraction(0))])


def test_a_forecast() -> None:
    month = 30 * DAY_MS
    assert forecast(Fraction("0.01"), Fraction(1, 2), TARGET, month) == Forecast(
        Fraction(2), Fraction(1, 2), month // 4
    )
    assert forecast(Fraction(0), Fraction(0), TARGET, month).exhausted_in_ms is None
    assert forecast(Fraction(0), Fraction("1.2"), TARGET, month) == Forecast(Fraction(0), Fraction("-0.2"), 0)
    assert forecast(Fraction(1), Fraction(0), TARGET, month).exhausted_in_ms == 3 * HOUR_MS + 36 * MINUTE_MS
    with pytest.raises(ValueError, match="no budget"):
        forecast(Fraction(0), Fraction(0), Fraction(1), month)
