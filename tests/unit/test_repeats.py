"""What the repeat of a fault means: counted once, durably, never early, and explained by the better of two rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.repeats import MAX_IDS, counted, enough
from gridkeeper.ids import DeviceId
from gridkeeper.policy.document import default_policy
from gridkeeper.policy.model import EventPolicy, Mode, Per, RepeatPolicy
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import DrainState, IncidentState
from gridkeeper.records.fleet import EventKind, HealthState
from gridkeeper.records.limits import RepeatRecord
from tests.unit.applier import RegionStore, quick
from tests.unit.events import event

G = "n1/gpu3"
HOUR = 3_600_000
DEFAULTS = {rule.name: rule for rule in default_policy().repeats}


def store_with(*rules: RepeatPolicy | str, nodes: int = 1) -> RegionStore:
    repeats = tuple(DEFAULTS[rule] if isinstance(rule, str) else rule for rule in rules)
    made = RegionStore(quick(repeats=repeats))
    made.fleet(nodes=nodes, gpus=8)
    made.settle()
    return made


def raised(store: RegionStore) -> list[Any]:
    return [f for f in store.records("findings") if f.code.startswith("repeat-")]


def see(store: RegionStore, code: int, device: str = G, after: int = 600_000, **more: Any) -> None:
    store.xid(device, code, **more)
    store.settle()
    store.wait(after)


def test_a_page_fault_twice_on_one_gpu_takes_it_out_with_both_events_as_evidence() -> None:
    """Protects: the rule, its evidence, source and confidence; one sighting does nothing."""
    store = store_with("page-fault-across-job", "page-fault-on-one-gpu")
    see(store, 31)
    assert not raised(store) and not store.records("drains")
    see(store, 31)
    found = raised(store)
    assert [(f.code, f.device, f.count) for f in found] == [("repeat-page-fault-on-one-gpu", G, 2)]
    assert len(found[0].evidence) == 2 and found[0].rule == "repeats/page-fault-on-one-gpu"
    assert found[0].confidence.value == "medium" and "repeat rule" in found[0].source
    assert [d.device for d in store.records("drains")] == [G]


def test_page_faults_on_different_gpus_of_one_job_are_the_jobs() -> None:
    """Protects: a broken program that fails on every GPU, again and again, drains none of them."""
    store = store_with("page-fault-across-job", "page-fault-on-one-gpu")
    for _ in range(3):
        store.commit(*(store.event(f"n1/gpu{i}", 31, job="train") for i in range(8)))
        store.settle()
        store.wait(600_000)
    assert {(f.code, f.job, f.device) for f in raised(store)} == {("repeat-page-fault-across-job", "train", "")}
    assert not store.records("drains")
    assert "job:train" in {i.subject for i in store.records("incidents")}
    store.run(300_000, step=30_000)
    assert not [f for f in store.records("findings") if f.active], "quiet ends it, for the job too"


def test_one_job_that_fails_again_and_again_on_one_gpu_convicts_neither_job_nor_gpu() -> None:
    """Protects: a broken program that is restarted on its one GPU does not drain it; a second job's fault does."""
    store = store_with("page-fault-across-job", "page-fault-on-one-gpu")
    for _ in range(4):
        see(store, 31, job="notebook")
    assert not raised(store)
    see(store, 31, job="train")
    assert [f.code for f in raised(store)] == ["repeat-page-fault-on-one-gpu"]


def test_an_engine_exception_counts_by_core() -> None:
    store = store_with("engine-exception-on-one-core")
    core = "NVRM: Xid (PCI:0000:2d:00): 13, pid=7, Graphics SM Warp Exception on (GPC {}, TPC 1, SM 0): Illegal"
    see(store, 13, message=core.format(4))
    see(store, 13, message=core.format(2))
    see(store, 13)  # names no core
    see(store, 13)
    assert not raised(store)
    see(store, 13, message=core.format(4))
    assert len(raised(store)) == 1


