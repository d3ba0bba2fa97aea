"""Cordons: reasons with owners and expiries that always succeed, and count in the budgets."""

from __future__ import annotations

import pytest

from controlplane.domain.cordon import UnknownTarget, cordon, uncordon
from gridkeeper.records.faults import DrainState
from tests.unit.test_drains import G, drains, fleet


def test_cordons_always_succeed_count_once_and_belong_to_their_owners() -> None:
    store = fleet()
    for owner in ("ada", "bob"):
        assert store.apply(cordon(store.state(), store.settings, "n1", owner, "rack work", store.now))
    store.xid("n2/gpu0", 48)
    store.settle()
    assert drains(store)["n2/gpu0"].state is DrainState.REFUSED
    assert "8 of 4 out" in drains(store)["n2/gpu0"].reason
    store.xid("n1/gpu0", 48)
    store.settle()
    assert drains(store)["n1/gpu0"].state is DrainState.DRAINED, "it is out already: no further place is taken"
    first = uncordon(store.state(), store.settings, "n1", "ada", "done", store.now)
    assert first is not None and "still cordoned by bob" in first.sentence and store.apply(first)
    assert uncordon(store.state(), store.settings, "n1", "ada", "done", store.now) is None
    second = uncordon(store.state(), store.settings, "n1", "bob", "done", store.now)
    assert second is not None and store.apply(second)
    store.settle()
    assert not store.records("cordons")
    assert store.out() == {"n1/gpu0", "n2/gpu0"}


def test_a_cordon_expires_by_itself() -> None:
    store = fleet()
    assert store.apply(cordon(store.state(), store.settings, G, "ada", "look", store.now, 5_000))
    store.run(4_000)
    assert store.records("cordons")
    store.run(2_000)
    assert not store.records("cordons")
    expired = next(d for d in reversed(store.applied) if d.step == "cordon.expire")
    assert store.keys.budget("region") in {w.key for w in expired.writes}, "one transaction gives the place back"
    assert not [h for b in store.records("budgets") for h in b.holds]


@pytest.mark.parametrize("target", ["n7", "n1/gpu99", ""])
def test_a_cordon_of_nothing_is_refused_by_name(target: str) -> None:
    store = fleet()
    with pytest.raises(UnknownTarget, match="target"):
        cordon(store.state(), store.settings, target, "ada", "x", store.now)


def test_a_lost_budget_record_is_made_again_from_what_is_held() -> None:
    store = fleet()
    store.xid(G, 48)
    assert store.apply(cordon(store.state(), store.settings, "n2/gpu0", "ada", "look", store.now))
    store.settle()
    before = store.records("budgets")
    store.write(*((store.keys.budget(b.name), None) for b in before))
    store.settle()
    assert store.records("budgets") == before
