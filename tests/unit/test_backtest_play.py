"""Protects: a backtest decides what the control plane would have decided, when it would have; and its counts add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.backtest.csvtrace import device_record
from controlplane.backtest.outcome import difference, score
from controlplane.backtest.play import REPAIRER, Player, replayed
from controlplane.backtest.trace import Fault, Trace, Truth
from controlplane.domain.cordon import uncordon
from gridkeeper.ids import DeviceId, NodeId, RegionId
from gridkeeper.policy.model import BreakerPolicy, BudgetPolicy, Policy, RepeatPolicy
from gridkeeper.records.common import Action, Severity
from gridkeeper.records.fleet import EventKind, HealthState
from gridkeeper.snapshot import Settings
from gridkeeper.timings import Timings
from tests.unit.applier import NOON, RegionStore, quick

HOUR = 3_600_000
REPAIR = 120_000
WIDE = (BudgetPolicy("region", 1.0, 1),)


def inventory(nodes: int = 2, gpus: int = 4) -> dict[DeviceId, object]:
    names = [DeviceId(f"n{n + 1}/gpu{g}") for n in range(nodes) for g in range(gpus)]
    return {name: device_record(NodeId(name.partition("/")[0]), name, RegionId("east"), {}) for name in names}


def fault(at_s: int, device: str, code: int = 48, **more: object) -> Fault:
    node, slash, _ = device.partition("/")
    given = DeviceId(device if slash else "")
    return replace(
        Fault(NOON + at_s * 1000, NodeId(node), given, EventKind.XID, code, f"XID {code}", source="nvml"), **more
    )


def trace(*faults: Fault, until_s: int = 3600, nodes: int = 2, gpus: int = 4, **more: object) -> Trace:
    ordered = tuple(sorted(faults, key=lambda f: f.at_ms))
    return replace(Trace(inventory(nodes, gpus), ordered, NOON, NOON + until_s * 1000), **more)  # type: ignore[arg-type]


def policy(**more: object) -> Policy:
    return quick(**{"budgets": WIDE} | more).policy


def test_a_fault_drains_its_device_and_a_repair_brings_it_back() -> None:
    outcome = Player(trace(fault(10, "n1/gpu0")), policy(), "p", REPAIR).run()
    (drain,) = outcome.acted
    assert (drain.device, drain.admitted_ms, drain.back_ms) == ("n1/gpu0", NOON + 10_000, NOON + 10_000 + REPAIR)
    assert drain.faults == (0,)
    assert outcome.interruptions == 1
    # out of service: drained for the repair, then on probation for a minute (quick policy)
    assert outcome.out_ms == REPAIR + 60_000
    assert outcome.availability == (8 * 3_600_000 - outcome.out_ms, 8 * 3_600_000)


def test_a_device_that_is_out_suffers_no_further_fault() -> None:
    twice = trace(fault(10, "n1/gpu0"), fault(60, "n1/gpu0", 95), fault(70, "n1/gpu1", 31))
    outcome = Player(twice, policy(), "p", REPAIR).run()
    assert (outcome.interruptions, outcome.avoided) == (2, 1)
    assert [drain.device for drain in outcome.acted] == ["n1/gpu0"]


def test_a_repair_that_the_trace_dates_ends_then() -> None:
    told = fault(10, "n1/gpu0", repaired_ms=NOON + 600_000)
    (drain,) = Player(trace(told), policy(), "p", REPAIR).run().acted
    assert drain.back_ms == NOON + 600_000


def test_budgets_are_of_the_whole_inventory_and_hold_back() -> None:
    three = trace(fault(10, "n1/gpu0"), fault(11, "n1/gpu1"), fault(12, "n2/gpu1"))
    outcome = Player(three, policy(budgets=(BudgetPolicy("region", 0.25, 1),)), "p", REPAIR).run()
    assert outcome.held_back == 1
    first, second, third = outcome.acted
    assert (first.device, second.device) == ("n1/gpu0", "n1/gpu1")
    assert third.admitted_ms >= min(first.back_ms, second.back_ms) + 60_000  # a place is free once one is in service


def test_only_devices_with_a_job_are_interrupted_if_that_is_known() -> None:
    idle = trace(fault(10, "n1/gpu0"), fault(20, "n1/gpu1"), busy={DeviceId("n1/gpu1"): ((NOON, NOON + HOUR),)})
    assert Player(idle, policy(), "p", REPAIR).run().interruptions == 1


def test_the_same_policy_differs_in_nothing_and_a_stricter_one_in_what_it_leaves_alone() -> None:
    faults = trace(fault(10, "n1/gpu0"), fault(20, "n2/gpu0"))
    wide = Player(faults, policy(), "wide", REPAIR).run()
    same = difference(wide, Player(faults, policy(), "again", REPAIR).run())
    assert (same.same, same.moved, same.only_new, same.only_old) == (2, (), (), ())
    tight = Player(faults, policy(budgets=(BudgetPolicy("region", 0.0, 1),)), "tight", REPAIR).run()
    found = difference(wide, tight)
    assert (found.same, len(found.moved)) == (1, 1)
    assert found.moved[0][1].admitted_ms > found.moved[0][0].admitted_ms


def test_labels_tell_false_drains_missed_faults_and_lemons() -> None:
    faults = trace(
        fault(10, "n1/gpu0", truth=Truth.FALSE),
        fault(20, "n1/gpu1", truth=Truth.REAL),
        fault(30, "n1/gpu2", 31, truth=Truth.REAL),  # an application's fault to the catalogue: nothing is drained
        fault(40, "n1/gpu3", 64, truth=Truth.REAL),
    )
    outcome = Player(faults, policy(), "p", REPAIR).run()
    lemons = {DeviceId("n1/gpu2"): True, DeviceId("n1/gpu3"): True, DeviceId("n1/gpu0"): False}
    scored = score(outcome, faults.faults, lemons, HOUR)
    assert scored is not None
    assert [drain.device for drain in scored.false_drains] == ["n1/gpu0"]
    assert (scored.judged_drains, scored.real_faults, scored.missed) == (3, 3, (2,))
    assert (list(scored.lemons_found), scored.lemons_missed) == (["n1/gpu3"], ("n1/gpu2",))
    assert scored.marked == ("n1/gpu3",)
    assert scored.good_drained == ("n1/gpu0",)
    assert score(outcome, trace(fault(1, "n1/gpu0")).faults, {}, HOUR) is None


def test_a_real_fault_of_a_node_is_missed_unless_a_device_of_it_is_drained() -> None:
    faults = trace(fault(10, "n1/gpu0"), fault(20, "n1", 0, kind=EventKind.HOST, truth=Truth.REAL))
    faults = replace(faults, faults=(*faults.faults, fault(30, "n2", 0, kind=EventKind.HOST, truth=Truth.REAL)))
    scored = score(Player(faults, policy(), "p", REPAIR).run(), faults.faults, {}, HOUR)
    assert scored is not None and (scored.real_faults, scored.missed) == (2, (2,))


def test_replacing_a_card_is_told_apart() -> None:
    (drain,) = Player(trace(fault(10, "n1/gpu0", 64)), policy(), "p", REPAIR).run().acted
    assert drain.action is Action.REPLACE


def test_a_breaker_opens_on_a_burst_and_lets_the_rest_through_in_time() -> None:
    breaker = BreakerPolicy("region", drains=2, fraction=0.0, within_ms=60_000, cool_ms=300_000, trickle_ms=60_000)
    burst = trace(*(fault(10, f"n1/gpu{g}", 95) for g in range(4)), fault(700, "n2/gpu0", 95))
    outcome = Player(burst, policy(breakers=(breaker,)), "p", REPAIR).run()
    assert outcome.held_back >= 1
    assert {drain.admitted_ms for drain in outcome.acted if drain.device == "n2/gpu0"} == {NOON + 700_000}


CODES = st.sampled_from((48, 94, 95, 79, 63, 64, 31, 45, 74))
FAULTS = st.lists(
    st.tuples(st.integers(1, 500), st.sampled_from(("n1/gpu0", "n1/gpu1", "n2/gpu0", "n2/gpu1", "n2")), CODES),
    min_size=1,
    max_size=6,
)


def test_a_sticky_finding_ends_when_its_rule_lets_go_of_it_though_nothing_else_happens() -> None:
    again = RepeatPolicy(
        "again", "xid", 2, 600_000, Severity.WARNING, Action.WATCH, "seen again", codes=(999,), sticky_ms=300_000
    )
    faults = trace(fault(10, "n1/gpu0", 999), fault(100, "n1/gpu0", 999))
    player = Player(faults, policy(repeats=(again,)), "p", REPAIR)
    player.run()
    held = player.region.health(DeviceId("n1/gpu0"))
    ended_ms = NOON + 400_000 + 20_000  # the second hold is twice as long
    assert (held.state, held.since_ms) == (HealthState.HEALTHY, ended_ms)


@settings(max_examples=15, deadline=None)
@pytest.mark.timeout(300)
@given(FAULTS)
def test_looking_only_at_what_matters_decides_as_looking_at_everything_all_the_time(
    drawn: list[tuple[int, str, int]],
) -> None:
    """The reference ticks each second over the whole region, as a leader does, liveness and ledger included."""
    tight = policy(budgets=(BudgetPolicy("region", 0.25, 1), BudgetPolicy("rack", 0.5, 1)))
    faults = trace(*(fault(at, device, code) for at, device, code in drawn), until_s=900, gpus=2)
    player = Player(faults, tight, "p", REPAIR)
    outcome = player.run()
    played = sorted((d.device, d.admitted_ms) for d in outcome.acted)
    store, expected = _reference(faults, tight)
    assert played == sorted(expected)
    for device in faults.devices:
        ours, theirs = player.region.health(device), store.health(device)
        assert (ours.state, ours.flaps) == (theirs.state, theirs.flaps), device
    assert outcome.incidents == len(store.records("incidents"))


def _reference(faults: Trace, tight: Policy) -> tuple[RegionStore, list[tuple[str, int]]]:
    store = RegionStore(Settings(Timings(), replayed(tight)))
    store.ledger = NOON - 700_000
    store.fleet(nodes=2, gpus=2)
    store.settle()
    store.wait(700_000)
    store.settle()
    waiting = list(faults.faults)
    drained: dict[str, int] = {}
    while store.ledger < faults.until_ms:
        store.wait(1000)
        while waiting and waiting[0].at_ms <= store.ledger:
            one = waiting.pop(0)
            out = one.device and store.health(one.device).state in {
                HealthState.DRAINING, HealthState.DRAINED, HealthState.REPAIRING, HealthState.PROBATION,
            }  # fmt: skip
            if not out:
                store.xid(one.device or one.node, one.code, age_ms=0, message=one.message)
        for device, at in list(drained.items()):
            if store.ledger >= at + REPAIR:
                decision = uncordon(store.state(), store.settings, device, REPAIRER, "repaired", store.now)
                assert decision is None or store.apply(decision)
                del drained[device]
        store.settle()
        for drain in store.records("drains"):
            stage = {stamp.name: stamp.at_ms for stamp in drain.stages}
            if stage.get("drained") == store.ledger:
                drained[drain.device] = store.ledger
    stages = [(drain.device, stamp) for drain in store.records("drains") for stamp in drain.stages]
    return store, [(device, stamp.at_ms) for device, stamp in stages if stamp.name == "admitted"]