def test_fatal_xids_again_and_again_are_counted_by_bursts_and_stick() -> None:
    """Protects: a burst of three minutes is one; 45 is left out; what is raised holds for three hours."""
    store = store_with("fatal-again-and-again")
    for _ in range(4):
        for _ in range(3):
            see(store, 119, after=50_000)
        see(store, 45, after=10 * 60_000)
    assert not raised(store)
    see(store, 62)
    assert [(f.action, f.count) for f in raised(store)] == [(Action.REPLACE, 5)]
    until = store.records("repeats")[0].sticky_until_ms
    assert until - store.ledger == pytest.approx(3 * HOUR - 600_000, abs=1_000)


def test_a_flood_of_clean_ups_raises_nothing_fatal() -> None:
    """Protects: 168,924 XID 45 in two days became 672 fatal tickets elsewhere; here they are one finding, watched."""
    store = RegionStore(replace(quick(), policy=replace(default_policy(), probation_ms=60_000)))
    store.fleet(nodes=1, gpus=8)
    store.settle()
    left = 168_924
    while left > 0:
        count = min(left, 4_000)
        left -= count
        see(store, 45, count=count, after=3_000)
    findings = store.records("findings")
    assert [(f.code, f.severity, f.count) for f in findings] == [("xid-45", Severity.WARNING, 168_924)]
    assert len(findings[0].evidence) <= 16
    assert [i.count for i in store.records("incidents")] == [168_924]
    assert not store.records("drains") and not raised(store)


def test_a_fault_that_comes_back_after_two_reboots_needs_hands() -> None:
    """Protects: reboots are counted only between sightings, and the fault must have come back after each."""
    store = store_with("reboot-does-not-help")
    for _ in range(5):
        see(store, 119)
    assert not raised(store), "without a reboot it is one and the same fault"
    for boot in range(2):
        store.commit(store.event("n1", kind=EventKind.BOOT, age_ms=0))
        store.settle()
        store.wait(600_000)
        assert not raised(store), f"it has not come back after reboot {boot + 1}"
        see(store, 119)
    assert [f.action for f in raised(store)] == [Action.REPLACE]
    store.commit(store.event("n1", kind=EventKind.BOOT, age_ms=0))
    store.settle()
    assert [f.active for f in raised(store)] == [True], "a further reboot does not end it"


def test_a_lasting_condition_is_raised_only_once_it_has_lasted() -> None:
    store = store_with("ascend-link-down")

    def down(after: int) -> None:
        store.commit(store.event(G, 0x81078603, EventKind.ASCEND, "link down"))
        store.settle()
        store.wait(after)

    for _ in range(3):
        down(9_000)
    assert not raised(store), "27 s are not 30"
    down(9_000)
    down(9_000)
    assert [(f.severity, f.action) for f in raised(store)] == [(Severity.ERROR, Action.WATCH)]
    assert store.health(G).state is HealthState.DEGRADED and not store.records("drains")


def test_a_node_that_is_drained_again_and_again_is_named_once_per_drain() -> None:
    store = store_with(replace(DEFAULTS["node-drained-again-and-again"], count=2, burst_ms=0))
    for device in ("n1/gpu0", "n1/gpu1"):
        assert not raised(store)
        see(store, 48, device)
    store.settle()
    assert [(f.node, f.device) for f in raised(store)] == [("n1", "")]
    store.wait(1_000)
    assert store.tick() == 0, "and then there is nothing more to say"


def test_drains_in_thought_only_count_for_no_node() -> None:
    """Protects: what a policy in shadow mode would have drained convicts no node of being drained again and again."""
    store = store_with(replace(DEFAULTS["node-drained-again-and-again"], count=2, burst_ms=0))
    store.settings = replace(store.settings, policy=replace(store.settings.policy, mode=Mode.SHADOW))
    for device in ("n1/gpu0", "n1/gpu1", "n1/gpu2"):
        see(store, 48, device)
    store.settle()
    assert {d.state for d in store.records("drains")} == {DrainState.SHADOW}
    assert not raised(store)


