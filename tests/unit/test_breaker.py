"""The breaker: opens when the machine wants too many drains at once, forgets nothing, and replays nothing stale."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from controlplane.domain.breaker import FAULT_CLASS, reset, threshold
from controlplane.domain.cordon import uncordon
from controlplane.domain.region import decide_region
from controlplane.rpc import intents
from controlplane.rpc.intents import Wish
from controlplane.rpc.objects import objects_of
from controlplane.rpc.refusal import Refusal
from controlplane.rpc.rows import Scene
from gridkeeper.decision import Decision
from gridkeeper.ids import DeviceId
from gridkeeper.policy.model import BreakerPolicy, BudgetPolicy, DrainPolicy
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import DrainState, FindingRecord, IncidentRecord, IncidentState
from gridkeeper.records.fleet import EventKind, HealthState
from gridkeeper.records.limits import BreakerRecord, BreakerState
from gridkeeper.snapshot import GlobalState
from gridkeeper.v1 import api_pb2
from tests.unit.applier import RegionStore, quick
from tests.unit.test_drains import drains, request

MINUTE = 60_000
POLICY = BreakerPolicy(
    "region", drains=3, fraction=0.0, within_ms=10 * MINUTE, cool_ms=15 * MINUTE, trickle=1, trickle_ms=MINUTE,
    close_ms=30 * MINUTE,
)  # fmt: skip


def fleet(*breakers: BreakerPolicy, nodes: int = 4, racks: int = 1, **policy: Any) -> RegionStore:
    policy = {"budgets": (BudgetPolicy("region", 1.0, 1),)} | policy
    store = RegionStore(quick(breakers=breakers or (POLICY,), **policy))
    store.fleet(nodes=nodes, gpus=8, racks=racks)
    store.settle()
    return store


def fail(store: RegionStore, count: int, first: int = 0) -> None:
    """That many devices in one transaction."""
    store.commit(*(store.event(f"n{n // 8 + 1}/gpu{n % 8}", 48) for n in range(first, first + count)))
    store.settle()


def breaker(store: RegionStore, name: str = "region") -> BreakerRecord:
    record: BreakerRecord = store.items[store.keys.breaker(name)].record
    return record


def states(store: RegionStore) -> list[str]:
    return sorted(d.state.value for d in store.records("drains"))


def incident(store: RegionStore) -> IncidentRecord:
    (found,) = [i for i in store.records("incidents") if i.fault_class == FAULT_CLASS]
    record: IncidentRecord = found
    return record


@pytest.mark.parametrize(("fraction", "total", "most"), [(0.0, 100, 3), (0.3, 100, 30), (0.3, 5, 3), (1.0, 0, 0)])
def test_the_threshold_is_the_larger_and_an_unknown_fleet_has_none(fraction: float, total: int, most: int) -> None:
    """Protects: a fleet of unknown size does not make the breaker fail open."""
    assert threshold(replace(POLICY, fraction=fraction), total) == most


def test_as_many_as_policy_says_are_drained_and_one_more_opens_it() -> None:
    """Protects: it opens at the right count, over several ticks, with an incident that pages."""
    store = fleet()
    fail(store, 3)
    assert states(store) == ["drained"] * 3 and not store.records("breakers")
    store.wait(MINUTE)
    fail(store, 1, first=3)
    assert breaker(store).state is BreakerState.OPEN and breaker(store).trips == 1
    assert "4 machine drains were wanted in region within 10 min, more than 3" in breaker(store).reason
    refused = drains(store)["n1/gpu3"]
    assert refused.state is DrainState.REFUSED and refused.budgets == ("breaker-region",)
    assert store.health("n1/gpu3").state is HealthState.DEGRADED, "nothing new is placed on it"
    assert (incident(store).state, incident(store).severity) == (IncidentState.OPEN, Severity.FATAL)


def test_a_burst_is_stopped_before_any_of_it_is_drained() -> None:
    """Protects: those wanted in the same tick as the opening are held back too."""
    store = fleet()
    fail(store, 12)
    assert states(store) == ["refused"] * 12


def test_what_lies_further_apart_than_the_window_does_not_open_it() -> None:
    """Protects: only what was wanted within the window counts."""
    store = fleet()
    for number in range(8):
        fail(store, 1, first=number)
        store.run(4 * MINUTE, step=MINUTE)
    assert states(store) == ["drained"] * 8 and not store.records("breakers")


def test_deciding_again_and_another_leader_count_nothing_twice() -> None:
    """Protects: counting is idempotent, and survives a change of leader."""
    store = fleet()
    fail(store, 3)
    for _ in range(5):
        store.tick()
    store.mono = 5_000  # another host's boot-time clock
    for _ in range(5):
        store.tick()
    store.run(2 * MINUTE, step=MINUTE)
    assert not store.records("breakers")
    fail(store, 1, first=3)
    assert breaker(store).trips == 1


def test_while_open_humans_repairs_and_clears_go_on() -> None:
    """Protects: healthy events pass an open breaker."""
    store = fleet()
    fail(store, 3)
    fail(store, 2, first=8)
    assert breaker(store).state is BreakerState.OPEN
    request(store, "n4/gpu0")
    store.settle()
    assert drains(store)["n4/gpu0"].state is DrainState.DRAINED
    store.commit(store.event("n1", kind=EventKind.BOOT), store.event("n2", kind=EventKind.BOOT))
    store.settle()
    assert {store.health(f"n1/gpu{i}").state for i in range(3)} == {HealthState.REPAIRING}
    assert {drains(store)[f"n2/gpu{i}"].state for i in range(2)} == {DrainState.CANCELLED}


def level(store: RegionStore, device: str) -> None:
    """A condition that holds until somebody says otherwise."""
    finding = FindingRecord(
        f"{device.replace('/', ':')}:hot:1", store.state().region, DeviceId(device).partition("/")[0], device,  # type: ignore[arg-type]
        "device", "thermal", "hot", Severity.ERROR, Action.DRAIN, f"{device} is hot", ("temperature=99",),  # type: ignore[arg-type]
        store.ledger, "hot", 1, True, "",
    )  # fmt: skip
    store.write((store.keys.finding(finding.id), replace(finding, scope=Scope.DEVICE)))


def test_half_open_lets_a_trickle_of_what_still_holds_through_and_stale_events_expire() -> None:
    """Protects: no stale fault is replayed when it half-opens; level conditions are drained one per minute."""
    store = fleet()
    fail(store, 6)
    for number in range(3):
        level(store, f"n3/gpu{number}")
    store.settle()
    assert states(store) == ["refused"] * 9
    store.run(14 * MINUTE, step=MINUTE)
    assert states(store) == ["refused"] * 9
    store.run(MINUTE, step=MINUTE)
    assert breaker(store).state is BreakerState.HALF_OPEN
    assert states(store) == ["cancelled"] * 6 + ["drained"] + ["refused"] * 2
    assert "events of that time are not acted on afterwards" in drains(store)["n1/gpu0"].reason
    store.run(MINUTE - 1_000, step=MINUTE - 1_000)
    assert states(store).count("drained") == 1, "one per minute"
    store.run(3 * MINUTE, step=MINUTE)
    assert states(store) == ["cancelled"] * 6 + ["drained"] * 3
    assert store.health("n1/gpu0").state is HealthState.DEGRADED, "nothing is placed on what is not trusted"
    store.xid("n1/gpu0", 48)
    store.settle()
    newest = max((d for d in store.records("drains") if d.device == "n1/gpu0"), key=lambda d: d.planned_ms)
    assert newest.state is DrainState.DRAINED, "seen again, it is acted on"


def test_it_closes_after_a_quiet_time_and_opens_again_on_another_burst() -> None:
    """Protects: half-open → closed resolves the incident; half-open → open counts from the half-opening on."""
    store = fleet()
    fail(store, 6)
    store.run(16 * MINUTE, step=MINUTE)
    fail(store, 4, first=8)
    assert (breaker(store).state, breaker(store).trips) == (BreakerState.OPEN, 2)
    assert incident(store).count == 2
    store.run(16 * MINUTE, step=MINUTE)
    assert breaker(store).state is BreakerState.HALF_OPEN
    store.run(30 * MINUTE, step=MINUTE)
    assert breaker(store).state is BreakerState.CLOSED
    assert incident(store).state is IncidentState.RESOLVED
    fail(store, 3, first=16)
    assert breaker(store).state is BreakerState.CLOSED
    assert {drains(store)[f"n3/gpu{i}"].state for i in range(3)} == {DrainState.DRAINED}


def test_what_opened_it_is_not_let_go_all_at_once_when_it_closes() -> None:
    """Protects: a rule that is wrong about many devices, and goes on being so, drains them one by one for as long as
    nobody looks: the quiet that closes a breaker is not the burst standing still before it."""
    store = fleet(replace(POLICY, trickle_ms=10 * MINUTE))
    for number in range(12):
        level(store, f"n{number // 8 + 1}/gpu{number % 8}")
    store.settle()
    assert states(store) == ["refused"] * 12
    drained: list[int] = []
    for _ in range(15 * 11):
        store.run(MINUTE, step=MINUTE)
        drained.append(states(store).count("drained"))
        if states(store).count("refused") > 3:
            assert breaker(store).state is not BreakerState.CLOSED
    assert max(b - a for a, b in itertools.pairwise(drained)) <= 4, (
        "at once: at most as many as may be wanted, and a trickle"
    )
    assert drained[60] == 5, "one per trickle, also after ``close_ms``"
    assert breaker(store).state is BreakerState.CLOSED and drained[-1] == 12, "what is no burst any more closes it"


def test_a_human_closes_it_and_counting_starts_anew() -> None:
    """Protects: a reset is durable, resolves the incident, and the burst before it does not open it at once again."""
    store = fleet()
    fail(store, 6)
    decision = reset(store.state(), "region", "ada", "bad sensor firmware", store.now)
    assert decision is not None and store.apply(decision)
    store.wait(1)
    store.settle()
    assert breaker(store).state is BreakerState.CLOSED and "closed by ada: bad sensor firmware" in breaker(store).reason
    assert reset(store.state(), "region", "ada", "again", store.now) is None
    assert states(store) == ["cancelled"] * 6
    fail(store, 2, first=8)
    assert states(store) == ["cancelled"] * 6 + ["drained"] * 2


def test_each_rack_has_a_breaker_of_its_own() -> None:
    """Protects: a storm in one rack does not stop draining in another."""
    store = fleet(replace(POLICY, kind="rack"), nodes=4, racks=2)
    fail(store, 6)
    fail(store, 2, first=8)
    assert breaker(store, "rack-rack-0").state is BreakerState.OPEN
    assert {drains(store)[f"n2/gpu{i}"].state for i in range(2)} == {DrainState.DRAINED}


def test_a_breaker_that_cannot_be_read_means_no() -> None:
    """Protects: corruption fails closed."""
    store = fleet()
    store.corrupt(store.keys.breaker("region"))
    fail(store, 1)
    assert states(store) == ["refused"] and "does not decode" in store.records("drains")[0].reason


def test_an_admission_decided_before_it_opened_does_not_commit() -> None:
    """Protects: no drain on a stale view of the breaker."""
    store = fleet()
    store.xid("n1/gpu0", 48)
    before = store.copy()
    plan: list[Decision] = []
    while not plan:
        decided = decide_region(before.state(), GlobalState(), before.settings, before.now)
        plan = [d for d in decided if d.step == "drain.plan"]
        for decision in decided:
            assert decision in plan or before.apply(decision)
    record = BreakerRecord("region", BreakerState.OPEN, before.ledger, "by another", (), (), 1)
    before.write((before.keys.breaker("region"), record))
    assert not before.apply(plan[0])


def test_the_trickle_is_durable() -> None:
    """Protects: a new leader does not begin the trickle anew."""
    store = fleet()
    for number in range(4):
        level(store, f"n3/gpu{number}")
    store.settle()
    store.run(15 * MINUTE, step=MINUTE)
    assert states(store).count("drained") == 1 and len(breaker(store).passed_ms) == 1
    store.mono = 77
    store.settle()
    assert states(store).count("drained") == 1


def test_evidence_older_than_policy_allows_is_not_acted_on_and_its_refused_drain_is_given_up() -> None:
    """Protects: a drain that waited for room too long needs newer evidence; each sighting renews it."""
    policy = {"budgets": (BudgetPolicy("region", 0.0, 1),), "drain": DrainPolicy(evidence_ms=60 * MINUTE)}
    store = fleet(**policy)
    fail(store, 2)
    assert states(store) == ["drained", "refused"]
    store.run(40 * MINUTE, step=10 * MINUTE)
    store.xid("n1/gpu1", 48)
    store.run(40 * MINUTE, step=10 * MINUTE)
    assert drains(store)["n1/gpu1"].state is DrainState.REFUSED, "it was seen again meanwhile"
    store.run(30 * MINUTE, step=10 * MINUTE)
    assert drains(store)["n1/gpu1"].state is DrainState.CANCELLED
    assert "is older than 60 min and was not seen again" in drains(store)["n1/gpu1"].reason


# -- one device that keeps failing ------------------------------------------------------------------------------------


def relapse(store: RegionStore, device: str) -> None:
    store.xid(device, 48)
    store.settle()
    store.commit(store.event(device.partition("/")[0], kind=EventKind.BOOT))
    store.run(2 * MINUTE, step=10_000)


def test_a_device_that_keeps_failing_waits_for_a_human() -> None:
    """Protects: no oscillation faster than ``flaps`` per ``flap_ms``; only a human brings it back."""
    store = fleet(drain=DrainPolicy(flaps=3, flap_ms=60 * MINUTE))
    for _ in range(2):
        relapse(store, "n1/gpu0")
        assert store.health("n1/gpu0").state is HealthState.HEALTHY
    relapse(store, "n1/gpu0")
    assert store.health("n1/gpu0").state is HealthState.DRAINED
    assert "drained 3 times within 60 min" in store.health("n1/gpu0").reason
    store.run(120 * MINUTE, step=10 * MINUTE)
    assert store.health("n1/gpu0").state is HealthState.DRAINED
    decision = uncordon(store.state(), store.settings, "n1/gpu0", "ada", "reseated", store.now)
    assert decision is not None and store.apply(decision)
    store.run(2 * MINUTE, step=10_000)
    assert store.health("n1/gpu0").state is HealthState.HEALTHY


def test_drains_further_apart_than_the_damping_remembers_and_those_of_another_card_do_not_count() -> None:
    """Protects: damping forgets after ``flap_ms``, and with the card."""
    store = fleet(drain=DrainPolicy(flaps=2, flap_ms=60 * MINUTE))
    for _ in range(3):
        relapse(store, "n1/gpu0")
        assert store.health("n1/gpu0").state is HealthState.HEALTHY
        store.run(60 * MINUTE, step=10 * MINUTE)
    relapse(store, "n1/gpu0")
    store.write((store.keys.device(DeviceId("n1/gpu0")), store.device(DeviceId("n1/gpu0"), uuid="GPU-new")))
    store.run(2 * MINUTE, step=10_000)
    relapse(store, "n1/gpu0")
    assert store.health("n1/gpu0").state is HealthState.HEALTHY


# -- people -----------------------------------------------------------------------------------------------------------


def test_an_operator_resets_it_by_its_regions_name() -> None:
    """Protects: the API closes exactly the named breaker, once, and refuses names that are none."""
    store = fleet()
    fail(store, 6)
    wish = Wish("user/ada", "bad firmware", "")
    with pytest.raises(Refusal, match="west/region"):
        intents.reset_breaker("west/region", wish, store.state(), store.now)
    plan = intents.reset_breaker("east/region", wish, store.state(), store.now)
    assert plan.decision is not None and store.apply(plan.decision)
    assert breaker(store).state is BreakerState.CLOSED
    assert intents.reset_breaker("east/region", wish, store.state(), store.now).decision is None


def test_it_is_shown_by_its_regions_name() -> None:
    """Protects: breakers of two regions do not share a name."""
    store = fleet()
    fail(store, 6)
    shown = objects_of(api_pb2.KIND_BREAKER, Scene(store.state(), GlobalState(), ""))
    assert {name: (o.labels["state"], o.breaker.trips) for name, o in shown.items()} == {"east/region": ("open", 1)}
