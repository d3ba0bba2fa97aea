"""Budgets of every kind: zones, jobs, windows, selectors, caps; all at once, and all by durable inventory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.domain.budget import MAX_BEGUN, Book, limit_of
from controlplane.domain.cordon import cordon, uncordon
from controlplane.domain.drain import decide_drains
from controlplane.domain.scopes import coverage, of_budget
from gridkeeper.ids import DeviceId, JobId, MigrationId, NodeId
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.records.common import Label
from gridkeeper.records.faults import DrainRecord, DrainState
from gridkeeper.records.jobs import ReservationRecord
from gridkeeper.records.limits import ShareRecord
from gridkeeper.snapshot import GlobalState
from tests.unit.applier import EAST, RegionStore, quick
from tests.unit.test_drains import request, world

HOUR = 3_600_000


def fleet(*budgets: BudgetPolicy, nodes: int = 2, gpus: int = 8) -> RegionStore:
    store = RegionStore(quick(budgets=budgets, breakers=()))
    store.fleet(nodes=nodes, gpus=gpus)
    store.settle()
    return store


def drain_of(store: RegionStore, device: str) -> DrainRecord:
    return max((d for d in store.records("drains") if d.device == device), key=lambda d: d.planned_ms)


@pytest.mark.parametrize(
    ("policy", "total", "limit"),
    [
        (BudgetPolicy("region", 0.5, 1, maximum=3), 100, 3),
        (BudgetPolicy("region", 0.0, 5, maximum=3), 100, 3),
        (BudgetPolicy("region", 0.5, 1, maximum=3), 0, 0),
        (BudgetPolicy("region", 1.0, 1, window_ms=HOUR), 100_000, MAX_BEGUN),
    ],
)
def test_the_maximum_caps_fraction_and_minimum(policy: BudgetPolicy, total: int, limit: int) -> None:
    """Protects: an absolute cap holds whatever the fraction says, and a window's memory is bounded."""
    assert limit_of(policy, total) == limit


def test_a_zone_has_its_own_budget() -> None:
    """Protects: a zone's budget counts its own devices only."""
    store = fleet(BudgetPolicy("zone", 0.25, 1))
    for name in list(store.state().devices):
        record = replace(store.items[store.keys.device(name)].record, zone="A 1" if name.startswith("n1") else "B")
        store.write((store.keys.device(name), record))
    store.settle()
    assert {b.name: (b.limit, b.total) for b in store.records("budgets")} == {"zone-a-1": (2, 8), "zone-b": (2, 8)}
    for device in ("n1/gpu0", "n1/gpu1", "n1/gpu2", "n2/gpu0"):
        store.xid(device, 48)
        store.settle()
    assert store.out() == {"n1/gpu0", "n1/gpu1", "n2/gpu0"}
    assert drain_of(store, "n1/gpu2").budgets == ("zone-a-1",)


def test_a_window_counts_drains_begun_and_forgets_them_after_its_time() -> None:
    """Protects: what came back into service still counts until the window has passed; cordons begin nothing."""
    store = fleet(BudgetPolicy("region", 0.0, 2, window_ms=HOUR), BudgetPolicy("region", 1.0, 1))
    assert store.apply(cordon(store.state(), store.settings, "n2/gpu7", "ada", "look", store.now))
    for device in ("n1/gpu0", "n1/gpu1"):
        request(store, device)
        store.settle()
        decision = uncordon(store.state(), store.settings, device, "ada", "back", store.now)
        assert decision is not None and store.apply(decision)
    request(store, "n1/gpu2")
    store.settle()
    refused = drain_of(store, "n1/gpu2")
    assert refused.state is DrainState.REFUSED and refused.budgets == ("region@1h",)
    assert "2 of 2 drains have begun in its window" in refused.reason
    store.wait(HOUR - 1_000)
    store.settle()
    assert drain_of(store, "n1/gpu2").state is DrainState.REFUSED
    store.wait(1_000)
    store.settle()
    assert drain_of(store, "n1/gpu2").state is DrainState.DRAINED
    window = next(b for b in store.records("budgets") if b.name == "region@1h")
    assert len(window.begun_ms) == 1 and not window.holds, "only what lies within the window is remembered"


