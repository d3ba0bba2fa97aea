"""Repairs begin with consent, only where nothing runs, at most so often; and service begins with a passed self-test."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controlplane.domain import repair_index
from controlplane.domain.cordon import uncordon
from controlplane.domain.drain_progress import cancellation
from controlplane.domain.repair import to
from controlplane.domain.repair_effects import KEPT_MS
from controlplane.rpc import care_intents
from controlplane.rpc.intents import Wish
from controlplane.rpc.refusal import Refusal
from gridkeeper.ids import DeviceId, FindingId, NodeId
from gridkeeper.policy.model import BudgetPolicy, Consent, Mode, RepairPolicy
from gridkeeper.records.care import RepairKind, RepairRecord, RepairState
from gridkeeper.records.common import Action, Scope, Severity
from gridkeeper.records.faults import DrainState, FindingRecord
from gridkeeper.records.fleet import EventKind, HealthState
from gridkeeper.snapshot import GlobalState
from tests.unit.applier import EAST, RegionStore, quick
from tests.unit.test_drains import G, drains, fleet, used, world

ANN = Wish("user/ann", "go on", "")
ROOMY = (BudgetPolicy("region", 1.0, 1),)
RESET, REBOOT, REPLACE = Action.RESET_DEVICE, Action.REBOOT_NODE, Action.REPLACE


def shop(**repair: object) -> RegionStore:
    """A fleet whose policy repairs."""
    return fleet(quick(budgets=ROOMY, repair=RepairPolicy(**repair)))  # type: ignore[arg-type]


def fault(store: RegionStore, device: str, action: Action) -> None:
    """What detection concludes of an event that asks for ``action``; ``device`` may be a node."""
    name = FindingId(f"{device.replace('/', ':')}:fault:{store.revision}")
    node, _, slot = device.partition("/")
    finding = FindingRecord(
        name, EAST, NodeId(node), DeviceId(device if slot else ""), Scope.DEVICE if slot else Scope.NODE, "memory",
        "fault", Severity.FATAL, action, f"a fault of {device}", ("event",), store.ledger, "catalogue", 1, True, "",
    )  # fmt: skip
    store.write((store.keys.finding(name), finding))


def repairs(store: RegionStore, kind: RepairKind | None = None) -> list[RepairRecord]:
    found: list[RepairRecord] = [r for r in store.records("repairs") if kind in (None, r.kind)]
    return sorted(found, key=lambda r: (r.proposed_ms, r.id))


def answer(store: RegionStore, state: RepairState, result: str = "as told") -> RepairRecord:
    """The agent's answer to what is under way, as the replica that holds its stream writes it down."""
    held = next(v for v in store.state().repairs.values() if v.record.state is RepairState.RUNNING)
    assert store.apply(to(store.keys, held, state, result, store.ledger))
    return held.record


def decide(store: RegionStore, approve: bool = True) -> str:
    record = repairs(store)[-1]
    plan = care_intents.decide_repair(record.id, approve, ANN, store.state(), store.now)
    assert plan.decision is None or store.apply(plan.decision)
    return plan.sentence


# -- consent ----------------------------------------------------------------------------------------------------------


def test_without_consent_nothing_is_proposed() -> None:
    store = shop()
    fault(store, G, RESET)
    store.run(60_000, step=10_000)
    assert not repairs(store) and store.health(G).state is HealthState.DRAINED


def test_a_repair_waits_for_a_human_who_may_reject_it_for_good() -> None:
    store = shop(reset_device=Consent.CONFIRM)
    fault(store, G, RESET)
    store.run(60_000, step=10_000)
    (record,) = repairs(store)
    assert (record.state, record.kind, record.device) == (RepairState.PROPOSED, RepairKind.RESET_DEVICE, G)
    assert record.drain == drains(store)[G].id and "attempt 1 of 2" in record.reason
    assert "rejected: by user/ann" in decide(store, approve=False)
    store.run(120_000, step=10_000)
    assert [r.state for r in repairs(store)] == [RepairState.REJECTED] and repairs(store)[0].decided_by == "user/ann"
    with pytest.raises(Refusal, match="is rejected; only one"):
        decide(store)


