"""Drains and budgets: never too much out at once, drained only when every job is certainly gone, humans included."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controlplane.domain.budget import limit_of
from controlplane.domain.cordon import cordon, uncordon
from controlplane.domain.drain import decide_drains
from controlplane.domain.drain_progress import cancellation
from controlplane.domain.region import decide_region
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, DrainId, Epoch, JobId, MigrationId, NodeId, RegionId, Revision
from gridkeeper.policy.model import BudgetPolicy
from gridkeeper.records.common import Desired
from gridkeeper.records.faults import DrainRecord, DrainRequestRecord, DrainState, HoldKind
from gridkeeper.records.fleet import EventKind, HealthState
from gridkeeper.records.jobs import JobSpec, OwnershipRecord, ReservationRecord, RunPhase, RunRecord
from gridkeeper.snapshot import GlobalState, Settings
from gridkeeper.timings import Timings
from tests.unit.applier import EAST, RegionStore, quick

G = "n1/gpu3"
JOB = JobId("train")
SPEC = JobSpec(JOB, "default", ("true",), (), "", 1, "", (), False, False, 1_000, 3)


def world(
    device: str = G, epoch: int = 1, stopped: bool = False, region: RegionId = EAST, fresh: bool = True
) -> GlobalState:
    """The job owns ``device`` at ``epoch``; its run is alive or confirmed stopped."""
    number = Epoch(1, epoch)
    node = NodeId(device.partition("/")[0])
    owner = OwnershipRecord(
        JOB, number, region, node, (DeviceId(device),), Desired.RUN, 0, None, -1, "", MigrationId(f"m{epoch}"), SPEC, ""
    )  # fmt: skip
    phase = RunPhase.EXITED if stopped else RunPhase.RUNNING
    run = RunRecord(JOB, number, region, node, phase, 0, 0, stopped, stopped, -1, 0, 9, 1, 2, 1, 0, 0.5, "")
    return GlobalState(
        Revision(9), ownership={JOB: _v(owner)}, runs={f"{JOB}/{1:06d}.{epoch:010d}": _v(run)}
    )  # fmt: skip


def _v(record: object) -> Versioned:  # type: ignore[type-arg]
    return Versioned(record, Revision(1), Revision(1), 0)


def fleet(settings: Settings | None = None, **shape: int) -> RegionStore:
    store = RegionStore(settings or quick())
    store.fleet(**(shape or {"nodes": 2, "gpus": 8}))
    store.settle()
    return store


def drains(store: RegionStore) -> dict[str, DrainRecord]:
    return {drain.device: drain for drain in store.records("drains")}


def request(store: RegionStore, device: str, by: str = "ada") -> None:
    record = DrainRequestRecord(DeviceId(device), by, "new firmware", store.ledger, "")
    store.write((store.keys.drain_request(DeviceId(device)), record))


# -- budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "minimum", "total", "limit"),
    [(0.25, 1, 16, 4), (0.29, 1, 100, 29), (0.1, 1, 5, 1), (0.5, 1, 0, 0), (0.0, 0, 10, 0), (0.25, 3, 4, 3)],
)
def test_the_limit_is_exact_and_an_unknown_fleet_means_no(
    fraction: float, minimum: int, total: int, limit: int
) -> None:
    assert limit_of(BudgetPolicy("region", fraction, minimum), total) == limit


def test_a_refused_drain_names_the_budget_and_its_holders_and_is_admitted_when_room_comes() -> None:
    store = fleet()
    for slot in range(5):
        store.xid(f"n1/gpu{slot}", 48)
        store.settle()
    refused = drains(store)["n1/gpu4"]
    assert refused.state is DrainState.REFUSED and set(refused.budgets) == {"region", "vendor-nvidia"}
    assert "budget region is full: 4 of 4 out (n1/gpu0, n1/gpu1, n1/gpu2, n1/gpu3)" in refused.reason
    assert store.health("n1/gpu4").state is HealthState.DEGRADED, "nothing new is placed on it"
    decision = uncordon(store.state(), store.settings, "n1/gpu0", "ada", "card reseated", store.now)
    assert decision is not None and store.apply(decision)
    store.run(59_000)
    assert drains(store)["n1/gpu4"].state is DrainState.REFUSED, "on probation it still counts"
    store.run(5_000)
    admitted = drains(store)["n1/gpu4"]
    assert admitted.id == refused.id and admitted.state is DrainState.DRAINED
    assert [s.name for s in admitted.stages] == ["planned", "refused", "admitted", "drained"]


def test_a_refused_drain_whose_evidence_clears_is_cancelled() -> None:
    store = fleet()
    for slot in range(5):
        store.xid(f"n1/gpu{slot}", 48)
        store.settle()
    store.commit(store.event("n1", kind=EventKind.BOOT))
    store.settle()
    assert drains(store)["n1/gpu4"].state is DrainState.CANCELLED
    store.run(12_000)
    assert store.health("n1/gpu4").state is HealthState.HEALTHY


def test_many_faults_at_once_take_few_ticks_and_only_what_the_budget_allows() -> None:
    store = fleet(quick(budgets=(BudgetPolicy("region", 0.25, 1),)), nodes=20, gpus=8)
    for number in range(1, 13):
        store.commit(*(store.event(f"n{number}/gpu{slot}", 48) for slot in range(8)))
    ticks = store.settle()
    assert len(store.out()) == 40 and ticks < 20
    assert sum(d.state is DrainState.REFUSED for d in store.records("drains")) == 96 - 40


def test_racks_and_vendors_have_their_own_budgets_and_hosts_are_no_accelerators() -> None:
    store = RegionStore(quick(budgets=(BudgetPolicy("region", 0.5, 1), BudgetPolicy("rack", 0.25, 1))))
    store.fleet(nodes=2, gpus=4, racks=2)
    store.node("n9", gpus=1, vendor="host")
    store.settle()
    totals = {b.name: (b.limit, b.total) for b in store.records("budgets")}
    assert totals == {"region": (4, 8), "rack-rack-0": (1, 4), "rack-rack-1": (1, 4)}
    for device in ("n1/gpu0", "n1/gpu1", "n2/gpu0"):
        store.xid(device, 48)
        store.settle()
    assert store.out() == {"n1/gpu0", "n2/gpu0"}
    assert drains(store)["n1/gpu1"].budgets == ("rack-rack-0",)


def test_a_budget_that_cannot_be_read_means_no() -> None:
    store = fleet()
    store.corrupt(store.keys.budget("region"))
    store.xid(G, 48)
    store.settle()
    assert drains(store)[G].state is DrainState.REFUSED and "does not decode" in drains(store)[G].reason


def test_two_planners_on_one_budget_never_both_take_the_last_place() -> None:
    store = fleet(quick(budgets=(BudgetPolicy("region", 0.1, 1),)))
    for device in (G, "n2/gpu1"):
        store.xid(device, 94)  # degraded, not drained
    store.settle()
    for device in (G, "n2/gpu1"):
        request(store, device)
    both = store.state()
    one = replace(both, drain_requests={k: v for k, v in both.drain_requests.items() if k == G})
    two = replace(both, drain_requests={k: v for k, v in both.drain_requests.items() if k != G})
    plans = [decide_region(s, GlobalState(), store.settings, store.now) for s in (one, two)]
    assert [store.apply(d) for plan in plans for d in plan if d.step == "drain.plan"] == [True, False]
    store.settle()
    assert len(store.out()) == 1


def used(store: RegionStore, *kinds: HoldKind) -> set[str]:
    """Devices held in the region's budget (by holds of these kinds, if any are named)."""
    region = next(b for b in store.records("budgets") if b.name == "region")
    return {h.device for h in region.holds if not kinds or h.kind in kinds}


