"""From an event to a drained device: the whole pure path of one fault, on a store that compares revisions."""

from __future__ import annotations

import pytest

from controlplane.domain.region import STAGES, decide_region
from gridkeeper.catalogue.codes import HostCode
from gridkeeper.decision import Now
from gridkeeper.keys import REGION_KINDS
from gridkeeper.records.common import Severity
from gridkeeper.records.faults import DrainState, IncidentState
from gridkeeper.records.fleet import EventKind, HealthState, NodeState
from gridkeeper.snapshot import GlobalState
from tests.unit.applier import RegionStore, quick

G = "n1/gpu3"


@pytest.fixture
def store() -> RegionStore:
    """Two nodes of eight, settled: all alive and healthy."""
    made = RegionStore(quick())
    made.fleet(nodes=2, gpus=8)
    made.settle()
    return made


def states(store: RegionStore) -> set[str]:
    return {h.state.value for h in store.records("health")}


def test_a_new_fleet_is_alive_healthy_and_budgeted(store: RegionStore) -> None:
    assert len(store.records("health")) == 16 and states(store) == {"healthy"}
    assert {n.state for n in store.records("liveness")} == {NodeState.ALIVE}
    assert {b.name: (b.limit, b.total) for b in store.records("budgets")} == {
        "region": (4, 16),
        "rack-rack-0": (8, 16),
        "vendor-nvidia": (4, 16),
    }
    assert not store.records("drains")


def test_a_double_bit_error_drains_its_device_and_no_other(store: RegionStore) -> None:
    event = store.xid(G, 48)
    assert store.settle() <= 5
    drain = store.records("drains")[0]
    assert (drain.device, drain.state) == (G, DrainState.DRAINED)
    assert [s.name for s in drain.stages] == ["planned", "admitted", "drained"]
    assert event.id in drain.evidence and drain.evidence_age_ms == 400 and drain.decided_revision > 0
    for word in ("XID 48", G, "0.4 s old", event.id, "nvidia-xid v2", "region 1/4", "rack-rack-0 1/8"):
        assert word in drain.reason
    assert [h.device for h in store.records("health") if h.state is not HealthState.HEALTHY] == [G]
    incident = store.records("incidents")[0]
    assert (incident.subject, incident.drain, incident.severity) == (G, drain.id, Severity.FATAL)
    finding = store.records("findings")[0]
    assert {event.trace} == {finding.trace, incident.trace, drain.trace, store.health(G).trace}


def test_the_drain_compares_the_health_record_and_the_finding_it_was_decided_on(store: RegionStore) -> None:
    store.xid(G, 48)
    for _ in range(2):
        store.tick()
    planned = next(
        d for d in decide_region(store.state(), GlobalState(), store.settings, store.now) if "drain" in d.step
    )
    compared = {c.key: c.expected for c in (*planned.guards, *planned.writes)}
    finding = store.records("findings")[0]
    for key in (store.keys.health(finding.device), store.keys.finding(finding.id), store.keys.budget("region")):
        assert compared[key] == store.revision_of(key) != 0
    store.write((store.keys.health(finding.device), store.health(G)))
    assert not store.apply(planned), "the device's health has changed since"


def test_a_chain_of_memory_errors_is_one_incident(store: RegionStore) -> None:
    for code in (48, 94, 45, 63):
        store.xid(G, code)
        store.settle()
        store.wait(300)
    incidents = store.records("incidents")
    assert [(i.fault_class, i.state, i.count) for i in incidents] == [("memory", IncidentState.OPEN, 4)]
    assert len(store.records("drains")) == 1
    follower = next(f for f in store.records("findings") if f.code == "xid-45")
    assert "follows XID 48" in follower.sentence and follower.severity is Severity.INFO


def test_a_lone_45_is_watched_and_drains_nothing(store: RegionStore) -> None:
    store.xid(G, 45)
    store.settle()
    assert states(store) == {"healthy"}
    assert [i.severity for i in store.records("incidents")] == [Severity.WARNING]
    assert not store.records("drains")


@pytest.mark.parametrize(("code", "state"), [(13, "healthy"), (31, "healthy"), (63, "suspect"), (94, "degraded")])
def test_what_is_no_reason_to_drain(store: RegionStore, code: int, state: str) -> None:
    store.xid(G, code)
    store.settle()
    assert store.health(G).state.value == state
    assert not store.records("drains")
    store.run(200_000, step=10_000)
    assert store.health(G).state is HealthState.HEALTHY, "quiet brings it back"
    assert [i.state for i in store.records("incidents")] == [IncidentState.RESOLVED]
    assert not [f for f in store.records("findings") if f.active]


def test_repeats_join_one_finding_and_count_in_one_incident(store: RegionStore) -> None:
    for _ in range(30):
        store.xid(G, 95, count=1_000)
        store.settle()
        store.wait(3_000)
    assert len(store.records("findings")) == 1
    assert len(store.records("findings")[0].evidence) <= 16
    assert [(i.count >= 29_000) for i in store.records("incidents")] == [True]
    assert len(store.records("drains")) == 1


