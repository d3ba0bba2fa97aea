"""Who besides the replica's ear can say whether a node lives: peers, the job's progress, the kernel's last words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controlplane.domain.witnesses import MAX_QUESTIONS
from failover.domain.gang import unheard
from failover.domain.requests import SILENT
from gridkeeper.catalogue.codes import HostCode
from gridkeeper.decision import Versioned
from gridkeeper.ids import Epoch, JobId, NodeId, RegionId, Revision
from gridkeeper.records.care import ProbeRecord, WitnessRecord
from gridkeeper.records.faults import IncidentRecord, IncidentState
from gridkeeper.records.fleet import EventKind, HealthState, LivenessRecord, NodeState
from gridkeeper.records.jobs import RunPhase, RunRecord
from gridkeeper.snapshot import GlobalState
from tests.unit.applier import RegionStore, quick

LIMIT, TAKEOVER, WITNESS = 10_000, 35_000, 2_000
BOOT = "boot"


def fleet(count: int = 8, racks: int = 4, address: str = "10.0.0.1:7444") -> RegionStore:
    store = RegionStore(quick())
    store.fleet(nodes=count, gpus=1, racks=racks)
    for node in list(store.state().nodes):
        record = store.state().nodes[node].record
        store.write((store.keys.node(node), replace(record, probe_address=address)))
    store.settle()
    store.run(20_000, step=10_000)
    return store


def node(store: RegionStore, name: str) -> LivenessRecord:
    [found] = [r for r in store.records("liveness") if r.node == name]
    return found


def asked(store: RegionStore, name: str) -> ProbeRecord | None:
    return next((p for p in store.records("probes") if p.node == name), None)


def answer(store: RegionStore, name: str, peer: NodeId, **says: object) -> None:
    """As the replica that holds the peer's stream writes it."""
    question = asked(store, name)
    assert question is not None and peer in question.peers
    values: dict[str, object] = {"reached": False, "rtt_us": -1, "detail": "timed out", "at_ms": store.ledger}
    record = WitnessRecord(NodeId(name), peer, question.round, **(values | says))  # type: ignore[arg-type]
    store.write((store.keys.witness(NodeId(name), peer), record))


def silent(store: RegionStore, name: str, silent_ms: int = 3_400) -> tuple[NodeId, ...]:
    """The replica marks the node silent; the peers that are asked about it. Answers come later than the question."""
    store.session(name, False, silent_ms=silent_ms)
    store.settle()
    question = asked(store, name)
    store.wait(5)
    return question.peers if question else ()


REACHED = {"reached": True, "rtt_us": 900, "detail": "", "boot_id": BOOT}


def test_peers_that_get_no_answer_either_convict_without_the_full_limit() -> None:
    """Protects: a dead node is found in the time that its link's silence and one question take."""
    store = fleet()
    peers = silent(store, "n1")
    for peer in peers:
        answer(store, "n1", peer)
    store.settle()
    record = node(store, "n1")
    assert record.state is NodeState.UNREACHABLE
    assert f"{len(peers)} of {len(peers)} peers got no answer either" in record.reason
    assert [w.partition(" ")[0] for w in record.witnesses] == list(peers)
    assert not store.records("drains") and store.health("n1/gpu0").state is HealthState.UNKNOWN


def test_one_of_the_peers_asked_shares_the_rack_and_the_others_do_not() -> None:
    """Protects: a rack's switch can be told from the node, and one bad rack cannot convict."""
    store = fleet()
    racks = [store.state().nodes[peer].record.rack for peer in silent(store, "n1")]
    assert len(racks) == 3 == len(set(racks)) and store.state().nodes[NodeId("n1")].record.rack == racks[0]