def test_approved_it_begins_ends_and_the_device_comes_back_by_way_of_probation() -> None:
    store = shop(reset_device=Consent.CONFIRM)
    fault(store, G, RESET)
    store.settle()
    decide(store)
    assert "approved already" in decide(store)
    store.settle()
    (record,) = repairs(store)
    assert record.state is RepairState.RUNNING and record.deadline_ms == store.ledger + 900_000
    answer(store, RepairState.DONE)
    store.settle()
    assert store.health(G).state is HealthState.REPAIRING, "what the reset cures is over"
    store.run(90_000, step=10_000)
    assert store.health(G).state is HealthState.HEALTHY and not used(store)
    assert [s.name for s in repairs(store)[0].stages] == ["proposed", "approved", "running", "done"]


def test_a_fault_seen_again_after_the_reset_is_not_cleared_by_it() -> None:
    """Protects: a repeat moves ``last_ms`` alone, and what was seen after the reset was not cured by it."""
    store = shop(reset_device=Consent.AUTO)
    fault(store, G, RESET)
    store.settle()
    answer(store, RepairState.DONE)
    store.wait(5)
    (finding,) = store.records("findings")
    store.write((store.keys.finding(finding.id), replace(finding, last_ms=store.ledger, count=2)))
    store.settle()
    assert store.records("findings")[0].active and store.health(G).state is HealthState.DRAINED


def test_what_follows_from_a_reset_is_decided_for_a_while_and_then_never_looked_at_again() -> None:
    """Protects: an event from before the reset that becomes durable late is cured by it too; and the records of resets,
    which stay for 100 days, cost nothing once nothing can follow from them."""
    store = shop(reset_device=Consent.AUTO)
    fault(store, G, RESET)
    store.settle()
    store.wait(1_000)
    answer(store, RepairState.DONE)
    store.settle()
    (first,) = store.records("findings")
    late = replace(first, id=FindingId(f"{first.id}:late"), active=True)
    store.write((store.keys.finding(late.id), late))
    store.settle()
    assert not any(f.active for f in store.records("findings")) and not repairs(store)[0].settled
    assert repair_index.repairs(store.state()).open
    store.run(10_000, step=5_000)
    assert repairs(store)[0].settled and not repair_index.repairs(store.state()).open
    done = repairs(store)[0].stages[-1].at_ms
    store.ledger = done + KEPT_MS - 1
    store.settle()
    assert len(repairs(store)) == 1
    store.wait(1)
    store.settle()
    assert not repairs(store), "it is forgotten at last"


def test_in_shadow_mode_the_machine_begins_nothing_by_itself() -> None:
    store = shop(reset_device=Consent.AUTO)
    fault(store, G, RESET)
    store.settle(world())
    store.settings = quick(budgets=ROOMY, mode=Mode.SHADOW, repair=RepairPolicy(reset_device=Consent.AUTO))
    store.settle(world(stopped=True))
    assert [r.state for r in repairs(store)] == [RepairState.PROPOSED]


# -- safety -----------------------------------------------------------------------------------------------------------


def test_nothing_begins_on_a_device_on_which_a_job_may_be_or_of_a_node_that_is_not_heard() -> None:
    store = shop(reset_device=Consent.AUTO)
    fault(store, G, RESET)
    store.settle(world())
    assert not repairs(store), "a device that is not drained yet is not repaired"
    away = replace(world(stopped=True), fresh=False)
    store.settle(world(stopped=True))
    (begun,) = repairs(store)
    assert begun.state is RepairState.RUNNING
    store = shop(reset_device=Consent.AUTO)
    fault(store, G, RESET)
    store.settle()
    store.items.pop(store.keys.repair(repairs(store)[0].id))
    store.settle(away)
    assert repairs(store)[0].state is RepairState.APPROVED, "who cannot look does not begin"
    store.session("n1", False)
    store.run(20_000, away)
    store.settle()
    assert repairs(store)[0].state is RepairState.APPROVED, "nor on a node that is not heard"


def test_a_human_cannot_return_a_device_while_it_is_being_repaired() -> None:
    store = shop(reset_device=Consent.AUTO)
    fault(store, G, RESET)
    store.settle()
    assert uncordon(store.state(), store.settings, G, "ada", "give it back", store.now) is None
    answer(store, RepairState.FAILED)
    assert uncordon(store.state(), store.settings, G, "ada", "give it back", store.now) is not None