def test_a_selector_makes_a_budget_of_its_own() -> None:
    """Protects: labels of the node and of the device choose; the plain budget of the same kind holds besides."""
    store = fleet(BudgetPolicy("region", 0.0, 1, select="tenant=blue,vendor=nvidia"), BudgetPolicy("region", 0.5, 1))
    node = store.items[store.keys.node(NodeId("n1"))].record
    store.write((store.keys.node(NodeId("n1")), replace(node, labels=(Label("tenant", "blue"),))))
    store.settle()
    assert {b.name: (b.limit, b.total) for b in store.records("budgets")} == {
        "region": (8, 16),
        "region[tenant=blue,vendor=nvidia]": (1, 8),
    }
    for device in ("n1/gpu0", "n1/gpu1", "n2/gpu0", "n2/gpu1"):
        store.xid(device, 48)
        store.settle()
    assert store.out() == {"n1/gpu0", "n2/gpu0", "n2/gpu1"}


def test_a_node_that_cannot_be_read_is_covered_by_each_budget_that_asks_for_its_labels() -> None:
    """Protects: unknown labels mean more caution, not less."""
    store = fleet(BudgetPolicy("region", 0.0, 1, select="tenant=blue"))
    store.corrupt(store.keys.node(NodeId("n1")))
    covered = coverage(store.state(), tuple(of_budget(p) for p in store.settings.policy.budgets))
    assert {str(d) for d, names in covered.names.items() if names} == {f"n1/gpu{i}" for i in range(8)}


def running(store: RegionStore, job: str, *devices: str) -> None:
    node = NodeId(devices[0].partition("/")[0])
    record = ReservationRecord(JobId(job), MigrationId("m1"), node, tuple(map(DeviceId, devices)), store.ledger)
    store.write((store.keys.reservation(JobId(job)), record))


def test_a_job_loses_only_so_many_devices_at_once() -> None:
    """Protects: a job that breaks one device after another is stopped by its own budget, also after it has moved."""
    store = fleet(BudgetPolicy("job", 0.25, 1), BudgetPolicy("region", 1.0, 1))
    running(store, "train", *(f"n1/gpu{i}" for i in range(4)))
    store.settle(world("n1/gpu0"))
    assert next((b.name, b.limit, b.total) for b in store.records("budgets")) == ("job-train", 1, 4)
    store.xid("n1/gpu0", 95)
    store.settle(world("n1/gpu0"))
    assert [h.device for h in store.records("budgets")[0].holds] == ["n1/gpu0"]
    store.xid("n1/gpu1", 95)
    store.settle(world("n1/gpu0"))
    assert drain_of(store, "n1/gpu1").budgets == ("job-train",)
    running(store, "train", *(f"n2/gpu{i}" for i in range(4)))
    moved = world("n2/gpu0", 2)
    store.settle(moved)
    assert drain_of(store, "n1/gpu0").state is DrainState.DRAINED
    assert drain_of(store, "n1/gpu1").state is DrainState.DRAINED, "the job has left it"
    store.xid("n2/gpu0", 95)
    store.settle(moved)
    assert drain_of(store, "n2/gpu0").state is DrainState.REFUSED, "gpu0 is still out under this job"
    store.write((store.keys.reservation(JobId("train")), None))
    decision = uncordon(store.state(), store.settings, "n1/gpu0", "ada", "fixed", store.now)
    assert decision is not None and store.apply(decision)
    store.run(70_000, GlobalState(), step=10_000)
    assert [b.name for b in store.records("budgets")] == ["region"], "a job that is gone leaves no budget behind"


def share(store: RegionStore, amount: int) -> None:
    store.write((store.keys.share("fleet"), ShareRecord("fleet", EAST, amount, 7)))


def test_the_fleets_budget_is_what_the_region_holds_of_it_and_without_a_share_the_answer_is_no() -> None:
    """Protects: a region spends only its share; an unknown share is none."""
    store = fleet(BudgetPolicy("fleet", 0.5, 4))
    store.xid("n1/gpu0", 48)
    store.settle()
    assert "has not given this region a share yet" in drain_of(store, "n1/gpu0").reason
    share(store, 1)
    store.xid("n1/gpu1", 48)
    store.settle()
    assert store.out() == {"n1/gpu0"} and drain_of(store, "n1/gpu1").budgets == ("fleet",)
    store.corrupt(store.keys.share("fleet"))
    store.settle()
    assert "does not decode" in Book.of(store.state(), store.settings, store.now).refusal(DeviceId("n1/gpu1")).sentence  # type: ignore[union-attr]
    share(store, 2)
    store.settle()
    assert store.out() == {"n1/gpu0", "n1/gpu1"}


