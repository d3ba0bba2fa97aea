"""The ledger balances: no gap, no overlap, integer milliseconds, the same whenever it is folded."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.sla import add, decide_ledger, elapsed, fold, month_end, month_of, opened, totals_at, uptime_of
from controlplane.domain.uptime import Standing, class_of
from gridkeeper import codec
from gridkeeper.decision import Now, Versioned
from gridkeeper.ids import DeviceId, DrainId, IncidentId, NodeId, RegionId, Revision
from gridkeeper.keys import RegionKeys
from gridkeeper.records.books import AccountRecord, EntryRecord, Totals, UptimeClass
from gridkeeper.records.fleet import HealthRecord, HealthState
from gridkeeper.snapshot import RegionState, Settings

START = 1_764_547_000_000  # 2025-11-30 23:56:40 UTC: histories cross the end of a month
CLASSES = list(UptimeClass)

steps = st.lists(
    st.tuples(st.sampled_from(CLASSES), st.integers(0, 90_000), st.integers(-200_000, 100_000)), min_size=1, max_size=25
)


def run(history: list[tuple[UptimeClass, int, int]]) -> tuple[list[AccountRecord], list[EntryRecord], int]:
    """Fold standings that arrive after a while each and claim to hold since some time before or after that."""
    now = START
    account = opened("device/n/g", Standing(history[0][0], now, "first"), now)
    accounts, entries = [account], list[EntryRecord]()
    for kind, later, since in history[1:]:
        now += later
        account, made = fold(account, Standing(kind, now + since, kind.value), now)
        accounts.append(account)
        entries += made
    return accounts, entries, now


@given(steps)
def test_per_scope_the_classes_add_up_to_the_elapsed_time_without_gap_or_overlap(
    history: list[tuple[UptimeClass, int, int]],
) -> None:
    accounts, entries, now = run(history)
    at = START
    for number, entry in enumerate(entries, 1):
        assert (entry.sequence, entry.from_ms) == (number, at)
        assert entry.until_ms > entry.from_ms
        assert month_of(entry.from_ms) == month_of(entry.until_ms - 1) == entry.month
        at = entry.until_ms
    last = accounts[-1]
    assert last.since_ms == at <= now
    assert elapsed(totals_at(last, now)) == now - last.opened_ms
    booked = Totals(0, 0, 0, 0, 0)
    for entry in entries:
        if entry.month == last.month:
            booked = add(booked, entry.uptime, entry.until_ms - entry.from_ms)
    assert booked == last.totals


@given(steps)
def test_folding_the_same_inputs_again_gives_the_same_bytes(history: list[tuple[UptimeClass, int, int]]) -> None:
    first, second = run(history), run(history)
    assert [codec.encode(r) for r in (*first[0], *first[1])] == [codec.encode(r) for r in (*second[0], *second[1])]


@given(steps)
def test_folding_twice_books_nothing_more(history: list[tuple[UptimeClass, int, int]]) -> None:
    accounts, _, now = run(history)
    last = accounts[-1]
    assert fold(last, Standing(last.current, now, last.reason), now)[1] == ()


def test_a_change_is_booked_when_it_happened_not_when_it_was_seen() -> None:
    account = opened("device/n/g", Standing(UptimeClass.UP, START, "healthy"), START)
    account, (entry,) = fold(account, Standing(UptimeClass.DOWN, START + 400, "drained"), START + 1_000)
    assert (entry.until_ms, account.since_ms, account.current) == (START + 400, START + 400, UptimeClass.DOWN)
    assert totals_at(account, START + 1_000) == Totals(400, 0, 600, 0, 0)


def test_what_is_booked_stays_booked() -> None:
    account = opened("device/n/g", Standing(UptimeClass.UP, START, "healthy"), START)
    account, _ = fold(account, Standing(UptimeClass.DOWN, START + 400, "drained"), START + 1_000)
    account, entries = fold(account, Standing(UptimeClass.UP, START + 100, "claims an earlier time"), START + 2_000)
    assert [(e.from_ms, e.until_ms, e.uptime) for e in entries] == [(START + 400, START + 2_000, UptimeClass.DOWN)]


def test_a_month_ends_an_interval_and_begins_a_new_account() -> None:
    end = month_end(month_of(START))
    account = opened("device/n/g", Standing(UptimeClass.UP, START, "healthy"), START)
    account, (entry,) = fold(account, Standing(UptimeClass.UP, START, "healthy"), end + 5_000)
    assert (entry.until_ms, entry.month, account.month) == (end, "2025-11", "2025-12")
    assert totals_at(account, end + 5_000) == Totals(5_000, 0, 0, 0, 0)
    assert (account.opened_ms, account.sequence) == (end, 1)


def test_december_is_followed_by_january() -> None:
    assert month_of(month_end("2025-12")) == "2026-01"
    assert month_of(month_end("2025-12") - 1) == "2025-12"


def test_uptime_is_exact_and_says_nothing_where_nothing_was_served() -> None:
    assert uptime_of(Totals(999, 0, 1, 50, 70)) == Fraction(999, 1000)
    assert uptime_of(Totals(0, 0, 0, 5, 9)) is None


def test_every_health_state_has_a_class_and_no_unknown_counts_as_up() -> None:
    classes = {state: class_of(state) for state in HealthState}
    assert classes[HealthState.UNKNOWN] is UptimeClass.UNKNOWN
    assert [s for s, c in classes.items() if c is UptimeClass.UP] == [HealthState.HEALTHY, HealthState.SUSPECT]


def test_after_months_without_a_leader_each_transaction_still_fits_the_store() -> None:
    keys = RegionKeys(RegionId("east"))
    health, accounts = {}, {}
    for number in range(40):
        device = DeviceId(f"n{number}/gpu0")
        health[device] = Versioned(healthy(device), Revision(1), Revision(1), 0)
        scope = f"device/{device}"
        standing = Standing(UptimeClass.UP, START, "healthy")
        accounts[scope] = Versioned(opened(scope, standing, START), Revision(1), Revision(1), 0)
    state = RegionState(RegionId("east"), health=health, accounts=accounts)
    decisions = decide_ledger(state, Settings(), Now(0, START + 9 * 31 * 24 * 3_600_000))
    written = [write.key for decision in decisions for write in decision.writes]
    assert {keys.account(scope) for scope in accounts} <= set(written)
    assert len(written) > 40 * 9
    assert max(len(decision.writes) for decision in decisions) + 2 <= 128, "with audit record and leader guard"


def healthy(device: DeviceId) -> HealthRecord:
    return HealthRecord(
        device, NodeId(device.partition("/")[0]), "uuid", HealthState.HEALTHY, START, "well", (), IncidentId(""),
        DrainId(""), "rule", 1, 0, HealthState.HEALTHY, "",
    )  # fmt: skip