@pytest.mark.parametrize("others", [{}, {"refused": True, "detail": "connection refused"}])
def test_one_peer_that_reached_it_keeps_it_alive_until_its_jobs_cannot_have_been_renewed(
    others: dict[str, object],
) -> None:
    """Protects: lost contact alone never acts while a witness says alive; and a node that only its peers reach does
    not hold its jobs for ever: beyond R its agent has ended them."""
    store = fleet()
    first = silent(store, "n1")
    began = store.mono - 5
    while node(store, "n1").state is NodeState.ALIVE and store.mono - began < 2 * TAKEOVER:
        question = asked(store, "n1")
        assert question is not None
        for index, peer in enumerate(question.peers):
            if not any(w.peer == peer and w.round == question.round for w in store.records("witnesses")):
                answer(store, "n1", peer, **(REACHED if index == 1 else others))
        store.settle()
        store.wait(250)
    record = node(store, "n1")
    assert record.state is NodeState.UNREACHABLE and "cannot have renewed" in record.reason
    assert TAKEOVER <= store.mono - began <= TAKEOVER + 2 * WITNESS
    assert asked(store, "n1").peers != first, "others are asked in turn"  # type: ignore[union-attr]
    assert len(store.records("witnesses")) <= 3
    written = [d for d in store.applied if d.step == "health.step" and "there are witnesses" in d.sentence]
    assert len(written) == 1, "the judgement is written when it changes, not in each round"


def test_a_refused_probe_convicts_nobody_early() -> None:
    """Protects: an agent that restarts within the limit is not taken for a dead node, though peers get no answer."""
    store = fleet()
    silent(store, "n1", silent_ms=0)
    for second in range(1, 15):
        told = {(w.peer, w.round) for w in store.records("witnesses")}
        question = asked(store, "n1")
        assert question is not None
        store.wait(5)
        for peer in question.peers:
            if (peer, question.round) not in told:
                answer(store, "n1", peer, refused=True, detail="connection refused")
        store.run(1_000)
        if second < LIMIT // 1_000 - 1:
            assert node(store, "n1").state is NodeState.ALIVE
    assert node(store, "n1").state is NodeState.UNREACHABLE
    assert "its host answers, its agent does not" in node(store, "n1").reason


def test_silence_that_nobody_corroborates_takes_the_full_limit() -> None:
    """Protects: peers that do not report (old agents, no probe address) leave the old rule."""
    for address in ("", "10.0.0.1:7444"):
        store = fleet(address=address)
        peers = silent(store, "n1")
        assert bool(peers) is bool(address)
        store.run(LIMIT - 1_000)
        assert node(store, "n1").state is NodeState.ALIVE
        store.run(2_000 + 2 * WITNESS)
        assert node(store, "n1").state is NodeState.UNREACHABLE


def test_a_stream_that_just_ended_is_not_convicted_before_three_heartbeats() -> None:
    """Protects: the floor also holds where the end of the stream was seen at once."""
    store = fleet()
    for peer in silent(store, "n1", silent_ms=0):
        answer(store, "n1", peer)
    store.run(2_000)
    assert node(store, "n1").state is NodeState.ALIVE
    store.run(2_000)
    assert node(store, "n1").state is NodeState.UNREACHABLE


def test_another_boot_id_is_proof_that_the_node_failed() -> None:
    """Protects: failed is said only on positive evidence, and then at once."""
    store = fleet()
    answer(store, "n1", silent(store, "n1")[0], **(REACHED | {"boot_id": "other"}))
    store.settle()
    assert node(store, "n1").state is NodeState.FAILED
    assert "booted anew (boot id other, before: boot)" in node(store, "n1").reason
    assert not store.records("drains")
    assert NodeState.FAILED in SILENT, "its jobs go on elsewhere"


def test_a_node_that_says_hello_after_a_reboot_had_failed_even_if_nobody_noticed() -> None:
    """Protects: a reboot within the limit leaves its trace in the judgement."""
    store = fleet()
    record = store.state().nodes[NodeId("n1")].record
    store.write((store.keys.node(NodeId("n1")), replace(record, boot_id="other")))
    store.session("n1", True)
    store.settle()
    assert node(store, "n1").state is NodeState.ALIVE
    assert "booted anew, so it had failed" in node(store, "n1").reason
    count = len(store.applied)
    store.run(5_000)
    assert all("booted" not in d.sentence for d in store.applied[count:]), "said once"