def test_a_fault_that_is_seen_again_keeps_its_repeat_finding_fresh() -> None:
    """Protects: what repeats to this day is not too old to be acted on because it was first raised long ago."""
    store = store_with(replace(DEFAULTS["page-fault-on-one-gpu"], unless=""))
    see(store, 31)
    see(store, 31)
    (found,) = raised(store)
    see(store, 31)
    (again,) = raised(store)
    assert again.id == found.id and again.last_ms > found.observed_ms


def test_a_shadow_rule_is_recorded_as_such() -> None:
    store = store_with(replace(DEFAULTS["page-fault-on-one-gpu"], mode=Mode.SHADOW, unless=""))
    see(store, 31)
    see(store, 31)
    assert [f.shadow for f in raised(store)] == [True]


def test_what_sticks_follows_a_changed_policy_at_once() -> None:
    """Protects: what an operator makes graver, milder or a trial counts for what is raised already: for as long as it
    sticks, it is not raised anew. Nothing but its form changes."""
    rule = replace(
        DEFAULTS["fatal-again-and-again"], count=2, severity=Severity.WARNING, action=Action.WATCH, least=Severity.INFO,
        except_codes=(),
    )  # fmt: skip
    store = store_with(rule)
    see(store, 45)
    see(store, 45)
    (before,) = raised(store)
    assert (before.severity, before.action) == (Severity.WARNING, Action.WATCH) and not store.records("drains")

    def adopt(version: int, **changes: Any) -> None:
        policy = replace(store.settings.policy, repeats=(replace(rule, **changes),), version=version)
        store.settings = replace(store.settings, policy=policy)

    adopt(5, severity=Severity.FATAL, action=Action.REPLACE, mode=Mode.SHADOW)
    store.settle()
    (trial,) = raised(store)
    assert trial.shadow and "policy v5" in trial.source
    assert not [d for d in store.records("drains") if d.state is not DrainState.SHADOW]
    adopt(6, severity=Severity.FATAL, action=Action.REPLACE)
    store.settle()
    assert raised(store) == [trial], "whether the fault itself is on trial is not known before it is seen again"
    see(store, 45)
    (after,) = raised(store)
    assert (after.id, after.observed_ms, after.evidence[:2]) == (before.id, before.observed_ms, before.evidence)
    assert (after.severity, after.action, after.shadow) == (Severity.FATAL, Action.REPLACE, False)
    assert [d.device for d in store.records("drains") if d.state is not DrainState.SHADOW] == [G]


def test_nothing_is_counted_twice_when_detection_looks_again() -> None:
    """Protects: the detector's mark is lost, everything is digested again, and no count changes."""
    store = store_with("fatal-again-and-again", "page-fault-on-one-gpu")
    for _ in range(4):
        see(store, 119)
    see(store, 31)
    before = store.records("repeats")
    store.write((store.keys.detector, None))
    store.settle()
    assert store.records("repeats") == before and not raised(store)


def test_counts_survive_a_change_of_leader() -> None:
    """Protects: counts are in the store; another process, with another clock, goes on from there."""
    store = store_with("page-fault-on-one-gpu")
    see(store, 31)
    heir = store.copy()
    heir.mono = 5_000
    see(heir, 31)
    assert len(raised(heir)) == 1


def test_records_of_what_can_no_longer_count_are_forgotten() -> None:
    store = store_with("page-fault-on-one-gpu")
    see(store, 31)
    assert len(store.records("repeats")) == 1
    store.wait(25 * HOUR)
    see(store, 13)
    assert not store.records("repeats")


