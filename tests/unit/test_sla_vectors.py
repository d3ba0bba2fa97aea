"""Protects: the arithmetic of service levels reproduces the worked examples to the digit."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from gridkeeper.records.books import UptimeClass
from gridkeeper.records.settlement import Cause
from gridkeeper.sla.budget import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    burn_rate,
    occurrences,
    standard_windows,
    time_budget,
    timeslices,
)
from gridkeeper.sla.credit import Tier, credit_percent, decimal_text, exact_text, money
from gridkeeper.sla.goodput import cost_per_million_tokens, ettr
from gridkeeper.sla.measure import Counting, Exclude, Rule, measure
from gridkeeper.sla.months import BadMonth, month_of, month_window
from gridkeeper.sla.spans import Exclusion, Span, Window, resolve

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data/sla/vectors.json").read_text())
UNITS = {"m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS, "w": 7 * DAY_MS}


def ms(text: str) -> int:
    return int(text[:-1]) * UNITS[text[-1]]


def of(text: str) -> Fraction:
    return Fraction(text) / 100


def down(minutes: Fraction, month_minutes: int) -> Fraction:
    """The availability of a month with one outage."""
    month = Window(0, month_minutes * MINUTE_MS)
    length = minutes * MINUTE_MS
    assert length.denominator == 1
    spans = (Span(0, int(length), UptimeClass.DOWN), Span(int(length), month.until_ms, UptimeClass.UP))
    availability = measure(resolve(spans, (), month), Rule()).availability
    assert availability is not None
    return availability


def test_burn_rates() -> None:
    for window, told in zip(standard_windows(), VECTORS["burn_rate_factors_30d"], strict=True):
        assert (window.severity, window.budget * 100) == (told["severity"], Fraction(told["budget_percent"]))
        assert (window.long_ms, window.short_ms) == (ms(told["long"]), ms(told["short"]))
        assert window.factor == Fraction(told["factor"])
    for target, told in VECTORS["burn_thresholds_30d"].items():
        assert time_budget(of(target), 30 * DAY_MS) == Fraction(told["budget_minutes"]) * MINUTE_MS
        if "error_ratios" in told:
            edges = [window.threshold(of(target)) for window in standard_windows()]
            assert edges == [Fraction(text) for text in told["error_ratios"]]
            assert burn_rate(edges[0], of(target)) == Fraction("14.4")
    quick = standard_windows()[0]
    for case in VECTORS["multiwindow_truth_99_5_30d_page_quick"]:
        fires = quick.fires(Fraction(case["long_1h"]), Fraction(case["short_5m"]), of("99.5"))
        assert fires is case["fires"], case
    assert not quick.fires(None, Fraction(1), of("99.5")), "no data is not a reason to page"


def test_budgets_of_months() -> None:
    for days, minutes in VECTORS["month_budget_minutes_99_9"].items():
        assert time_budget(of("99.9"), ms(days)) == Fraction(minutes) * MINUTE_MS


def test_credits() -> None:
    told = VECTORS["credits_tiers_99_99"]
    tiers = [Tier(Fraction(t["below"]), Fraction(t["credit_percent"])) for t in told["tiers"]]
    for case in told["cases"]:
        availability = down(Fraction(case["down_minutes"]), told["month_minutes"])
        assert credit_percent(availability, tiers) == Fraction(case["credit_percent"]), case
        if "uptime_percent" in case:
            assert exact_text(availability * 100) == case["uptime_percent"]
    assert credit_percent(None, tiers) == 0


def test_exclusions() -> None:
    told = VECTORS["exclusion_policies"]
    window = Window(0, told["month_minutes"] * MINUTE_MS)
    outage = told["down_minutes"] * MINUTE_MS
    spans = (Span(0, outage, UptimeClass.DOWN), Span(outage, window.until_ms, UptimeClass.UP))
    away = (Exclusion(0, told["of_which_in_declared_maintenance"] * MINUTE_MS, Cause.MAINTENANCE),)
    wanted = told["uptime_percent_rounded_6"]
    for exclude, name in ((Exclude.DOWNTIME, "exclude_from_downtime"), (Exclude.BOTH, "exclude_from_both")):
        measured = measure(resolve(spans, away, window), Rule(exclude=exclude))
        assert measured.availability is not None and measured.raw is not None
        assert decimal_text(measured.availability * 100, 6) == wanted[name]
        assert decimal_text(measured.raw * 100, 6) == wanted["raw"]


@pytest.mark.parametrize(
    ("counting", "field", "unit"),
    [
        (Counting.EXACT, "exact_ms", 1),
        (Counting.WHOLE, "whole_clock_minutes", MINUTE_MS),
        (Counting.TOUCHED, "touched_clock_minutes", MINUTE_MS),
        (Counting.FLOOR, "duration_floor_minutes", MINUTE_MS),
        (Counting.CEIL, "duration_ceil_minutes", MINUTE_MS),
    ],
)
def test_minute_slicing(counting: Counting, field: str, unit: int) -> None:
    day = Window(1_793_000 * MINUTE_MS, 1_793_000 * MINUTE_MS + DAY_MS)
    for case in VECTORS["minute_slicing"]:
        if field not in case:
            continue
        if "outage" in case:
            begin, end = (_clock(text) for text in case["outage"])
        else:
            begin, end = 30_000, 30_000 + case["outage_seconds"] * 1000
        spans = (
            Span(day.from_ms, day.until_ms, UptimeClass.UP),
            Span(day.from_ms + begin, day.from_ms + end, UptimeClass.DOWN),
        )
        assert measure(resolve(spans, (), day), Rule(counting)).down_ms == case[field] * unit, case


def _clock(text: str) -> int:
    hours, minutes, seconds = (int(part) for part in text.split(":"))
    return ((hours * 60 + minutes) * 60 + seconds) * 1000


def test_an_outage_shorter_than_the_least_does_not_count_and_two_do_not_add_up_to_one() -> None:
    rule, hour = Rule(minimum_ms=2 * MINUTE_MS), Window(0, HOUR_MS)
    for length, counted in ((119_999, 0), (120_000, 120_000)):
        spans = [Span(0, HOUR_MS, UptimeClass.UP), Span(500, 500 + length, UptimeClass.DOWN)]
        assert measure(resolve(spans, (), hour), rule).down_ms == counted
    twice = [Span(0, HOUR_MS, UptimeClass.UP), *(Span(at, at + 100_000, UptimeClass.DOWN) for at in (0, 200_000))]
    assert measure(resolve(twice, (), hour), rule).down_ms == 0
    touched = [Span(0, HOUR_MS, UptimeClass.UP), *(Span(at, at + 1_000, UptimeClass.DOWN) for at in (0, 5_000, 70_000))]
    assert measure(resolve(touched, (), hour), Rule(Counting.TOUCHED)).down_ms == 2 * MINUTE_MS


def test_months_in_billing_time_zones() -> None:
    for case in VECTORS["calendar_month_hours"]:
        window = month_window(case["month"], case["zone"])
        assert window.elapsed_ms == case["hours"] * HOUR_MS
        assert month_of(window.from_ms, case["zone"]) == case["month"]
        assert month_of(window.until_ms - 1, case["zone"]) == case["month"]
        assert month_of(window.until_ms, case["zone"]) > case["month"]
    berlin = month_window("2026-10", "Europe/Berlin")
    assert datetime.fromtimestamp(berlin.from_ms / 1000, UTC).isoformat() == "2026-09-30T22:00:00+00:00"
    for wrong in (
        ("2026-13", "UTC"),
        ("2026-1", "UTC"),
        ("1969-12", "UTC"),
        ("2026-10", "Berlin"),
        ("2026-10", "../x"),
    ):
        with pytest.raises(BadMonth):
            month_window(*wrong)


def test_timeslices() -> None:
    told = VECTORS["timeslices"]
    slices = ms(told["window"]) // ms(told["slice"])
    assert slices == told["slices"]
    for case in told["cases"]:
        bad = case["bad_slices"]
        ratios = [Fraction(0)] * (bad - 1) + [None] + [Fraction(1)] * (slices - bad)
        found = timeslices(ratios, Fraction(1), of(told["target_percent"]))
        assert found.met is case["met"] and found.budget == told["allowed_bad_slices"]
        if "compliance_percent" in case:
            assert found.achieved == of(case["compliance_percent"])


def test_occurrences() -> None:
    told = VECTORS["occurrences"]
    found = occurrences(told["good"], told["total"], of(told["target_percent"]))
    assert found.achieved == of(told["compliance_percent"]) and found.met is False
    assert (found.budget, found.spent) == (Fraction(told["budget_events"]), told["spent_events"])
    assert found.remaining == Fraction(told["budget_remaining_ratio"])
    nothing = occurrences(0, 0, of("99"))
    assert (nothing.achieved, nothing.met, nothing.remaining) == (None, None, None)
    with pytest.raises(ValueError, match="good: 2 of 1"):
        occurrences(2, 1, of("99"))


def test_goodput_and_the_cost_of_a_token() -> None:
    told = VECTORS["ettr"]
    parts = (told[f"{name}_s"] * 1000 for name in ("wall", "init", "saves", "lost_work", "recovery"))
    found = ettr(*parts)
    assert found is not None and found == Fraction(told["productive_s"], told["wall_s"])
    assert decimal_text(found, 6) == told["ettr_rounded_6"]
    told = VECTORS["cost_per_million_tokens"]
    price, rate = Fraction(told["price_per_device_hour"]), Fraction(told["tokens_per_s"])
    for goodput, field in ((Fraction(1), "cost_rounded_6"), (Fraction("0.9"), "at_goodput_0_9")):
        cost = cost_per_million_tokens(told["devices"], price, rate, goodput)
        assert cost is not None and decimal_text(cost, 6) == told[field]


def test_what_people_read_is_rounded_half_up_and_exact_where_it_can_be() -> None:
    assert [decimal_text(Fraction(text), 2) for text in ("0.005", "0.0049", "-0.005", "-0.001", "2")] == [
        "0.01", "0.00", "-0.01", "0.00", "2.00",
    ]  # fmt: skip
    assert [exact_text(Fraction(text)) for text in ("99.975", "1/3", "100", "0.0001")] == [
        "99.975", "1/3", "100", "0.0001",
    ]  # fmt: skip
    assert str(money(Fraction("12.345"), 2)) == "12.35" and str(money(Fraction("12.5"), 0)) == "13"
