"""Silence makes a node unreachable and its devices unknown; it never drains, and too much of it convicts nobody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gridkeeper.hearing import in_doubt
from gridkeeper.records.faults import IncidentState
from gridkeeper.records.fleet import HealthState, LivenessRecord, NodeState
from tests.unit.applier import RegionStore, quick

LIMIT = 10_000  # timings.unreachable_ms


def nodes(store: RegionStore) -> dict[str, NodeState]:
    return {record.node: record.state for record in store.records("liveness")}


def fleet(count: int) -> RegionStore:
    store = RegionStore(quick())
    store.fleet(nodes=count, gpus=2)
    store.settle()
    store.run(60_000, step=20_000)
    return store


def doubtful(store: RegionStore) -> bool:
    return in_doubt(store.state(), store.settings)


def test_a_silent_node_is_unreachable_after_the_limit_and_comes_back_as_it_was() -> None:
    store = fleet(4)
    store.xid("n2/gpu0", 63)
    store.settle()
    store.session("n2", False)
    store.run(LIMIT - 1_000)
    assert nodes(store)["n2"] is NodeState.ALIVE
    store.run(1_000)
    assert nodes(store) == {
        "n1": NodeState.ALIVE, "n2": NodeState.UNREACHABLE, "n3": NodeState.ALIVE, "n4": NodeState.ALIVE,
    }  # fmt: skip
    assert [h.device for h in store.records("health") if h.state is HealthState.UNKNOWN] == ["n2/gpu0", "n2/gpu1"]
    assert "n2 is unreachable" in store.health("n2/gpu0").reason
    store.session("n2", True)
    store.settle()
    assert nodes(store)["n2"] is NodeState.ALIVE
    assert store.health("n2/gpu0").state is HealthState.SUSPECT
    assert store.health("n2/gpu1").state is HealthState.HEALTHY
    assert not store.records("drains")


def test_a_reconnect_within_the_limit_leaves_no_trace() -> None:
    store = fleet(4)
    written = len(store.applied)
    store.session("n2", False)
    store.run(LIMIT - 1_000)
    store.session("n2", True)
    store.run(30_000)
    assert [d for d in store.applied[written:] if d.audit] == []


def test_a_dead_replicas_nodes_get_the_full_limit_to_find_another() -> None:
    store = fleet(4)
    store.replica("b")
    store.session("n1", True, replica="b")
    store.run(60_000, step=20_000)
    store.replica("b", present=False)
    store.run(LIMIT - 1_000)
    assert set(nodes(store).values()) == {NodeState.ALIVE}
    store.run(2_000)
    assert nodes(store)["n1"] is NodeState.UNREACHABLE
    store.session("n1", True, replica="a")
    store.settle()
    assert nodes(store)["n1"] is NodeState.ALIVE


def test_a_new_leader_waits_out_the_timers_on_its_own_clock() -> None:
    store = fleet(4)
    store.session("n2", False)
    store.wait(LIMIT - 1_000)
    store.mono = 5_000  # another host took over: it has just loaded the store
    for key, held in store.items.items():
        store.items[key] = type(held)(held.record, held.revision, held.created, store.mono)
    store.run(LIMIT - 1_000)
    assert nodes(store)["n2"] is NodeState.ALIVE
    store.run(2_000)
    assert nodes(store)["n2"] is NodeState.UNREACHABLE


@pytest.mark.parametrize(
    ("count", "silent", "frozen"),
    [
        (1, 1, False),
        (2, 1, False),
        (2, 2, True),
        (3, 1, False),
        (3, 2, True),
        (4, 2, False),
        (4, 3, True),
        (9, 5, True),
    ],
)
def test_when_too_much_is_silent_at_once_nobody_is_judged(count: int, silent: int, frozen: bool) -> None:
    store = fleet(count)
    for number in range(silent):
        store.session(f"n{number + 1}", False)
    store.run(5 * LIMIT, step=5_000)
    gone = [state for state in nodes(store).values() if state is NodeState.UNREACHABLE]
    assert doubtful(store) is frozen
    assert len(gone) == (0 if frozen else silent)
    assert not store.records("drains")


def test_when_a_cut_heals_every_timer_starts_anew() -> None:
    store = fleet(5)
    for number in range(5):
        store.session(f"n{number + 1}", False)
    store.run(3 * LIMIT, step=5_000)
    assert set(nodes(store).values()) == {NodeState.ALIVE}
    for number in range(3):
        store.session(f"n{number + 1}", True)
    assert not doubtful(store)
    store.run(LIMIT - 1_000)
    assert set(nodes(store).values()) == {NodeState.ALIVE}, "n4 and n5 get the time that the others had"
    store.run(2_000)
    assert nodes(store)["n4"] is nodes(store)["n5"] is NodeState.UNREACHABLE


def judged(store: RegionStore, node: str) -> LivenessRecord:
    [record] = [r for r in store.records("liveness") if r.node == node]
    return record


def test_silence_is_dated_when_the_node_was_last_heard_not_when_it_was_judged() -> None:
    """The replica that holds a stream marks it silent only after a while, and knows how long that was."""
    store = fleet(4)
    heard_ms = store.ledger
    store.wait(3_300)
    store.session("n2", False, silent_ms=3_300)
    store.run(LIMIT)
    record = judged(store, "n2")
    assert (record.state, record.heard_ms) == (NodeState.UNREACHABLE, heard_ms)
    assert record.since_ms == heard_ms + 3_300 + LIMIT
    assert "not heard for 13.3 s" in record.reason
    store.session("n2", True)
    store.settle()
    assert judged(store, "n2").heard_ms == 0


def test_a_new_leader_dates_a_silence_that_began_before_it_led() -> None:
    store = fleet(4)
    heard_ms = store.ledger
    store.session("n2", False)
    store.wait(LIMIT)
    for key, held in store.items.items():  # it has just loaded the store
        store.items[key] = type(held)(held.record, held.revision, held.created, store.mono)
    store.run(LIMIT)
    assert judged(store, "n2").heard_ms == heard_ms


@pytest.mark.parametrize("skew", [-10_000_000, 10_000_000])
def test_a_replica_with_a_wrong_clock_cannot_move_a_silence_out_of_what_the_leader_knows(skew: int) -> None:
    store = fleet(4)
    alive_ms, heard_ms = judged(store, "n2").since_ms, store.ledger
    store.session("n2", False, wall_ms=store.ledger + skew)
    store.run(LIMIT)
    assert judged(store, "n2").heard_ms == (heard_ms if skew > 0 else alive_ms)


def test_a_node_whose_replica_went_was_heard_until_that_was_seen() -> None:
    store = fleet(4)
    store.replica("b")
    store.session("n1", True, replica="b")
    store.run(20_000, step=10_000)
    store.replica("b", present=False)
    store.settle()
    gone_ms = store.ledger
    store.run(LIMIT + 1_000)
    assert (judged(store, "n1").state, judged(store, "n1").heard_ms) == (NodeState.UNREACHABLE, gone_ms)


def test_a_drain_under_way_stays_one_when_its_node_goes_silent() -> None:
    store = fleet(4)
    store.xid("n2/gpu0", 48)
    store.settle()
    store.session("n2", False)
    store.run(2 * LIMIT)
    assert store.health("n2/gpu0").state is HealthState.DRAINED
    assert store.health("n2/gpu1").state is HealthState.UNKNOWN


acts = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from(["silent", "back", "replica", "wait"]), st.integers(1, 15)),
    max_size=14,
)


@hypothesis_settings(max_examples=40, deadline=None)
@given(acts)
def test_no_pattern_of_silence_drains_or_fails_anything(history: list[tuple[int, str, int]]) -> None:
    store = fleet(4)
    gone = False
    for number, act, seconds in history:
        match act:
            case "silent":
                store.session(f"n{number}", False)
            case "back":
                store.session(f"n{number}", True)
            case "replica":
                gone = not gone
                store.replica("a", present=not gone)
            case _:
                store.run(seconds * 1_000, step=1_000)
    store.settle()
    assert not store.records("drains")
    assert {(i.fault_class, i.drain) for i in store.records("incidents")} <= {("contact", "")}
    assert {h.state for h in store.records("health")} <= {HealthState.HEALTHY, HealthState.UNKNOWN}
    assert NodeState.FAILED not in nodes(store).values()
    store.replica("a")
    for number in range(4):
        store.session(f"n{number + 1}", True)
    store.settle()
    assert {h.state for h in store.records("health")} == {HealthState.HEALTHY}
    assert set(nodes(store).values()) == {NodeState.ALIVE}
    assert {i.state for i in store.records("incidents")} <= {IncidentState.RESOLVED}