def test_cordoning_is_no_way_around_the_budget() -> None:
    store = fleet()
    assert store.apply(cordon(store.state(), store.settings, "n1", "ada", "move out", store.now))
    for slot in range(8):
        request(store, f"n1/gpu{slot}")
    store.settle()
    assert len(store.out()) == 4 and len(used(store, HoldKind.DRAIN)) == 4 and len(used(store)) == 8


faults = st.lists(
    st.tuples(
        st.integers(0, 15),
        st.sampled_from(["xid", "request", "cordon", "uncordon", "cancel", "boot", "silent", "wait", "race"]),
        st.integers(0, 3),
    ),
    max_size=30,
)


@hypothesis_settings(max_examples=100, deadline=None)
@given(faults)
def test_no_history_takes_more_out_than_the_budgets_allow_or_leaks_a_place(history: list[tuple[int, str, int]]) -> None:
    """Machine drains, humans and lost races in any order: a drain is admitted only where a place was free."""
    store = fleet(quick(budgets=(BudgetPolicy("region", 0.25, 1), BudgetPolicy("rack", 0.5, 1))), nodes=2, gpus=8)
    for number, act, extra in history:
        device = f"n{number // 8 + 1}/gpu{number % 8}"
        before = store.out()
        if act == "xid":
            store.xid(device, (48, 94, 63, 79)[extra])
        elif act == "request":
            request(store, device)
        elif act == "cordon":
            assert store.apply(cordon(store.state(), store.settings, device, "ada", "look", store.now, extra * 5_000))
        elif act == "uncordon":
            decision = uncordon(store.state(), store.settings, device, "ada", "done", store.now)
            assert decision is None or store.apply(decision)
        elif act == "cancel":
            for drain in [v for v in store.state().drains.values() if v.record.state is DrainState.REFUSED]:
                assert store.apply(cancellation(store.state(), store.settings, drain, "ada", "no", store.now))
        elif act == "boot":
            store.commit(store.event(f"n{number // 8 + 1}", kind=EventKind.BOOT))
        elif act == "silent":
            store.session(f"n{number // 8 + 1}", extra % 2 == 0)
        elif act == "wait":
            store.run(extra * 20_000, step=10_000)
        else:
            stale = decide_region(store.state(), GlobalState(), store.settings, store.now)
            store.settle()
            for decision in stale:
                store.apply(decision)
        store.settle()
        new = store.out() - before - used(store, HoldKind.CORDON)
        assert not new or len(used(store)) <= 4, "a place that was not free was taken"
        assert len(used(store, HoldKind.DRAIN)) <= 4, "drains alone exceed the budget"
        assert store.out() <= used(store, HoldKind.DRAIN), "whoever is out is counted"
    cordoned = {c.target for c in store.records("cordons")}
    for budget in store.records("budgets"):
        for hold in budget.holds:
            if hold.kind is HoldKind.CORDON:
                assert hold.device in cordoned, "a place leaked"
            else:
                assert hold.device in store.out(), "a place leaked"


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_a_device_is_drained_only_when_its_job_is_confirmed_gone() -> None:
    store = fleet()
    store.xid(G, 95)
    store.settle(world())
    drain = drains(store)[G]
    assert (drain.state, drain.jobs) == (DrainState.EVACUATING, (JOB,))
    assert store.health(G).state is HealthState.DRAINING
    store.wait(5_000)
    store.settle(replace(world(stopped=True), fresh=False))
    assert drains(store)[G].state is DrainState.EVACUATING, "the global store is away: nobody knows"
    store.settle(world(stopped=True))
    assert drains(store)[G].state is DrainState.DRAINED and "confirmed stopped" in store.health(G).reason