def test_a_drain_decided_on_a_larger_share_does_not_commit() -> None:
    """Protects: spending and giving back a share race on its record."""
    store = fleet(BudgetPolicy("fleet", 0.5, 4))
    share(store, 1)
    store.xid("n1/gpu0", 94)
    store.settle()
    request(store, "n1/gpu0")
    stale = decide_drains(store.state(), GlobalState(), store.settings, store.now)
    share(store, 0)
    assert [store.apply(d) for d in stale if d.step == "drain.plan"] == [False]
    store.settle()
    assert not store.out()


def test_all_budgets_hold_at_once_and_each_that_is_full_is_named() -> None:
    """Protects: a drain needs a place in every budget that covers it."""
    store = fleet(
        BudgetPolicy("region", 0.0, 1), BudgetPolicy("rack", 0.0, 1), BudgetPolicy("zone", 1.0, 1),
        BudgetPolicy("vendor", 0.0, 1, window_ms=60_000),
    )  # fmt: skip
    store.xid("n1/gpu0", 48)
    store.xid("n1/gpu1", 48)
    store.settle()
    assert set(drain_of(store, "n1/gpu0").budgets) == {"region", "rack-rack-0", "zone-unknown", "vendor-nvidia@1m"}
    assert set(drain_of(store, "n1/gpu1").budgets) == {"region", "rack-rack-0", "vendor-nvidia@1m"}


def test_a_budget_that_policy_adds_counts_cordons_from_its_first_drain_on() -> None:
    """Protects: the first decisions under another policy do not spend the places of what humans had cordoned before."""
    store = fleet(BudgetPolicy("region", 1.0, 1))
    for device in ("n1/gpu0", "n1/gpu1"):
        assert store.apply(cordon(store.state(), store.settings, device, "ada", "look", store.now))
    store.settings = quick(budgets=(BudgetPolicy("region", 1.0, 1), BudgetPolicy("zone", 0.0, 2)), breakers=())
    request(store, "n2/gpu0")
    store.settle()
    refused = drain_of(store, "n2/gpu0")
    assert refused.state is DrainState.REFUSED and len(refused.budgets) == 1
    assert "2 of 2 out (n1/gpu0, n1/gpu1)" in refused.reason
    (zone,) = (b for b in store.records("budgets") if b.name == refused.budgets[0])
    assert [h.device for h in zone.holds] == ["n1/gpu0", "n1/gpu1"]


def test_a_device_that_moves_to_another_rack_takes_its_cordon_along() -> None:
    """Protects: the denominator and what is counted against it change together."""
    store = RegionStore(quick(budgets=(BudgetPolicy("rack", 0.0, 1),), breakers=()))
    store.fleet(nodes=2, gpus=4, racks=2)
    store.settle()
    assert store.apply(cordon(store.state(), store.settings, "n1/gpu0", "ada", "look", store.now))
    moved = store.items[store.keys.device(DeviceId("n1/gpu0"))].record
    store.write((store.keys.device(DeviceId("n1/gpu0")), replace(moved, rack="rack-1")))
    request(store, "n2/gpu0")
    store.settle()
    assert drain_of(store, "n2/gpu0").state is DrainState.REFUSED


def test_a_cordon_that_no_record_says_is_still_given_back_at_its_end() -> None:
    """Protects: what is counted without its record is released with it, and once."""
    store = fleet(BudgetPolicy("region", 0.0, 1))
    assert store.apply(cordon(store.state(), store.settings, "n1/gpu0", "ada", "look", store.now))
    store.write((store.keys.budget("region"), None))
    decision = uncordon(store.state(), store.settings, "n1/gpu0", "ada", "fine", store.now)
    assert decision is not None and store.apply(decision)
    request(store, "n2/gpu0")
    store.settle()
    assert drain_of(store, "n2/gpu0").state is DrainState.DRAINED
    (region,) = store.records("budgets")
    assert [h.device for h in region.holds] == ["n2/gpu0"]


def test_a_drain_that_waits_long_keeps_its_first_and_its_last_refusal() -> None:
    """Protects: what is full may change each minute for weeks, and the record stays small."""
    store = fleet(BudgetPolicy("region", 0.0, 1))
    for device in ("n1/gpu0", "n1/gpu1"):
        request(store, device)
    store.settle()
    begin = store.ledger
    for number in range(20):
        store.wait(60_000)
        store.settings = quick(budgets=(BudgetPolicy(("vendor", "region")[number % 2], 0.0, 1),), breakers=())
        store.settle()
    waiting = drain_of(store, "n1/gpu1")
    assert waiting.state is DrainState.REFUSED and waiting.budgets == ("region",)
    assert [(s.name, s.at_ms - begin) for s in waiting.stages] == [
        ("planned", 0), ("refused", 0), ("refused", 20 * 60_000)
    ]  # fmt: skip