RULE = RepeatPolicy("r", "xid", 3, HOUR, Severity.ERROR, Action.DRAIN, "m", burst_ms=60_000, per=Per.DEVICE)
EMPTY = RepeatRecord("r", "n1:gpu0", (), (), (), (), 0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 3 * HOUR), max_size=40), st.randoms(use_true_random=False), st.integers(2, 5))
def test_a_rule_never_fires_early_whatever_the_order(times: list[int], rng: Any, least: int) -> None:
    """Protects: fired means that so many sightings, further apart than a burst, lay within the window; each event is
    counted once however often it comes; the record stays small."""
    rule = replace(RULE, count=least)
    events = [event(EventKind.XID, 48, sequence=i, at=at) for i, at in enumerate(times)]
    rng.shuffle(events)
    record, fired = EMPTY, False
    for seen in events:
        record = counted(rule, record, seen)
        assert counted(rule, record, seen) == record
        assert len(record.times_ms) == len(record.devices) <= least and len(record.events) <= MAX_IDS
        fired = fired or enough(rule, record)
    if fired:
        assert _most_apart(sorted(times)) >= least


def _most_apart(times: list[int]) -> int:
    """The most sightings, each further from the last than a burst, that any window holds."""
    best = 0
    for start, first in enumerate(times):
        count, last = 0, None
        for time in times[start:]:
            if time - first > HOUR:
                break
            if last is None or time - last > RULE.burst_ms:
                count, last = count + 1, time
        best = max(best, count)
    return best


def test_a_cause_and_its_consequences_are_one_incident_also_in_the_wrong_order() -> None:
    """Protects: 45 before its 48, 63 after it: one incident with all of them counted."""
    store = store_with()
    for code in (45, 48, 63, 171, 45):
        see(store, code, after=300)
    store.run(20_000)
    open_ones = [i for i in store.records("incidents") if i.state is not IncidentState.RESOLVED]
    assert [(i.fault_class, i.subject) for i in open_ones] == [("memory", G)]
    follower = [f for f in store.records("findings") if f.code == "xid-45"]
    assert {f.severity for f in follower} == {Severity.INFO} and "follows XID 48" in follower[0].sentence
    resolved = [i for i in store.records("incidents") if i.state is IncidentState.RESOLVED]
    assert all("part of incident memory" in i.resolution for i in resolved)


def test_800000_lines_of_which_29_are_distinct_are_one_incident_in_bounded_memory() -> None:
    """Protects: one bad node's log does not flood the store: findings by code, one incident per fault class."""
    store = store_with()
    codes = (95, 48, 63, 94, 171)
    for burst in range(80):
        store.commit(*(store.event(G, code, count=2_000, message=f"XID {code} at {burst % 29}") for code in codes))
        store.settle()
        store.wait(3_000)
    assert len(store.records("findings")) == len(codes)
    assert [i.count for i in store.records("incidents")] == [800_000]
    assert all(len(f.evidence) <= 16 for f in store.records("findings"))
    assert sum(f.count for f in store.records("findings")) == 800_000


def test_nvml_and_the_kernel_log_of_one_fault_are_one_finding() -> None:
    store = store_with()
    store.xid(G, 79, sources=("nvml",))
    store.xid(G, 79, sources=("kmsg",), message="NVRM: GPU 0000:91:00.0 has fallen off the bus and is not responding")
    store.commit(store.event(G, kind=EventKind.DEVICE_MISSING, message="GPU is lost (NVML)"))
    store.settle()
    assert [(i.fault_class, i.count) for i in store.records("incidents")] == [("bus", 3)]


def test_recovery_none_ends_what_a_reset_cures() -> None:
    """Protects: the driver's word that nothing is needed any more, after a reset without a reboot."""
    store = store_with()
    see(store, 119)
    see(store, 64, "n1/gpu4")
    text = "154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"
    see(store, 154, message=text)
    see(store, 154, "n1/gpu4", message=text)
    assert not [f for f in store.records("findings") if f.code == "xid-119" and f.active]
    assert [f.active for f in store.records("findings") if f.code == "xid-64"] == [True], "a worn card stays worn"