@pytest.mark.parametrize(("age_ms", "failed"), [(1_000, True), (120_000, False)])
def test_a_kernel_panic_right_before_the_silence_is_proof(age_ms: int, failed: bool) -> None:
    """Protects: a panic of long ago does not explain today's silence."""
    store = fleet()
    record = store.state().nodes[NodeId("n1")].record
    store.write((store.keys.node(NodeId("n1")), replace(record, registered_wall_ms=store.ledger - 10**6)))
    panic = store.event("n1", HostCode.KERNEL_PANIC, EventKind.HOST, "Kernel panic - not syncing", age_ms=age_ms)
    store.commit(panic)
    store.settle()
    store.session("n1", False, silent_ms=500)
    store.settle()
    assert (node(store, "n1").state is NodeState.FAILED) is failed


def progress(store: RegionStore, name: str, fresh: bool = True) -> GlobalState:
    run = RunRecord(
        JobId("train"), Epoch(1, 1), RegionId("east"), NodeId(name), RunPhase.RUNNING, 0, 0, False, False, -1, 1, 120,
        store.ledger, store.ledger, store.ledger, 0, 1.0, "",
    )  # fmt: skip
    held = Versioned(run, Revision(7), Revision(7), store.mono)
    return GlobalState(fresh=fresh, runs={"train/000001.0000000001": held})


def test_progress_that_arrives_by_another_way_is_a_witness() -> None:
    """Protects: a job that makes steps keeps its node alive, while they arrive; not from a store that is not heard."""
    store = fleet(address="")
    silent(store, "n1")
    for _ in range(15):
        store.run(1_000, progress(store, "n1"))
    assert node(store, "n1").state is NodeState.ALIVE
    assert "job train reported step 120" in node(store, "n1").witnesses[0]
    store.run(1_000, progress(store, "n1", fresh=False))
    assert node(store, "n1").state is NodeState.UNREACHABLE


def test_what_is_written_of_a_gang_says_nothing_of_a_single_node() -> None:
    """Protects: one member's report, which changes the gang's record, keeps no other one's node alive."""
    store = fleet(address="")
    silent(store, "n1")
    for _ in range(15):
        world = progress(store, "n1")
        [(name, run)] = world.runs.items()
        gang = replace(run.record, members=(unheard(NodeId("n1")), unheard(NodeId("n2"))))
        store.run(1_000, replace(world, runs={name: replace(run, record=gang)}))
    assert node(store, "n1").state is NodeState.UNREACHABLE


def test_a_leader_that_was_held_up_convicts_nobody() -> None:
    """Protects: what a leader timed while it did not keep its own time counts for nothing."""
    store = fleet(address="")
    silent(store, "n1")
    store.wait(60_000)
    store.steady = store.mono
    store.settle()
    store.run(LIMIT - 1_000)
    assert node(store, "n1").state is NodeState.ALIVE
    store.run(1_000)
    assert node(store, "n1").state is NodeState.UNREACHABLE


def test_a_new_leader_asks_for_itself() -> None:
    """Protects: answers that an earlier leader got may be old, though they are in the store."""
    store = fleet()
    for peer in silent(store, "n1"):
        answer(store, "n1", peer)
    store.mono = 5_000  # another host took over: it has just loaded the store
    for key, held in store.items.items():
        store.items[key] = type(held)(held.record, held.revision, held.created, store.mono)
    store.settle()
    assert node(store, "n1").state is NodeState.ALIVE
    store.run(WITNESS + 1_000)
    question = asked(store, "n1")
    assert question is not None and question.round == 2
    store.wait(5)
    for peer in question.peers:
        answer(store, "n1", peer)
    store.settle()
    assert node(store, "n1").state is NodeState.UNREACHABLE


def test_questions_go_when_the_node_is_heard_again_and_are_bounded_when_many_are_silent() -> None:
    """Protects: the store holds probes of silent nodes only, and a mass silence does not flood the living."""
    store = fleet()
    for peer in silent(store, "n1"):
        answer(store, "n1", peer, **REACHED)
    store.session("n1", True)
    store.settle()
    assert not store.records("probes") and not store.records("witnesses")
    big = fleet(count=2 * MAX_QUESTIONS + 200, racks=40)
    for number in range(MAX_QUESTIONS + 50):
        big.session(f"n{number + 1}", False, silent_ms=3_400)
    big.settle()
    assert len(big.records("probes")) == MAX_QUESTIONS


def contact(store: RegionStore) -> list[IncidentRecord]:
    return [i for i in store.records("incidents") if i.fault_class == "contact"]