def test_events_of_one_transaction_are_digested_together_and_once(store: RegionStore) -> None:
    store.commit(*(store.event(f"n1/gpu{i % 8}", 13 + i // 8 % 3 * 18) for i in range(64)))
    store.settle()
    before = store.records("findings")
    assert len(before) == 24
    store.write((store.keys.detector, None))  # the detector's mark is lost: everything is looked at again
    store.settle()
    assert [f.id for f in store.records("findings")] == [f.id for f in before]


def test_a_lost_gpu_is_evidence_and_a_missing_one_is_not(store: RegionStore) -> None:
    store.commit(store.event("n1/gpu0", kind=EventKind.DEVICE_MISSING, message="GPU is lost (NVML)"))
    store.commit(store.event("n1/gpu1", kind=EventKind.DEVICE_MISSING, message="gpu1 is no longer in the inventory"))
    store.settle()
    assert store.health("n1/gpu0").state is HealthState.DRAINED
    assert store.health("n1/gpu1").state is HealthState.UNKNOWN
    assert [d.device for d in store.records("drains")] == ["n1/gpu0"]
    store.commit(store.event("n1/gpu1", kind=EventKind.DEVICE_FOUND))
    store.settle()
    assert store.health("n1/gpu1").state is HealthState.HEALTHY


def test_positive_evidence_outweighs_missing_telemetry_but_not_a_silent_node(store: RegionStore) -> None:
    for device in ("n1/gpu1", "n2/gpu1"):
        store.commit(store.event(device, kind=EventKind.DEVICE_MISSING, message="does not answer any more"))
    store.settle()
    store.session("n2", False)
    store.run(12_000)
    for device in ("n1/gpu1", "n2/gpu1"):
        assert store.health(device).state is HealthState.UNKNOWN
        store.xid(device, 79)
    store.settle()
    assert store.health("n1/gpu1").state is HealthState.DRAINED
    assert store.health("n2/gpu1").state is HealthState.UNKNOWN
    store.session("n2", True)
    store.settle()
    assert store.health("n2/gpu1").state is HealthState.DRAINED, "the evidence was kept"


@pytest.mark.parametrize("kind", [EventKind.OVERFLOW, EventKind.DRIVER_HANG])
def test_a_blinded_node_makes_its_devices_unknown_until_it_is_quiet(store: RegionStore, kind: EventKind) -> None:
    store.commit(store.event("n1", kind=kind))
    store.settle()
    assert {h.state.value for h in store.records("health") if h.node == "n1"} == {"unknown"}
    assert {h.state.value for h in store.records("health") if h.node == "n2"} == {"healthy"}
    store.run(12_000)
    assert states(store) == {"healthy"}
    assert not store.records("drains")


def test_a_record_that_does_not_decode_makes_unknown_not_healthy(store: RegionStore) -> None:
    event = store.event(G, 48)
    store.corrupt(store.keys.event(event.id))
    store.settle()
    assert {h.state.value for h in store.records("health") if h.node == "n1"} == {"unknown"}
    store.write((store.keys.event(event.id), event))
    store.settle()
    assert store.health(G).state is HealthState.DRAINED, "now it can be read, and says why"


def test_a_finding_that_does_not_decode_makes_its_device_unknown(store: RegionStore) -> None:
    store.xid(G, 63)
    store.settle()
    store.corrupt(store.keys.finding(store.records("findings")[0].id))
    store.settle()
    assert [h.device for h in store.records("health") if h.state is HealthState.UNKNOWN] == [G]


def test_old_evidence_is_shown_but_drains_nothing(store: RegionStore) -> None:
    store.xid(G, 48, age_ms=25 * 3_600_000)
    store.settle()
    assert store.health(G).state is HealthState.DEGRADED
    assert not store.records("drains")


def test_a_boot_ends_what_a_reset_cures_and_the_device_comes_back_through_probation(store: RegionStore) -> None:
    store.xid(G, 48)
    store.xid("n1/gpu4", 64)
    store.settle()
    assert store.health(G).state is store.health("n1/gpu4").state is HealthState.DRAINED
    store.wait(60_000)
    store.commit(store.event("n1", kind=EventKind.BOOT))
    store.settle()
    assert store.health(G).state is HealthState.REPAIRING
    store.run(12_000)
    assert store.health(G).state is HealthState.PROBATION
    assert [i.state for i in store.records("incidents") if i.subject == G] == [IncidentState.OPEN]
    assert {h.device for b in store.records("budgets") for h in b.holds} == {G, "n1/gpu4"}, "it counts until it is back"
    store.run(62_000)
    assert store.health(G).state is HealthState.HEALTHY
    assert store.health("n1/gpu4").state is HealthState.DRAINED, "a failed remap survives a boot"
    assert {h.device for b in store.records("budgets") for h in b.holds} == {"n1/gpu4"}
    passed = next(d for d in reversed(store.applied) if "passed its probation" in d.sentence)
    assert store.keys.budget("region") in {w.key for w in passed.writes}, "one transaction gives its place back"
    assert [i.state for i in store.records("incidents") if i.subject == G] == [IncidentState.RESOLVED]


def test_a_fault_in_probation_is_a_new_drain(store: RegionStore) -> None:
    store.xid(G, 48)
    store.settle()
    store.commit(store.event("n1", kind=EventKind.BOOT))
    store.settle()
    store.run(15_000)
    assert store.health(G).state is HealthState.PROBATION
    store.xid(G, 95)
    store.settle()
    assert [d.state for d in store.records("drains")] == [DrainState.DRAINED] * 2
    assert store.health(G).state is HealthState.DRAINED and store.health(G).flaps == 1


def test_another_card_starts_in_probation_without_the_old_ones_findings(store: RegionStore) -> None:
    store.xid(G, 64)
    store.settle()
    assert store.health(G).state is HealthState.DRAINED
    store.write(
        (store.keys.device(store.records("drains")[0].device), store.device(store.health(G).device, uuid="GPU-new"))
    )
    store.settle()
    assert (store.health(G).state, store.health(G).uuid) == (HealthState.PROBATION, "GPU-new")
    assert not [f for f in store.records("findings") if f.active]
    store.run(62_000)
    assert store.health(G).state is HealthState.HEALTHY
    assert not [h for b in store.records("budgets") for h in b.holds]


def test_flapping_makes_the_way_back_longer(store: RegionStore) -> None:
    waits = []
    for _ in range(3):
        store.xid(G, 63)
        store.settle()
        start = store.mono
        store.run(60_000)  # until its finding has run out
        while store.health(G).state is not HealthState.HEALTHY:
            store.run(1_000)
        waits.append(store.mono - start)
    assert waits[0] < waits[1] < waits[2]


def test_deciding_twice_on_one_state_gives_the_same_and_a_replay_the_same_store(store: RegionStore) -> None:
    store.xid(G, 48)
    store.xid("n2/gpu1", 79)
    twin = store.copy()
    for _ in range(10):
        decisions = decide_region(store.state(), GlobalState(), store.settings, store.now)
        assert decisions == decide_region(store.state(), GlobalState(), store.settings, store.now)
        for decision in decisions:
            store.apply(decision)
        twin.tick()
    assert store.items == twin.items


def test_a_tick_without_news_decides_nothing(store: RegionStore) -> None:
    store.xid(G, 48)
    store.settle()
    store.wait(5_000)
    assert decide_region(store.state(), GlobalState(), store.settings, Now(store.mono, store.ledger)) == ()


def test_a_fault_of_the_whole_node_takes_all_its_devices_out_within_the_budgets_and_is_one_incident(
    store: RegionStore,
) -> None:
    """Protects: a read-only file system convicts the node; its devices are drained as far as the budget goes, on the
    node's own evidence, and come back when it is over."""
    event = store.event("n1", HostCode.FILESYSTEM_READ_ONLY, EventKind.HOST, "EXT4-fs (sda1): Remounting read-only")
    store.commit(event)
    store.settle()
    on_n1 = [h for h in store.records("health") if h.node == "n1"]
    assert sorted(h.state.value for h in on_n1) == ["degraded"] * 4 + ["drained"] * 4, "the region's budget is 4 of 16"
    assert {h.state.value for h in store.records("health") if h.node == "n2"} == {"healthy"}
    incidents = store.records("incidents")
    assert [(i.subject, i.fault_class, i.severity) for i in incidents] == [("n1", "storage", Severity.FATAL)]
    assert {h.incident for h in on_n1} == {incidents[0].id}
    assert all(event.id in d.evidence and d.incident == incidents[0].id for d in store.records("drains"))
    store.commit(store.event("n1", HostCode.FILESYSTEM_READ_ONLY_OVER, EventKind.HOST, "writable"))
    store.run(150_000, step=5_000)
    assert states(store) == {"healthy"}
    assert [i.state for i in store.records("incidents")] == [IncidentState.RESOLVED]


def test_a_fault_wakes_each_step_of_its_path() -> None:
    """Protects: a step that waits for records is woken by those that the step before it writes, under the names the
    store knows; a misspelt one would leave a fault to the timers."""
    for stage in STAGES:
        assert set(stage.reads) <= REGION_KINDS.keys()
    classify, judge, act = (set(stage.reads) for stage in STAGES)
    assert {"events", "sessions", "replicas", "repeats"} <= classify
    assert {"findings", "liveness", "incidents", "devices"} <= judge
    assert not act, "drains rest on too much to wait for some of it"