def test_an_over_code_ends_its_condition() -> None:
    store = store_with()
    for code, active in ((47, [True]), (48, [False])):  # disk pressure, and its end
        store.commit(store.event("n1", code, EventKind.HOST, "/var 97 %"))
        store.settle()
        assert [f.active for f in store.records("findings") if f.code == "host-47"] == active


def test_a_graver_sub_code_is_not_lost_in_a_harmless_one() -> None:
    """Protects: XID 74 with corrected errors only, then with parity bits: the second is its own finding."""
    store = store_with()
    text = "NVRM: Xid (PCI:0003:00:00): 74, NVLink: fatal error detected on link 14({}, 0x0, 0x0, 0x0, {}, 0x0, 0x0)"
    device = replace(store.items[store.keys.device(DeviceId(G))].record, architecture="hopper")
    store.write((store.keys.device(device.id), device))
    see(store, 74, message=text.format("0x0", hex(1 << 20)), after=1_000)
    see(store, 74, message=text.format(hex(1 << 4), "0x0"), after=1_000)
    assert sorted(f.severity for f in store.records("findings")) == [Severity.ERROR, Severity.INFO]
    assert store.health(G).state is HealthState.DEGRADED


def test_a_rule_of_the_site_overrules_the_catalogue_and_shadow_hides_nothing() -> None:
    """Protects: the first matching event rule decides, by text and label; out of shadow, the same fault is acted on."""
    rule = EventPolicy(
        "site-31", "xid", Severity.FATAL, Action.DRAIN, codes=(31,), pattern="ENGINE CE", select="vendor=nvidia",
        mode=Mode.SHADOW,
    )  # fmt: skip
    store = RegionStore(quick(events=(rule,), version=7))
    store.fleet(nodes=1, gpus=8)
    store.settle()
    see(store, 31, message="MMU Fault: ENGINE GRAPHICS", after=1_000)
    see(store, 31, message="MMU Fault: ENGINE CE2", after=1_000)
    found = {f.rule: f for f in store.records("findings")}
    assert (found["nvidia-xid"].action, found["nvidia-xid"].count) == (Action.RESTART_JOB, 2)
    assert (found["events/site-31"].shadow, found["events/site-31"].rule_version) == (True, 7)
    policy = replace(store.settings.policy, events=(replace(rule, mode=Mode.ACT),))
    store.settings = replace(store.settings, policy=policy)
    see(store, 31, message="MMU Fault: ENGINE CE2", after=1_000)
    assert [f.shadow for f in store.records("findings") if f.rule == "events/site-31"] == [True, False]


def test_a_rule_on_trial_takes_no_verdict_out_of_force() -> None:
    """Protects: an event rule in shadow mode is written down beside the verdict that counts, which is acted on as ever,
    whether it is the catalogue's or a later rule's."""
    lenient = EventPolicy("lenient", "xid", Severity.INFO, Action.IGNORE, codes=(79,), mode=Mode.SHADOW)
    strict = EventPolicy("strict", "xid", Severity.FATAL, Action.REPLACE, codes=(31,), scope=Scope.DEVICE)
    trial = EventPolicy("trial", "xid", Severity.WARNING, Action.WATCH, codes=(31,), mode=Mode.SHADOW)
    store = RegionStore(quick(events=(lenient, trial, strict)))
    store.fleet(nodes=8, gpus=8)
    store.settle()
    see(store, 79, "n1/gpu3", after=1_000)
    see(store, 31, "n2/gpu3", after=1_000)
    found = {(f.device, f.rule): f for f in store.records("findings")}
    assert found["n1/gpu3", "events/lenient"].shadow and not found["n1/gpu3", "nvidia-xid"].shadow
    assert found["n2/gpu3", "events/trial"].shadow and not found["n2/gpu3", "events/strict"].shadow
    drained = [d.device for d in store.records("drains") if d.state is not DrainState.SHADOW]
    assert sorted(drained) == ["n1/gpu3", "n2/gpu3"]
