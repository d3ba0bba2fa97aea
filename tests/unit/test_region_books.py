"""What happens to devices is what their accounts say: the ledger as the region's leader keeps it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controlplane.domain.cordon import cordon, uncordon
from controlplane.domain.sla import elapsed, month_end, month_of, totals_at
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.records.books import AccountRecord, Totals, UptimeClass
from gridkeeper.records.fleet import EventKind
from tests.unit.applier import NOON, RegionStore, quick

G = "n1/gpu3"


def fleet() -> RegionStore:
    store = RegionStore(quick())
    store.fleet(nodes=2, gpus=4)
    store.settle()
    return store


def account(store: RegionStore, scope: str = f"device/{G}") -> AccountRecord:
    record = store.items[store.keys.account(scope)].record
    assert isinstance(record, AccountRecord)
    return record


def balanced(store: RegionStore) -> None:
    """Per scope: entries without gap or overlap from the opening on, and totals that add up."""
    for held in store.records("accounts"):
        own = [entry for entry in store.entries if entry.scope == held.scope]
        at = NOON
        for number, entry in enumerate(own, 1):
            assert (entry.sequence, entry.from_ms) == (number, at), held.scope
            at = entry.until_ms
        assert at == held.since_ms
        assert elapsed(totals_at(held, store.ledger)) == store.ledger - held.opened_ms


def test_a_drain_is_down_time_from_the_moment_of_the_decision() -> None:
    store = fleet()
    store.wait(5_000)
    store.xid(G, 48)
    store.settle()
    store.wait(2_000)
    store.settle()
    assert totals_at(account(store), store.ledger) == Totals(5_000, 0, 2_000, 0, 0)
    store.commit(store.event("n1", kind=EventKind.BOOT))
    store.settle()
    store.run(72_000)
    drain, incident = store.records("drains")[0], store.records("incidents")[0]
    own = [e for e in store.entries if e.scope == f"device/{G}"]
    assert [(e.uptime, e.until_ms - e.from_ms, set(e.refs)) for e in own] == [
        (UptimeClass.UP, 5_000, set()),
        (UptimeClass.DOWN, 72_000, {drain.id, incident.id}),
    ]
    balanced(store)


def test_maintenance_is_excluded_from_its_beginning_to_its_end() -> None:
    store = fleet()
    store.wait(1_000)
    assert store.apply(cordon(store.state(), store.settings, "n1", "maintenance", "new fans", store.now))
    store.run(10_000)
    decision = uncordon(store.state(), store.settings, "n1", "maintenance", "done", store.now)
    assert decision is not None and store.apply(decision)
    store.settle()
    store.run(3_000)
    assert totals_at(account(store), store.ledger) == Totals(4_000, 0, 0, 10_000, 0)
    balanced(store)


def test_a_region_in_maintenance_is_excluded_and_a_node_in_maintenance_costs_it_nothing() -> None:
    """What is announced is neither a degraded nor a dead region; silence of the rest is unknown as ever."""
    store = fleet()
    assert store.apply(cordon(store.state(), store.settings, "n1", "maintenance", "new fans", store.now))
    store.run(10_000)
    assert totals_at(account(store, "region/east"), store.ledger) == Totals(10_000, 0, 0, 0, 0)
    store.session("n2", False)
    store.run(20_000)
    store.session("n2", True)
    store.settle()
    totals = totals_at(account(store, "region/east"), store.ledger)
    assert totals.unknown_ms == 10_000 and totals.up_ms == 20_000, "of what is left, all was silent"
    store.run(1_000)
    assert store.apply(cordon(store.state(), store.settings, "n2", "maintenance", "new fans", store.now))
    store.run(7_000)
    assert totals_at(account(store, "region/east"), store.ledger).excluded_ms == 7_000
    balanced(store)


def test_silence_is_unknown_time_neither_up_nor_down() -> None:
    store = fleet()
    store.session("n1", False)
    store.run(20_000)
    store.session("n1", True)
    store.settle()
    store.run(5_000)
    totals = totals_at(account(store), store.ledger)
    assert totals.down_ms == 0 and totals.unknown_ms == 10_000 and totals.up_ms == 15_000
    balanced(store)


def test_a_month_is_closed_for_every_scope() -> None:
    store = fleet()
    end = month_end(month_of(store.ledger))
    store.wait(end - store.ledger + 1)
    store.settle()
    assert {a.month for a in store.records("accounts")} == {month_of(end)}
    assert {a.opened_ms for a in store.records("accounts")} == {end}
    assert len(store.entries) == len(store.records("accounts")) == 9


def test_an_account_that_cannot_be_read_is_left_alone() -> None:
    store = fleet()
    store.corrupt(store.keys.account(f"device/{G}"))
    store.xid(G, 48)
    store.settle()
    assert store.keys.account(f"device/{G}") in store.suspect


@pytest.mark.parametrize("faults", [0, 2, 8])
def test_a_region_is_up_while_drains_stay_within_its_budget(faults: int) -> None:
    store = fleet()
    for number in range(faults):
        store.xid(f"n{number // 4 + 1}/gpu{number % 4}", 64)
        store.settle()
    assert len(store.out()) == min(faults, 2)
    assert account(store, "region/east").current is UptimeClass.UP


def test_a_region_is_degraded_beyond_its_budget_and_down_when_nothing_is_left() -> None:
    store = RegionStore(quick(budgets=(BudgetPolicy("region", 0.25, 8),)))
    store.fleet(nodes=2, gpus=4)
    store.settle()
    seen = []
    for number in range(8):
        store.xid(f"n{number // 4 + 1}/gpu{number % 4}", 64)
        store.settle()
        seen.append(account(store, "region/east").current)
    assert seen == [UptimeClass.UP] * 2 + [UptimeClass.DEGRADED] * 5 + [UptimeClass.DOWN]


acts = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from(["xid", "boot", "silent", "back", "fence"]), st.integers(1, 40)),
    max_size=20,
)


@hypothesis_settings(max_examples=50, deadline=None)
@given(acts)
def test_the_ledger_balances_over_any_history_and_a_replay_is_equal(history: list[tuple[int, str, int]]) -> None:
    def play() -> RegionStore:
        store = fleet()
        for number, act, seconds in history:
            node = f"n{number // 4 + 1}"
            match act:
                case "xid":
                    store.xid(f"{node}/gpu{number % 4}", (48, 63, 94, 13)[seconds % 4])
                case "boot":
                    store.commit(store.event(node, kind=EventKind.BOOT))
                case "silent":
                    store.session(node, False)
                case "back":
                    store.session(node, True)
                case _:
                    held, ttl_ms = store.state(), seconds * 500
                    assert store.apply(cordon(held, store.settings, node, "maintenance", "x", store.now, ttl_ms))
            store.settle()
            store.run(seconds * 1_000, step=1_000 * (1 + seconds // 5))
        return store

    one, two = play(), play()
    balanced(one)
    assert one.entries == two.entries and one.records("accounts") == two.records("accounts")