@pytest.mark.parametrize("elsewhere", [world("w1/gpu0", 2, region=RegionId("west")), world("n2/gpu0", 2)])
def test_a_job_whose_ownership_moved_on_is_gone(elsewhere: GlobalState) -> None:
    store = fleet()
    store.xid(G, 95)
    store.settle(world())
    store.settle(elsewhere)
    assert drains(store)[G].state is DrainState.DRAINED


def test_a_reservation_that_is_not_owned_yet_holds_the_drain_up() -> None:
    store = fleet()
    held = ReservationRecord(JOB, MigrationId("m2"), NodeId("n1"), (DeviceId(G),), store.ledger)
    store.write((store.keys.reservation(JOB), held))
    store.xid(G, 95)
    store.settle(world("n2/gpu0"))
    assert drains(store)[G].state is DrainState.EVACUATING
    store.write((store.keys.reservation(JOB), None))
    store.settle(world("n2/gpu0"))
    assert drains(store)[G].state is DrainState.DRAINED


def test_an_ownership_that_cannot_be_read_holds_the_drain_up() -> None:
    store = fleet()
    store.xid(G, 95)
    store.settle(GlobalState(suspect_keys=frozenset({"/gridkeeper/v1/global/ownership/other"})))
    assert drains(store)[G].state is DrainState.ADMITTED


