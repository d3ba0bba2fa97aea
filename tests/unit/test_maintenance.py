"""Announced maintenance: drained ahead, cordoned and excluded within, given back after; whoever dies meanwhile."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controlplane.domain import maintenance, uptime
from controlplane.domain.cordon import cordon, uncordon
from controlplane.domain.maintenance import BadWindow
from controlplane.domain.region import decide_region
from controlplane.domain.uptime import Standing
from gridkeeper.decision import Decision
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.records.books import UptimeClass
from gridkeeper.records.care import MaintenanceRecord, MaintenanceState
from gridkeeper.records.faults import DrainMode, DrainState, HoldKind
from gridkeeper.records.fleet import HealthState
from gridkeeper.snapshot import GlobalState
from tests.unit.applier import NOON, RegionStore, quick
from tests.unit.test_drain_modes import moved
from tests.unit.test_drains import G, drains, fleet, request, used, world

MINUTE = 60_000
ROOMY = (BudgetPolicy("region", 1.0, 1),)


def plan(store: RegionStore, target: str = G, begin: int = 10, end: int = 20, lead: int = 5) -> MaintenanceRecord:
    """Minutes from now."""
    span = (store.ledger + begin * MINUTE, store.ledger + end * MINUTE)
    decision = maintenance.announce(
        store.state(), target, span, lead * MINUTE, "ada", "new firmware", store.now, "trace"
    )  # fmt: skip
    assert store.apply(decision)
    record: MaintenanceRecord = store.records("maintenance")[-1]
    return record


def window(store: RegionStore, name: str) -> MaintenanceRecord:
    record: MaintenanceRecord = store.items[store.keys.maintenance(name)].record
    return record


def booked(store: RegionStore, device: str, kind: UptimeClass) -> list[tuple[int, int]]:
    """Closed entries, minutes since noon."""
    return [
        ((e.from_ms - NOON) // MINUTE, (e.until_ms - NOON) // MINUTE)
        for e in store.entries
        if e.scope == f"device/{device}" and e.uptime is kind
    ]


def test_a_window_drains_ahead_cordons_within_and_gives_back_after() -> None:
    store = fleet()
    record = plan(store)
    store.run(4 * MINUTE, step=MINUTE)
    assert not drains(store) and window(store, record.id).state is MaintenanceState.PLANNED
    store.run(2 * MINUTE, world(), step=MINUTE)
    drain = drains(store)[G]
    assert drain.state is DrainState.EVACUATING and (drain.mode, drain.maintenance) == (DrainMode.DEADLINE, record.id)
    assert drain.wait_until_ms == record.from_ms and drain.requested_by == "ada", (
        "jobs may end by themselves until then"
    )
    assert not moved(store, world()), "they may end by themselves until then"
    store.run(5 * MINUTE, world(), step=MINUTE)
    assert moved(store, world()) and window(store, record.id).state is MaintenanceState.ACTIVE
    cordons = {c.target: [r.owner for r in c.reasons] for c in store.records("cordons")}
    assert cordons == {G: [f"maintenance/{record.id}"]} and G in used(store, HoldKind.CORDON)
    store.run(8 * MINUTE, world(stopped=True), step=MINUTE)
    assert store.health(G).state is HealthState.DRAINED
    store.run(3 * MINUTE, step=MINUTE)
    assert window(store, record.id).state is MaintenanceState.ENDED and not store.records("cordons")
    assert store.health(G).state is HealthState.HEALTHY and not used(store)
    assert booked(store, G, UptimeClass.EXCLUDED) == [(10, 20)], "exactly the announced window"


def test_a_whole_node_is_drained_and_returned_and_its_neighbour_is_not_touched() -> None:
    store = fleet(quick(budgets=ROOMY))
    plan(store, "n1")
    store.run(8 * MINUTE, step=MINUTE)
    assert store.out() == {f"n1/gpu{slot}" for slot in range(8)}
    store.run(20 * MINUTE, step=MINUTE)
    assert not store.out() and {store.health(f"n1/gpu{s}").state for s in range(8)} == {HealthState.HEALTHY}
    assert not booked(store, "n2/gpu0", UptimeClass.EXCLUDED)
    assert all(booked(store, f"n1/gpu{s}", UptimeClass.EXCLUDED) == [(10, 20)] for s in range(8))


def test_the_budgets_hold_for_maintenance_too_and_what_was_refused_is_not_left_behind() -> None:
    store = fleet()
    plan(store, "n1")
    store.run(8 * MINUTE, step=MINUTE)
    assert len(store.out()) == 4 and sum(d.state is DrainState.REFUSED for d in store.records("drains")) == 4
    store.run(20 * MINUTE, step=MINUTE)
    assert not store.out() and not store.records("drain-requests") and not used(store)
    assert all(d.state in (DrainState.CANCELLED, DrainState.DRAINED) for d in store.records("drains"))


def test_a_device_that_fails_meanwhile_stays_out_and_becomes_the_machines() -> None:
    store = fleet()
    plan(store)
    store.run(12 * MINUTE, step=MINUTE)
    store.xid(G, 48)
    store.run(15 * MINUTE, step=MINUTE)
    drain = drains(store)[G]
    assert store.health(G).state is HealthState.DRAINED and drain.requested_by == "machine" and not drain.maintenance
    assert "it stays out for XID 48" in drain.reason


def test_a_human_who_asks_for_the_device_meanwhile_keeps_it_out() -> None:
    store = fleet()
    plan(store)
    store.run(12 * MINUTE, step=MINUTE)
    request(store, G, "bob")
    store.run(15 * MINUTE, step=MINUTE)
    assert store.health(G).state is HealthState.DRAINED and drains(store)[G].requested_by == "bob"


def test_nobody_but_the_window_ends_its_cordon_or_returns_its_devices() -> None:
    store = fleet()
    record = plan(store)
    assert store.apply(cordon(store.state(), store.settings, G, "bob", "look", store.now))
    store.run(12 * MINUTE, step=MINUTE)
    decision = uncordon(store.state(), store.settings, G, "bob", "looked", store.now)
    assert decision is not None and store.apply(decision)
    store.settle()
    assert store.health(G).state is HealthState.DRAINED
    assert [r.owner for c in store.records("cordons") for r in c.reasons] == [f"maintenance/{record.id}"]
    assert store.apply(cordon(store.state(), store.settings, G, "bob", "look again", store.now))
    store.run(15 * MINUTE, step=MINUTE)
    assert [r.owner for c in store.records("cordons") for r in c.reasons] == ["bob"], "its end takes only its own"


def test_a_drain_of_the_window_that_a_human_cancels_is_not_asked_for_again() -> None:
    from controlplane.domain.drain_progress import cancellation

    store = fleet()
    plan(store)
    store.run(6 * MINUTE, world(), step=MINUTE)
    held = store.state().drains[drains(store)[G].id]
    assert store.apply(cancellation(store.state(), store.settings, held, "ada", "it runs a demo", store.now))
    store.run(8 * MINUTE, world(), step=MINUTE)
    assert drains(store)[G].state is DrainState.CANCELLED and store.health(G).state is HealthState.HEALTHY
    assert store.records("cordons"), "nothing new is placed there all the same"


def test_it_is_called_off_before_it_begins_or_ends_early_and_the_books_say_so() -> None:
    store = fleet()
    early, active = plan(store), plan(store, "n2/gpu0")
    store.run(7 * MINUTE, step=MINUTE)
    held = store.state().maintenance[early.id]
    assert store.apply(maintenance.call_off(store.state(), store.settings, held, "bob", "no parts", store.now))
    store.run(7 * MINUTE, step=MINUTE)
    assert window(store, early.id).state is MaintenanceState.CANCELLED and store.health(G).state is HealthState.HEALTHY
    held = store.state().maintenance[active.id]
    assert store.apply(maintenance.call_off(store.state(), store.settings, held, "bob", "done", store.now))
    store.run(7 * MINUTE, step=MINUTE)
    assert window(store, active.id).state is MaintenanceState.ENDED and not store.records("cordons")
    assert not booked(store, G, UptimeClass.EXCLUDED)
    assert booked(store, "n2/gpu0", UptimeClass.EXCLUDED) == [(10, 14)], "what was announced and used"
    with pytest.raises(BadWindow, match="ended already"):
        maintenance.call_off(
            store.state(), store.settings, store.state().maintenance[active.id], "bob", "again", store.now
        )


def test_it_can_be_extended_while_it_is_not_over() -> None:
    store = fleet()
    record = plan(store)
    store.run(15 * MINUTE, step=MINUTE)
    held = store.state().maintenance[record.id]
    assert store.apply(maintenance.move_end(store.state(), held, NOON + 30 * MINUTE, "bob", store.now))
    store.run(10 * MINUTE, step=MINUTE)
    assert window(store, record.id).state is MaintenanceState.ACTIVE and store.health(G).state is HealthState.DRAINED
    store.run(10 * MINUTE, step=MINUTE)
    assert booked(store, G, UptimeClass.EXCLUDED) == [(10, 30)]
    with pytest.raises(BadWindow, match="is over"):
        maintenance.move_end(store.state(), store.state().maintenance[record.id], NOON + 90 * MINUTE, "bob", store.now)


@pytest.mark.parametrize(
    ("begin", "end", "message"),
    [
        (0, 5, "not in the future"),
        (-5, 5, "not in the future"),
        (5, 5, "not after its begin"),
        (15, 30, "has maintenance"),
    ],
)
def test_a_window_is_announced_before_it_begins_and_never_twice(begin: int, end: int, message: str) -> None:
    store = fleet()
    plan(store)
    with pytest.raises(BadWindow, match=message):
        plan(store, begin=begin, end=end)


def test_a_window_that_passed_while_nobody_led_is_excluded_to_the_millisecond() -> None:
    store = fleet()
    record = plan(store)
    store.wait(33 * MINUTE)
    store.settle()
    assert window(store, record.id).state is MaintenanceState.ENDED and not store.records("cordons")
    assert booked(store, G, UptimeClass.EXCLUDED) == [(10, 20)] and store.health(G).state is HealthState.HEALTHY


def test_when_windows_overlap_the_later_one_keeps_the_device() -> None:
    store = fleet(quick(budgets=ROOMY))
    plan(store)
    plan(store, "n1", begin=15, end=40)
    store.run(25 * MINUTE, step=MINUTE)
    assert store.health(G).state is HealthState.DRAINED
    store.run(25 * MINUTE, step=MINUTE)
    assert store.health(G).state is HealthState.HEALTHY and booked(store, G, UptimeClass.EXCLUDED) == [(10, 40)]


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_dying_between_any_two_decisions_leaves_nothing_half_done(seed: int, gaps: list[int]) -> None:
    """Protects: a leader that dies after any number of its decisions, for any time, changes neither what is booked nor
    where everything ends."""
    store = fleet(quick(budgets=ROOMY))
    record = plan(store, "n1")
    for step, gap in enumerate(gaps):
        decisions = decide_region(store.state(), GlobalState(), store.settings, store.now)
        for decision in decisions[: (seed >> (step % 8)) % (len(decisions) + 1)]:
            assert store.apply(decision)
        store.wait(gap * MINUTE // 2)
    store.wait(max(0, record.until_ms - store.ledger))
    store.settle()
    store.run(4 * MINUTE, step=30_000)
    assert not store.out() and not used(store) and not store.records("cordons") and not store.records("drain-requests")
    assert {store.health(f"n1/gpu{s}").state for s in range(8)} == {HealthState.HEALTHY}
    for device in (f"n1/gpu{s}" for s in range(8)):
        excluded = [e for e in store.entries if e.scope == f"device/{device}" and e.uptime is UptimeClass.EXCLUDED]
        assert (excluded[0].from_ms, excluded[-1].until_ms) == (record.from_ms, record.until_ms)
        assert sum(e.until_ms - e.from_ms for e in excluded) == record.until_ms - record.from_ms


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30)), max_size=5), st.integers(0, 40), st.integers(1, 60))
def test_the_steps_of_the_books_cover_the_time_without_gap(
    spans: list[tuple[int, int]], since: int, length: int
) -> None:
    """Protects: whatever windows there are, excluded time is exactly their union within [since, now)."""
    now = since + length
    base = plan(fleet())
    windows = [replace(base, from_ms=a, until_ms=a + n, id=str(i)) for i, (a, n) in enumerate(spans)]
    steps = uptime.through(windows, Standing(UptimeClass.UP, 0, "up"), since, now)
    at, excluded = since, 0
    for standing, until in steps:
        assert until >= at and standing.since_ms <= until
        begin = max(at, standing.since_ms)
        excluded += until - begin if standing.uptime is UptimeClass.EXCLUDED else 0
        at = until
    inside = sum(any(a <= ms < a + n for a, n in spans) for ms in range(since, now))
    assert at == now and Fraction(excluded) == inside


def test_a_window_that_is_over_is_forgotten_at_last() -> None:
    store = fleet()
    plan(store)
    store.run(30 * MINUTE, step=MINUTE)
    store.wait(maintenance.KEPT_MS)
    store.settle()
    assert not store.records("maintenance")


def _sentences(decisions: list[Decision]) -> list[str]:
    return [d.sentence for d in decisions]


def test_each_step_says_why() -> None:
    store = fleet()
    record = plan(store)
    store.run(30 * MINUTE, step=MINUTE)
    told = [d for d in store.applied if record.id in d.sentence]
    assert {"maintenance.plan", "drain.request", "maintenance.begin", "maintenance.end", "health.step"} <= {
        d.step for d in told
    }
    assert all("new firmware" in s or "is over" in s or "asked for" in s or "outlasts" in s for s in _sentences(told))