def test_no_answer_is_lost_and_after_the_last_attempt_the_card_is_to_be_replaced() -> None:
    store = shop(reset_device=Consent.AUTO, timeout_ms=30_000)
    fault(store, G, RESET)
    store.run(40_000, step=10_000)
    assert repairs(store)[0].state is RepairState.LOST and "nobody knows" in repairs(store)[0].result
    store.run(20_000, step=10_000)
    assert [r.state for r in repairs(store)] == [RepairState.LOST, RepairState.RUNNING]
    answer(store, RepairState.FAILED, "the driver refuses")
    store.run(600_000, step=20_000)
    assert len(repairs(store)) == 2 and store.health(G).state is HealthState.DRAINED
    worn = next(f for f in store.records("findings") if f.code == "repair-failed")
    assert worn.action.value == "replace" and "did not help" in worn.sentence and len(worn.evidence) == 1


def test_a_new_card_needs_no_repair_of_the_old_one() -> None:
    store = shop(reset_device=Consent.CONFIRM)
    fault(store, G, RESET)
    store.settle()
    store.write((store.keys.device(G), store.device(G, uuid="GPU-new")))  # type: ignore[arg-type]
    store.settle()
    assert [r.state for r in repairs(store)] == [RepairState.EXPIRED]


# -- reboots ----------------------------------------------------------------------------------------------------------


def test_a_reboot_waits_until_its_whole_node_is_drained_and_gives_the_others_back() -> None:
    store = shop(reboot_node=Consent.AUTO)
    fault(store, G, REBOOT)
    other = world("n1/gpu0")
    store.settle(other)
    (record,) = repairs(store)
    assert record.state is RepairState.APPROVED and not record.device, "one device of the node still runs a job"
    assert store.out() == {f"n1/gpu{s}" for s in range(8)} and drains(store)["n1/gpu0"].state is DrainState.EVACUATING
    store.settle(world("n1/gpu0", stopped=True))
    assert repairs(store)[0].state is RepairState.RUNNING
    store.commit(store.event("n1", kind=EventKind.BOOT, age_ms=0))
    answer(store, RepairState.DONE, "booted")
    store.run(120_000, step=10_000)
    assert not store.out() and {store.health(f"n1/gpu{s}").state for s in range(8)} == {HealthState.HEALTHY}
    assert not used(store) and len(repairs(store)) == 1


def test_a_fault_of_a_whole_node_is_rebooted_as_often_as_the_policy_allows_and_not_once_per_device() -> None:
    """Protects: what a node's own finding asks for is done, and each of its devices counts the node's repairs."""
    store = shop(reboot_node=Consent.AUTO, attempts=2)
    fault(store, "n1", REBOOT)
    store.settle()
    assert store.out() == {f"n1/gpu{s}" for s in range(8)}
    for _ in range(2):
        assert [r.state for r in repairs(store)][-1] is RepairState.RUNNING
        answer(store, RepairState.FAILED)
        store.run(20_000, step=5_000)
    store.run(60_000, step=5_000)
    assert [(r.device, r.kind) for r in repairs(store)] == [("", RepairKind.REBOOT_NODE)] * 2
    assert {f.device for f in store.records("findings") if f.code == "repair-failed"} == store.out()


def test_a_rejected_reboot_is_not_proposed_for_each_device_of_the_node() -> None:
    store = shop(reboot_node=Consent.CONFIRM)
    fault(store, "n1", REBOOT)
    store.settle()
    decide(store, approve=False)
    store.run(60_000, step=10_000)
    assert [r.state for r in repairs(store)] == [RepairState.REJECTED]


def test_a_drain_that_a_fault_of_the_node_asked_for_leaves_the_device_degraded_when_it_is_cancelled() -> None:
    """Protects: nothing is placed on a device of a faulty node because somebody cancelled its drain."""
    store = shop()
    fault(store, "n1", REBOOT)
    store.settle(world())
    drain = store.state().drains[drains(store)[G].id]
    assert drain.record.state is DrainState.EVACUATING
    assert store.apply(cancellation(store.state(), store.settings, drain, "ada", "let it finish", store.now))
    assert store.health(G).state is HealthState.DEGRADED


