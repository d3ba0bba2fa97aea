"""Protects: the ledger balances and does not depend on how, or in which order, it was told; and the fast path over
columns gives the same milliseconds as the exact one."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gridkeeper.records.books import UptimeClass
from gridkeeper.records.settlement import Cause
from gridkeeper.sla import columns
from gridkeeper.sla.measure import Counting, Counts, Exclude, Rule, measure
from gridkeeper.sla.spans import PRECEDENCE, Exclusion, Span, Window, difference, resolve, totals_of

MINUTE = 60_000
WINDOW = Window(10 * MINUTE - 7, 25 * MINUTE + 13)

times = st.one_of(st.integers(8, 27).map(lambda minute: minute * MINUTE), st.integers(8 * MINUTE, 27 * MINUTE))
pairs = st.tuples(times, times).map(lambda pair: (min(pair), max(pair)))
spans = st.builds(lambda pair, kind: Span(*pair, kind), pairs, st.sampled_from(UptimeClass))
exclusions = st.builds(lambda pair, cause: Exclusion(*pair, cause), pairs, st.sampled_from(Cause))
rules = st.builds(
    Rule,
    st.sampled_from(Counting),
    st.sampled_from((0, 1, MINUTE, 150_000)),
    st.sampled_from(Counts),
    st.sampled_from(Counts),
    st.sampled_from(Exclude),
    st.lists(st.sampled_from(Cause), unique=True).map(tuple),
)
said = st.lists(spans, max_size=8)
left_out = st.lists(exclusions, max_size=4)


@given(said, left_out)
def test_the_classes_add_up_to_the_elapsed_time_without_gap_or_overlap(spans: list[Span], out: list[Exclusion]) -> None:
    pieces = resolve(spans, out, WINDOW)
    assert pieces[0].from_ms == WINDOW.from_ms and pieces[-1].until_ms == WINDOW.until_ms
    for before, after in itertools.pairwise(pieces):
        assert before.until_ms == after.from_ms and (before.uptime, before.cause) != (after.uptime, after.cause)
    t = totals_of(pieces)
    assert t.up_ms + t.degraded_ms + t.down_ms + t.excluded_ms + t.unknown_ms == WINDOW.elapsed_ms
    assert min(t.up_ms, t.degraded_ms, t.down_ms, t.excluded_ms, t.unknown_ms) >= 0


@given(said, left_out, st.randoms(use_true_random=False), times)
def test_order_duplicates_and_cuts_change_nothing(
    spans: list[Span], out: list[Exclusion], rng: object, cut: int
) -> None:
    shuffled = [*spans, *spans[:2]]
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    split = [
        piece
        for span in shuffled
        for piece in (
            (Span(span.from_ms, cut, span.uptime), Span(cut, span.until_ms, span.uptime))
            if span.from_ms < cut < span.until_ms
            else (span,)
        )
    ]
    assert resolve(split, [*reversed(out), *out[:1]], WINDOW) == resolve(spans, out, WINDOW)


@given(said, said, left_out, left_out)
def test_a_closed_month_and_its_adjustment_are_the_ledger_of_all_events(
    before: list[Span], late: list[Span], out: list[Exclusion], late_out: list[Exclusion]
) -> None:
    closed = totals_of(resolve(before, out, WINDOW))
    whole = totals_of(resolve([*before, *late], [*out, *late_out], WINDOW))
    adjustment = difference(whole, closed)
    for name in ("up_ms", "degraded_ms", "down_ms", "excluded_ms", "unknown_ms"):
        assert getattr(closed, name) + getattr(adjustment, name) == getattr(whole, name)
    assert sum(getattr(adjustment, name) for name in adjustment.__slots__) == 0


@given(said, left_out, rules)
def test_availability_is_within_bounds_and_exclusions_do_not_worsen_it(
    spans: list[Span], out: list[Exclusion], rule: Rule
) -> None:
    found = measure(resolve(spans, out, WINDOW), rule)
    assert 0 <= found.down_ms <= found.whole_ms <= found.elapsed_ms == WINDOW.elapsed_ms
    assert 0 <= found.raw_down_ms <= found.elapsed_ms
    exact = measure(resolve(spans, out, WINDOW), Rule(Counting.EXACT, 0, rule.degraded, rule.unknown, rule.exclude))
    assert exact.down_ms <= exact.raw_down_ms
    if found.exclude is Exclude.DOWNTIME:
        assert found.availability is not None


ROWS = st.lists(st.tuples(st.integers(0, 3), st.one_of(spans, exclusions)), max_size=24)

SINCE = st.lists(st.integers(9 * MINUTE, WINDOW.until_ms - 1), min_size=4, max_size=4)


@settings(max_examples=200)
@given(ROWS, rules, SINCE)
def test_the_columns_agree_with_the_exact_path(
    rows: list[tuple[int, Span | Exclusion]], rule: Rule, since: list[int]
) -> None:
    scopes = 4
    statements = columns.Statements(
        np.array([scope for scope, _ in rows], np.int64),
        np.array([row.from_ms for _, row in rows], np.int64),
        np.array([row.until_ms for _, row in rows], np.int64),
        np.array([columns.CODE[row.uptime if isinstance(row, Span) else row.cause] for _, row in rows], np.int8),
    )
    report = columns.measure(columns.resolve(statements, scopes, WINDOW, np.array(since, np.int64)), rule)
    below = columns.availability_below(report, 9, 10)
    for scope in range(scopes):
        own = [row for index, row in rows if index == scope]
        pieces = resolve(
            [row for row in own if isinstance(row, Span)],
            [row for row in own if isinstance(row, Exclusion)],
            Window(max(WINDOW.from_ms, since[scope]), WINDOW.until_ms),
        )
        exact, totals = measure(pieces, rule), totals_of(pieces)
        assert [int(ms) for ms in report.totals[scope]] == [getattr(totals, f"{kind.value}_ms") for kind in UptimeClass]
        assert int(report.down_ms[scope]) == exact.down_ms
        assert int(report.raw_down_ms[scope]) == exact.raw_down_ms
        assert int(report.excluded_ms[scope]) == exact.excluded_ms
        assert int(report.whole_ms[scope]) == exact.whole_ms
        availability = exact.availability
        assert bool(below[scope]) is (availability is not None and availability * 10 < 9)


def test_of_causes_that_overlap_the_first_by_precedence_counts_once() -> None:
    pieces = resolve((), [Exclusion(WINDOW.from_ms, WINDOW.until_ms, cause) for cause in reversed(PRECEDENCE)], WINDOW)
    assert [piece.cause for piece in pieces] == [PRECEDENCE[0]]
    assert totals_of(pieces).excluded_ms == WINDOW.elapsed_ms
