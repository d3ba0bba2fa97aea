"""How a drain lets jobs leave, what it says that it costs, in which order drains are admitted, and what shadow mode
writes down instead of acting."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controlplane.domain.cost import sentences
from controlplane.domain.region import decide_region
from controlplane.rpc import drain_intents
from controlplane.rpc.drain_intents import Manner
from controlplane.rpc.intents import Wish
from failover.domain.requests import decide_requests
from gridkeeper.decision import Now, Put
from gridkeeper.ids import DeviceId, IncidentId
from gridkeeper.policy.model import DrainPolicy, Mode
from gridkeeper.records.common import Action
from gridkeeper.records.faults import DrainMode, DrainRecord, DrainRequestRecord, DrainState, FindingRecord
from gridkeeper.records.fleet import HealthState
from gridkeeper.records.jobs import GrantRecord, HeadRecord, JobRecord, JobState, RegionRecord
from gridkeeper.snapshot import GlobalState, RegionState
from tests.unit.applier import EAST, NOON, RegionStore, quick
from tests.unit.test_drains import JOB, SPEC, G, _v, drains, fleet, world

WISH = Wish("ada", "new firmware", "")


def ask(store: RegionStore, device: str, mode: DrainMode, wait_ms: int = 0, **more: object) -> None:
    record = DrainRequestRecord(DeviceId(device), "ada", "new firmware", store.ledger, "", mode, wait_ms)
    store.write((store.keys.drain_request(DeviceId(device)), replace(record, **more)))  # type: ignore[arg-type]


def moved(store: RegionStore, on: GlobalState) -> list[str]:
    """Jobs that are asked to move now."""
    state, held = store.state(), GrantRecord(EAST, 1, "a", 0)  # type: ignore[arg-type]
    job = JobRecord(SPEC, JobState.RUNNING, on.ownership[JOB].record.desired, "", "ada", 0, "m1", 0, 0, "")  # type: ignore[arg-type]
    whole = replace(on, jobs={JOB: _v(job)}, grants={EAST: _v(held)})
    return [d.sentence for d in decide_requests(state, whole, store.settings, store.now) if d.step == "migrate.plan"]


@pytest.mark.parametrize("mode", list(DrainMode))
def test_jobs_are_asked_to_move_at_once_or_at_the_deadline_or_never(mode: DrainMode) -> None:
    """Protects: a job that may end by itself is left alone, and nothing new is placed beside it meanwhile."""
    store, on = fleet(), world()
    ask(store, G, mode, 60_000 if mode is DrainMode.DEADLINE else 0)
    store.settle(on)
    assert drains(store)[G].state is DrainState.EVACUATING and drains(store)[G].mode is mode
    assert store.health(G).state is HealthState.DRAINING, "so nothing new is placed on it"
    assert bool(moved(store, on)) is (mode is DrainMode.CHECKPOINT)
    store.run(59_000, on)
    assert bool(moved(store, on)) is (mode is DrainMode.CHECKPOINT)
    store.run(2_000, on)
    assert bool(moved(store, on)) is (mode is not DrainMode.WAIT)
    store.run(700_000, on, step=50_000)
    waits = drains(store)[G].state is DrainState.EVACUATING
    assert waits is (mode is DrainMode.WAIT), "waiting for a job's own end is never late"
    store.settle(world(stopped=True))
    assert drains(store)[G].state is DrainState.DRAINED, "the job ended by itself"


def test_who_asks_again_hurries_a_drain_that_waits_and_never_slows_one_down() -> None:
    store, on = fleet(), world()
    ask(store, G, DrainMode.WAIT)
    store.settle(on)
    ask(store, G, DrainMode.CHECKPOINT)
    store.settle(on)
    hurried = drains(store)[G]
    assert hurried.mode is DrainMode.CHECKPOINT and hurried.deadline_ms == store.ledger + 600_000 and moved(store, on)
    ask(store, G, DrainMode.WAIT)
    store.settle(on)
    assert drains(store)[G] == hurried and not store.records("drain-requests")


def test_a_wish_for_later_waits_for_its_time() -> None:
    store = fleet()
    ask(store, G, DrainMode.CHECKPOINT, not_before_ms=store.ledger + 30_000)
    store.run(29_000)
    assert not drains(store) and store.records("drain-requests")
    store.run(2_000)
    assert drains(store)[G].state is DrainState.DRAINED


def test_the_policy_says_how_the_machine_drains() -> None:
    store = fleet(quick(drain=DrainPolicy(mode="deadline", wait_ms=5_000), version=7))
    store.xid(G, 48)
    store.settle(world())
    drain = drains(store)[G]
    assert (drain.mode, drain.policy_version) == (DrainMode.DEADLINE, 7)
    assert drain.wait_until_ms == store.ledger + 5_000 and drain.deadline_ms == drain.wait_until_ms + 600_000


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.permutations(range(6)), st.lists(st.integers(-3, 3), min_size=6, max_size=6))
def test_when_there_is_not_room_for_all_the_higher_priority_goes_first(order: list[int], priorities: list[int]) -> None:
    """Protects: whatever the order of asking, no drain is refused while one of lower priority was admitted."""
    store = fleet()
    for slot in order:
        ask(store, f"n1/gpu{slot}", DrainMode.CHECKPOINT, priority=priorities[slot])
    store.settle()
    admitted = [d.priority for d in store.records("drains") if d.state is DrainState.DRAINED]
    refused = [d.priority for d in store.records("drains") if d.state is DrainState.REFUSED]
    assert len(admitted) == 4 and min(admitted) >= max(refused)


# -- cost -------------------------------------------------------------------------------------------------------------


def _roomy(on: GlobalState) -> GlobalState:
    head = HeadRecord(JOB, 40, on.ownership[JOB].record.epoch, "sha", 1, (EAST,), NOON - 90_000)  # type: ignore[call-arg]
    region = RegionRecord(EAST, "a", 2, 2, 16, 16, 15, 8, False, 0)  # type: ignore[arg-type]
    job = JobRecord(SPEC, JobState.RUNNING, on.ownership[JOB].record.desired, "", "ada", 0, "m1", 0, 0, "")  # type: ignore[arg-type]
    grant = GrantRecord(EAST, 1, "a", 0)  # type: ignore[arg-type]
    return replace(on, heads={JOB: _v(head)}, regions={EAST: _v(region)}, jobs={JOB: _v(job)}, grants={EAST: _v(grant)})


def test_a_drain_names_what_it_costs_when_it_is_admitted() -> None:
    store = fleet()
    store.xid(G, 48)
    store.settle(_roomy(world()))
    cost = drains(store)[G].cost
    assert cost is not None and [(j.job, j.devices, j.step, j.checkpoint_step) for j in cost.jobs] == [(JOB, 1, 9, 40)]
    assert cost.jobs[0].checkpoint_age_ms == 90_000 and cost.jobs[0].target_region == EAST
    assert (cost.capacity_left, cost.capacity_total) == (15, 16)
    assert cost.budgets == ("region 1/4", "rack-rack-0 1/8", "vendor-nvidia 1/4")
    told = sentences(cost, DrainMode.CHECKPOINT)
    assert "job train (1 device, step 9, checkpoint of step 40, 90.0 s old)" in told[0] and "region east" in told[0]


def test_a_rehearsal_says_what_the_planner_then_does_and_changes_nothing() -> None:
    """Protects: a dry run that is admitted is admitted when it is asked for in earnest, with the same cost."""
    store, on = fleet(), _roomy(world())
    manner = Manner(DrainMode.CHECKPOINT, 0)
    before = dict(store.items)
    answer = drain_intents.rehearse("n1", manner, WISH, store.state(), on, store.settings, store.now)
    assert store.items == before
    states = {record.device: record.state for record in answer.plan}
    assert len(states) == 8 and "take out 4 of 8 devices; 4 would be refused (budget region is full" in answer.sentence
    plan = drain_intents.drain("n1", manner, WISH, store.state(), store.now)
    assert plan.decision is not None and store.apply(plan.decision)
    store.settle(on)
    out = {device for device, drain in drains(store).items() if drain.state is not DrainState.REFUSED}
    refused = {d.device for d in answer.plan if "refused: " in d.reason}
    assert out == set(states) - refused
    costs = {d.device: d.cost.capacity_left for d in answer.plan if d.device in out}
    assert {d: r.cost.capacity_left for d, r in drains(store).items() if r.cost} == costs


# -- shadow mode ------------------------------------------------------------------------------------------------------


def _shadowed(store: RegionStore, code: str = "hot", device: str = G, action: Action = Action.DRAIN) -> FindingRecord:
    """What a rule in shadow mode finds."""
    store.xid(device, 94)
    store.settle()
    real = next(f for f in store.records("findings") if f.device == device)
    store.write((store.keys.finding(real.id), replace(real, active=False)))
    shadow = replace(real, id=f"{device.replace('/', ':')}:{code}", code=code, rule="site", action=action, shadow=True)
    store.write((store.keys.finding(shadow.id), shadow))
    return shadow


def test_a_rule_in_shadow_mode_is_written_down_once_and_touches_nothing() -> None:
    store = fleet()
    shadow = _shadowed(store)
    store.run(120_000, step=10_000)
    before = {k: v for k, v in store.items.items() if "/budgets/" in k or "/health/" in k}
    drain = drains(store)[G]
    assert drain.state is DrainState.SHADOW and drain.evidence[0] == shadow.id and drain.cost is not None
    assert "it only watches" in drain.reason and "would be admitted" in drain.reason
    assert store.health(G).state is HealthState.HEALTHY and store.health(G).drain == ""
    assert not [h for b in store.records("budgets") for h in b.holds]
    store.write((store.keys.finding("another"), replace(shadow, id="another", code="hotter")))
    store.settle()
    told = [d for d in store.records("drains") if d.state is DrainState.SHADOW]
    assert len(told) == 2 and {k: v for k, v in store.items.items() if "/budgets/" in k or "/health/" in k} == before


def test_shadow_evidence_that_was_seen_again_is_fresh() -> None:
    """Protects: shadow mode says what would have been drained, by the same freshness as drains: the last sighting."""
    store = fleet()
    shadow = _shadowed(store)
    stale = store.ledger - store.settings.policy.drain.evidence_ms - 1
    store.write((store.keys.finding(shadow.id), replace(shadow, observed_ms=stale)))
    store.settle()
    assert not store.records("drains")
    store.write((store.keys.finding(shadow.id), replace(shadow, observed_ms=stale, last_ms=store.ledger, count=2)))
    store.settle()
    (drain,) = store.records("drains")
    assert drain.state is DrainState.SHADOW and drain.evidence_age_ms == 0


def test_a_shadow_drain_hides_no_real_one() -> None:
    store = fleet()
    store.xid(G, 48)
    store.settle(world())
    real = drains(store)[G]
    _shadowed(store)
    store.settle(world())
    assert [d.id for d in store.records("drains")] == [real.id], "what is out already is not shadowed"
    store.settle(world(stopped=True))
    assert {d.id: d.state for d in store.records("drains")} == {real.id: DrainState.DRAINED}


def test_a_policy_in_shadow_mode_drains_nothing_but_what_humans_ask_for() -> None:
    store = fleet(quick(mode=Mode.SHADOW))
    store.xid("n2/gpu0", 48)
    ask(store, G, DrainMode.CHECKPOINT)
    store.settle()
    assert {d: r.state for d, r in drains(store).items()} == {
        "n2/gpu0": DrainState.SHADOW,
        G: DrainState.DRAINED,
    }
    assert store.out() == {G} and "the policy is in shadow mode" in drains(store)["n2/gpu0"].reason
    store.settings = quick()
    store.settle()
    assert store.out() == {G, "n2/gpu0"}, "in force again, it acts on what still holds"


def test_a_policy_that_is_off_decides_nothing() -> None:
    store = fleet(quick(mode=Mode.OFF))
    store.xid("n2/gpu0", 48)
    store.settle()
    assert not drains(store) and store.health("n2/gpu0").state is HealthState.DEGRADED


def test_the_same_state_gives_the_same_shadow() -> None:
    """Protects: a shadow drain is a pure function of the state, so a new leader repeats none and forgets none."""
    store = fleet()
    _shadowed(store)
    state: RegionState = store.state()

    def written() -> list[DrainRecord]:
        decided = decide_region(state, GlobalState(), store.settings, Now(store.mono, store.ledger))
        return [w.record for d in decided for w in d.writes if isinstance(w, Put) and isinstance(w.record, DrainRecord)]

    assert written() == written() and len(written()) <= 1
    assert all(d.incident == IncidentId("") for d in written())