def test_a_borrowed_device_stays_out_for_a_fault_of_its_node() -> None:
    """Protects: what was drained for the reboot of its node is not given back while the node itself calls it out."""
    store = shop(reboot_node=Consent.CONFIRM)
    fault(store, G, REBOOT)
    store.settle()
    decide(store)
    store.settle()
    fault(store, "n1", Action.DRAIN)
    answer(store, RepairState.FAILED)
    store.run(60_000, step=10_000)
    assert store.out() == {f"n1/gpu{s}" for s in range(8)}
    assert len(store.records("drains")) == 8, "none was given back in between"
    assert not any(d.maintenance for d in store.records("drains"))


def test_a_reboot_takes_no_more_out_than_the_budgets_allow_and_rejected_frees_what_it_took() -> None:
    store = fleet(quick(budgets=(BudgetPolicy("region", 0.25, 1),), repair=RepairPolicy(reboot_node=Consent.AUTO)))
    fault(store, G, REBOOT)
    store.run(60_000, step=10_000)
    assert len(store.out()) == 4 and repairs(store)[0].state is RepairState.APPROVED
    decide(store, approve=False)
    store.run(120_000, step=10_000)
    assert store.out() == {G} and used(store) == {G} and not store.records("drain-requests")


# -- tickets ----------------------------------------------------------------------------------------------------------


def test_a_fault_of_a_whole_node_is_one_ticket() -> None:
    store = shop(ticket=Consent.AUTO, ticket_url="https://desk.example/t")
    fault(store, "n1", REPLACE)
    store.settle()
    (record,) = repairs(store)
    assert (record.node, record.device, record.kind) == ("n1", "", RepairKind.TICKET)
    held = store.state().repairs[record.id]
    assert store.apply(to(store.keys, held, RepairState.DONE, "ticket 7 is open", store.ledger))
    store.run(600_000, step=60_000)
    assert len(repairs(store)) == 1 and len(store.out()) == 8


def test_a_worn_card_is_a_ticket_once() -> None:
    store = shop(ticket=Consent.AUTO, ticket_url="https://desk.example/t")
    fault(store, G, REPLACE)
    store.settle()
    (record,) = repairs(store)
    assert (record.kind, record.state, record.command) == (
        RepairKind.TICKET, RepairState.APPROVED, "https://desk.example/t"
    )  # fmt: skip
    held = store.state().repairs[record.id]
    assert store.apply(to(store.keys, held, RepairState.DONE, "ticket 7 is open", store.ledger))
    store.run(600_000, step=30_000)
    assert len(repairs(store)) == 1 and store.health(G).state is HealthState.DRAINED
    assert not repairs(shop(ticket=Consent.AUTO)), "without an address there is no desk"


# -- self-tests -------------------------------------------------------------------------------------------------------


def _on_probation(store: RegionStore) -> None:
    fault(store, G, RESET)
    store.settle()
    decision = uncordon(store.state(), store.settings, G, "ada", "card reseated", store.now)
    assert decision is not None and store.apply(decision)
    store.settle()


def test_service_begins_after_a_passed_self_test_and_a_quiet_time() -> None:
    store = shop(self_test="builtin")
    _on_probation(store)
    (record,) = repairs(store)
    assert (record.kind, record.state, record.command) == (RepairKind.SELF_TEST, RepairState.RUNNING, "builtin")
    store.run(120_000, step=10_000)
    assert store.health(G).state is HealthState.PROBATION, "quiet for long, and not tested"
    answer(store, RepairState.DONE, "passed: 9 products")
    store.settle()
    tested = store.ledger
    store.run(60_000, step=10_000)
    healthy = store.health(G)
    assert healthy.state is HealthState.HEALTHY and "self-test passed" in healthy.reason
    assert healthy.tested_ms == tested and not used(store)
    store = shop(self_test="builtin")
    _on_probation(store)
    answer(store, RepairState.DONE)
    store.run(50_000, step=10_000)
    assert store.health(G).state is HealthState.PROBATION, "tested, and not quiet for long enough"
    store.run(20_000, step=10_000)
    assert store.health(G).state is HealthState.HEALTHY