def test_a_silent_rack_is_one_incident() -> None:
    """Protects: one cause, one incident; the devices are unknown and nothing is drained."""
    store = fleet(count=12, racks=4)
    members = [n for n, held in store.state().nodes.items() if held.record.rack == "rack-0"]
    for name in members:
        store.session(name, False, silent_ms=3_400)
    store.run(LIMIT + 2 * WITNESS + 1_000)
    [incident] = contact(store)
    assert incident.subject == "rack:rack-0" and incident.count == 3 and "3 of 3 nodes at once" in incident.title
    assert {node(store, n).state for n in members} == {NodeState.UNREACHABLE}
    assert {node(store, n).pattern for n in members} == {"rack rack-0"}
    assert {store.health(f"{n}/gpu0").state for n in members} == {HealthState.UNKNOWN} and not store.records("drains")
    for name in members[:2]:
        store.session(name, True)
    store.settle()
    assert contact(store)[0].state is IncidentState.OPEN
    store.session(members[2], True)
    store.settle()
    assert [i.state for i in contact(store)] == [IncidentState.RESOLVED]


def test_nodes_of_a_rack_that_fell_silent_hours_apart_are_no_group() -> None:
    """Protects: the classification speaks of simultaneous silence."""
    store = fleet(count=12, racks=4)
    first, second = [n for n, held in store.state().nodes.items() if held.record.rack == "rack-0"][:2]
    store.session(first, False)
    store.run(LIMIT + 5_000)
    store.run(600_000, step=100_000)
    store.session(second, False)
    store.run(LIMIT + 5_000)
    assert not contact(store) and node(store, second).pattern == ""
    assert node(store, second).state is NodeState.UNREACHABLE


@pytest.mark.parametrize(("world", "pattern"), [(True, "region east is silent"), (False, "everything is silent")])
def test_a_silent_region_is_one_incident_and_convicts_nobody(world: bool, pattern: str) -> None:
    """Protects: when everything looks dead the observer is what is broken, and it says so once."""
    store = fleet(count=8)
    for name in store.state().nodes:
        store.session(name, False, silent_ms=3_400)
    for _ in range(40):
        store.run(1_000, GlobalState(fresh=world))
    [incident] = contact(store)
    assert incident.subject == "region:east" and pattern in incident.title
    assert {r.state for r in store.records("liveness")} == {NodeState.ALIVE}
    for name in store.state().nodes:
        store.session(name, True)
    store.settle()
    assert [i.state for i in contact(store)] == [IncidentState.RESOLVED]


says = st.sampled_from(["reached", "refused", "silent", "nothing"])
acts = st.lists(st.tuples(st.lists(says, min_size=3, max_size=3), st.integers(1, 6)), min_size=1, max_size=10)


@hypothesis_settings(max_examples=60, deadline=None)
@given(acts, st.booleans(), st.integers(0, 9))
def test_any_one_live_witness_prevents_every_act(rounds: list[tuple[list[str], int]], held_up: bool, turn: int) -> None:
    """Protects: whatever the others say, and however the leader is disturbed, within R of the silence no node that a
    peer reached in the newest round is convicted, nothing is drained, and nobody is failed without proof."""
    store = fleet()
    silent(store, "n1")
    began = store.mono - 5
    for number, (answers, seconds) in enumerate(rounds):
        question = asked(store, "n1")
        assert question is not None
        words = dict(zip(question.peers, answers, strict=False))
        for peer, word in words.items():
            match word:
                case "reached":
                    answer(store, "n1", peer, **REACHED)
                case "refused":
                    answer(store, "n1", peer, refused=True)
                case "silent":
                    answer(store, "n1", peer)
        if held_up and number == turn:
            store.steady = store.mono
        store.settle()
        record = node(store, "n1")
        assert record.state is not NodeState.FAILED
        if record.state is not NodeState.ALIVE:
            assert "reached" not in answers
            break
        for _ in range(seconds):
            store.wait(1_000)
            before = asked(store, "n1")
            store.settle()
            if asked(store, "n1") != before:
                break  # a new round
            if "reached" in answers and store.mono - began < TAKEOVER:
                assert node(store, "n1").state is NodeState.ALIVE
        store.wait(5)
        if node(store, "n1").state is not NodeState.ALIVE:
            break
    assert not store.records("drains")