def test_past_the_deadline_is_expired_not_drained_and_still_counts() -> None:
    store = fleet(Settings(Timings(drain_deadline_ms=60_000), quick().policy))
    store.xid(G, 95)
    store.settle(world())
    store.run(61_000, world())
    drain = drains(store)[G]
    assert drain.state is DrainState.EXPIRED and store.health(G).state is HealthState.DRAINING
    assert {h.device for b in store.records("budgets") for h in b.holds} == {G}
    store.settle(world(stopped=True))
    assert [s.name for s in drains(store)[G].stages][-2:] == ["expired", "drained"]


# -- humans -----------------------------------------------------------------------------------------------------------


def test_a_human_drain_takes_the_same_path_and_waits_for_a_human_to_return_it() -> None:
    store = fleet()
    request(store, G)
    store.settle()
    drain = drains(store)[G]
    assert (drain.state, drain.requested_by, drain.rule) == (DrainState.DRAINED, "ada", "by-hand")
    assert "asked for by ada" in drain.reason and "new firmware" in drain.reason
    assert not store.records("drain-requests")
    store.run(300_000, step=30_000)
    assert store.health(G).state is HealthState.DRAINED
    decision = uncordon(store.state(), store.settings, "n1", "ada", "done", store.now)
    assert decision is not None and store.apply(decision)
    store.run(62_000)
    assert store.health(G).state is HealthState.HEALTHY
    assert not [h for b in store.records("budgets") for h in b.holds]


def test_a_human_drain_without_room_is_refused_and_remembered() -> None:
    store = fleet(quick(budgets=(BudgetPolicy("region", 0.05, 1),)))
    request(store, "n1/gpu0")
    store.settle()
    request(store, G)
    store.settle()
    assert drains(store)[G].state is DrainState.REFUSED and drains(store)[G].requested_by == "ada"
    decision = uncordon(store.state(), store.settings, "n1/gpu0", "ada", "done", store.now)
    assert decision is not None and store.apply(decision)
    store.run(65_000)
    assert drains(store)[G].state is DrainState.DRAINED and "new firmware" in drains(store)[G].reason


def test_a_cancelled_drain_returns_its_places_and_is_not_repeated_on_the_same_evidence() -> None:
    store = fleet()
    store.xid(G, 95)
    store.settle(world())
    drain = store.state().drains[drains(store)[G].id]
    assert store.apply(cancellation(store.state(), store.settings, drain, "ada", "let it finish", store.now))
    assert not [h for b in store.records("budgets") for h in b.holds]
    assert store.health(G).state is HealthState.DEGRADED and store.health(G).drain == ""
    store.run(30_000, world())
    assert [d.state for d in store.records("drains")] == [DrainState.CANCELLED]
    store.xid(G, 95)
    store.settle(world())
    assert [d.state for d in store.records("drains")] == [DrainState.CANCELLED, DrainState.EVACUATING]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (HealthState.HEALTHY, HealthState.HEALTHY),
        (HealthState.PROBATION, HealthState.PROBATION),
        (HealthState.UNKNOWN, HealthState.PROBATION),
    ],
)
def test_a_cancelled_drain_makes_no_device_healthy_that_was_not(before: HealthState, after: HealthState) -> None:
    """Protects: who asks for a device and takes that back has not tested it, and has not seen it either."""
    store = fleet()
    store.settle()
    store.write((store.keys.health(DeviceId(G)), replace(store.health(G), state=before, since_ms=store.ledger)))
    request(store, G)
    (admitted, *_) = decide_drains(store.state(), world(), store.settings, store.now)
    assert store.apply(admitted) and store.health(G).state is HealthState.DRAINING
    drain = store.state().drains[drains(store)[G].id]
    assert store.apply(cancellation(store.state(), store.settings, drain, "ada", "let it be", store.now))
    assert store.health(G).state is after


def test_a_drain_record_that_only_says_cancelled_is_put_right_by_the_leader() -> None:
    store = fleet()
    store.xid(G, 95)
    store.settle(world())
    drain = drains(store)[G]
    store.write((store.keys.drain(drain.id), replace(drain, state=DrainState.CANCELLED)))
    store.settle(world())
    assert store.health(G).state is HealthState.DEGRADED
    assert not [h for b in store.records("budgets") for h in b.holds]


def test_what_is_drained_cannot_be_cancelled() -> None:
    store = fleet()
    store.xid(G, 95)
    store.settle()
    drain = store.state().drains[DrainId(drains(store)[G].id)]
    with pytest.raises(ValueError, match=f"uncordon {G}"):
        cancellation(store.state(), store.settings, drain, "ada", "no", store.now)