def test_who_fails_the_self_test_is_drained_again_on_a_finding() -> None:
    store = shop(self_test="builtin")
    _on_probation(store)
    answer(store, RepairState.FAILED, "a matrix product is wrong")
    store.run(300_000, step=20_000)
    assert store.health(G).state is HealthState.DRAINED and len(store.records("drains")) == 2
    failed = next(f for f in store.records("findings") if f.code == "self-test-failed")
    assert failed.active and "a matrix product is wrong" in failed.sentence
    decision = uncordon(store.state(), store.settings, G, "ada", "memory swapped", store.now)
    assert decision is not None and store.apply(decision)
    store.settle()
    assert repairs(store)[-1].state is RepairState.RUNNING, "returned by a human, it is tested anew"
    answer(store, RepairState.DONE)
    store.run(70_000, step=10_000)
    assert store.health(G).state is HealthState.HEALTHY


@pytest.mark.parametrize("revision", [100, 985])
def test_a_test_that_was_lost_is_neither_passed_nor_failed_and_tried_ever_more_rarely(revision: int) -> None:
    """Protects: the newest attempt counts, also where ids, which end with a revision, sort otherwise."""
    store = shop(self_test="builtin", self_test_timeout_ms=5_000)
    store.revision = max(store.revision, revision)
    _on_probation(store)
    store.run(400_000, step=5_000)
    tried = repairs(store)
    assert store.health(G).state is HealthState.PROBATION and 4 <= len(tried) <= 7
    gaps = [b.proposed_ms - a.proposed_ms for a, b in itertools.pairwise(tried)]
    assert gaps == sorted(gaps) and gaps[-1] > 2 * gaps[0]
    assert not [f for f in store.records("findings") if f.code == "self-test-failed"]


moves = st.lists(
    st.sampled_from(["xid", "boot", "wait", "answer", "fail", "approve", "reject", "uncordon", "job", "free", "race"]),
    max_size=40,
)


@hypothesis_settings(max_examples=80, deadline=None)
@given(moves)
def test_no_history_repairs_what_is_in_use_or_in_service(history: list[str]) -> None:
    """Protects: in every history a repair begins only on a device that is out of service and empty at that revision,
    two never overlap on one node, and none is proposed more often than the policy allows per drain."""
    store = fleet(quick(budgets=ROOMY, repair=RepairPolicy(
        reset_device=Consent.AUTO, reboot_node=Consent.CONFIRM, self_test="builtin", timeout_ms=20_000,
        self_test_timeout_ms=20_000,
    )))  # fmt: skip
    on: GlobalState = GlobalState()
    for act in history:
        if act == "xid":
            fault(store, G, RESET)
        elif act == "boot":
            store.commit(store.event("n1", kind=EventKind.BOOT, age_ms=0))
        elif act == "wait":
            store.wait(15_000)
        elif act in ("answer", "fail"):
            if any(r.state is RepairState.RUNNING for r in repairs(store)):
                answer(store, RepairState.DONE if act == "answer" else RepairState.FAILED)
        elif act in ("approve", "reject"):
            if any(r.state is RepairState.PROPOSED for r in repairs(store)[-1:]):
                decide(store, act == "approve")
        elif act == "uncordon":
            decision = uncordon(store.state(), store.settings, G, "ada", "back", store.now)
            assert decision is None or store.apply(decision)
        elif act in ("job", "free"):
            on = world(stopped=act == "free")
        store.settle(on)
        running = [r for r in repairs(store) if r.state is RepairState.RUNNING]
        assert len({r.node for r in running}) == len(running)
        in_service = store.health(G).state in (HealthState.HEALTHY, HealthState.SUSPECT)
        assert not (running and in_service), "nothing is done to what is in service"
    for decision in store.applied:
        if decision.step == "repair.begin":
            assert decision.guards, "it compares what it was decided on"
    by_drain: dict[tuple[str, RepairKind], int] = {}
    for record in repairs(store):
        if record.kind is not RepairKind.SELF_TEST and record.state is not RepairState.EXPIRED:
            key = (record.drain, record.kind)
            by_drain[key] = by_drain.get(key, 0) + 1
    assert all(count <= 2 for count in by_drain.values())
