"""What is remembered from earlier snapshots changes no decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.region import STAGES, disjoint
from failover.domain.eligible import eligible, usable, usable_count
from failover.domain.fit import find_place
from failover.domain.holders import FUTURE, Holders, Room
from failover.domain.indexes import run_key
from failover.domain.occupancy import occupied
from failover.domain.places import NoRoom, Place
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, Epoch, JobId, MigrationId, NodeId, Revision
from gridkeeper.keys import KEYS
from gridkeeper.memo import JOURNAL_STEPS, Journal, Memo, Published, differing
from gridkeeper.records.common import Desired
from gridkeeper.records.fleet import CordonReason, CordonRecord, HealthState
from gridkeeper.records.jobs import (
    JobSpec,
    MigrationKind,
    MigrationRecord,
    MigrationState,
    OwnershipRecord,
    ReservationRecord,
    Revoke,
    RunPhase,
    RunRecord,
)
from gridkeeper.snapshot import GlobalState, RegionState
from tests.unit.applier import EAST, RegionStore, quick

NODES, GPUS = 4, 3


def _steady(state: RegionState, last: RegionState | None, memo: Memo) -> RegionState:
    """As a mirror shows it: a kind in which nothing has changed is the very same mapping."""
    kept: dict[str, Any] = {}
    for field in fields(state):
        new, old = getattr(state, field.name), getattr(last, field.name) if last else None
        same = isinstance(new, dict) and old is not None and new.keys() == old.keys()
        if same and all(new[key] is old[key] for key in new):
            kept[field.name] = old
    return replace(state, **kept, memo=memo)


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("xid"), st.integers(0, NODES * GPUS - 1), st.sampled_from([13, 48, 79])),
        st.tuples(st.just("session"), st.integers(0, NODES - 1), st.booleans()),
        st.tuples(st.just("cordon"), st.integers(0, NODES * GPUS - 1), st.booleans()),
        st.tuples(st.just("card"), st.integers(0, NODES * GPUS - 1), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.sampled_from([100, 11_000, 90_000]), st.none()),
    ),
    min_size=1,
    max_size=12,
)


def _do(store: RegionStore, devices: list[DeviceId], what: str, which: int, how: Any) -> None:
    match what:
        case "xid":
            store.xid(devices[which], how)
        case "session":
            store.session(f"n{which + 1}", how)
        case "cordon":
            reason = CordonReason("me", "why", store.ledger, 0)
            cordon = CordonRecord(devices[which], (reason,)) if how else None
            store.write((store.keys.cordon(devices[which]), cordon))
        case "card":
            device = devices[which]
            rack = store.items[store.keys.device(device)].record.rack
            store.write((store.keys.device(device), store.device(device, rack, uuid=f"GPU-{how}")))
        case "wait":
            store.wait(which)


@settings(max_examples=60)
@given(ACTS)
def test_a_region_decides_the_same_with_and_without_memory(acts: list[tuple[str, int, Any]]) -> None:
    """Protects: no decision, ledger and placement included, rests on something remembered that is not so any more."""
    store, memo, last = RegionStore(quick()), Memo(), None
    devices, world = store.fleet(NODES, GPUS, racks=2), GlobalState()
    for what, which, how in acts:
        _do(store, devices, what, which, how)
        for stage in STAGES * 2:
            fresh = store.state()
            last = _steady(fresh, last, memo)
            decided = disjoint(stage.decide(fresh, world, store.settings, store.now))
            assert decided == disjoint(stage.decide(last, world, store.settings, store.now))
            assert dict(eligible(last)) == dict(eligible(fresh))
            assert usable_count(last) == sum(usable(fresh, device) for device in fresh.devices)
            for decision in decided:
                assert store.apply(decision)


def _naive(
    state: RegionState, need: int, model: str, job: JobId, candidates: Mapping[NodeId, list[DeviceId]], holders: Holders
) -> Place | str:
    """All nodes looked at, by the rule as it is written down: fewest free devices left over, then by name."""
    found: list[tuple[int, str, tuple[DeviceId, ...]]] = []
    most = 0
    for node, devices in candidates.items():
        free = [
            d
            for d in devices
            if not holders.others(d, job)
            and holders.by_device.get(d, {}).get(job) != 0
            and (not model or state.devices[d].record.model == model)
        ]
        most = max(most, len(free))
        if len(free) >= need:
            found.append((len(free) - need, node, tuple(sorted(free)[:need])))
    if not found:
        return f"most: {most}"
    _, name, chosen = min(found)
    return Place(NodeId(name), chosen)


HOLDS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 23), st.sampled_from([0, 5]), st.booleans()), max_size=30
)


@given(HOLDS, st.integers(1, 5), st.sampled_from(["", "H100", "A100"]))
def test_a_place_is_found_as_if_every_node_were_looked_at(
    holds: list[tuple[str, int, int, bool]], need: int, model: str
) -> None:
    """Protects: where a job goes does not depend on how the search for room is sped up, while devices are given away
    and come free again."""
    store = RegionStore(quick())
    devices = store.fleet(6, 4)
    store.settle()
    state = store.state()
    holders = Holders()
    room = Room(eligible(state), holders)
    for name, index, since, given_up in holds:
        holders.add(JobId(name), (devices[index],), since)
        if given_up:
            holders.drop(JobId(name), (devices[index],))
    spec = JobSpec(JobId("a"), "default", ("x",), (), "", need, model, (), False, False, 0, 0)
    migration = MigrationRecord(
        **{field.name: None for field in fields(MigrationRecord)}
        | {"id": MigrationId("m"), "job": JobId("a"), "kind": MigrationKind.START, "state": MigrationState.PLANNED}
    )
    place = find_place(state, GlobalState(), spec, migration, room, holders)
    expected = _naive(state, need, model, JobId("a"), eligible(state), holders)
    if isinstance(place, NoRoom):
        assert isinstance(expected, str) and expected in place.sentence and EAST in place.sentence
    else:
        assert place.places == (expected,)


NAMES = st.sets(st.integers(0, 9), max_size=4)


@given(st.lists(st.tuples(NAMES, NAMES), max_size=12), st.data())
def test_what_differs_between_two_published_mappings_is_named(
    steps: list[tuple[set[int], set[int]]], data: st.DataObject
) -> None:
    """Protects: no change is missed by who looks only at what has changed, however long ago the last look was, forwards
    or backwards."""
    journal, held = Journal[int](), dict[int, object]()
    published = [Published(held, journal, frozenset())]
    for written, deleted in steps:
        held.update((name, object()) for name in written)
        for name in deleted:
            held.pop(name, None)
        published.append(Published(held, journal, frozenset(written | deleted)))
    old, new = data.draw(st.sampled_from(published)), data.draw(st.sampled_from(published))
    different = {name for name in {*old, *new} if old.get(name) is not new.get(name)}
    assert different <= set(differing(old, new))
    assert different == set(differing(dict(old), dict(new)))


def test_a_journal_forgets_and_then_mappings_are_compared() -> None:
    """Protects: a journal is bounded, and what it has forgotten is found all the same."""
    journal, held = Journal[int](), dict[int, object]()
    first = Published(held, journal, frozenset())
    for name in range(JOURNAL_STEPS + 5):
        held[name] = object()
        last = Published(held, journal, frozenset({name}))
    assert journal.between(first.number, last.number) is None
    assert set(differing(first, last)) == set(range(JOURNAL_STEPS + 5))


def _job_world(job: JobId, node: int, end: str) -> tuple[OwnershipRecord, RunRecord]:
    devices = tuple(DeviceId(f"n{node}/gpu{index}") for index in range(2))
    spec = JobSpec(job, "default", ("x",), (), "", 2, "", (), False, False, 0, 0)
    revoke = Revoke(MigrationId("m"), "why", 0) if end == "revoked" else None
    owner = OwnershipRecord(
        job, Epoch(1, 1), EAST, NodeId(f"n{node}"), devices, Desired.RUN, 0, revoke, -1, "", MigrationId("m"), spec, ""
    )  # fmt: skip
    phase = RunPhase.EXITED if end == "exited" else RunPhase.RUNNING
    run = RunRecord(
        job, Epoch(1, 1), EAST, NodeId(f"n{node}"), phase, 0, 0, end == "exited", True, -1, 0, 0, 0, 0, 0, 0, 0.0, ""
    )
    return owner, run


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["owned", "revoked", "exited", "reserve", "release", "assume", "wait", "drain"]),
        st.sampled_from("abc"),
        st.integers(1, 4),
    ),
    max_size=16,
)


@settings(max_examples=100)
@given(MOVES)
def test_who_holds_what_is_the_same_with_and_without_memory(moves: list[tuple[str, str, int]]) -> None:
    """Protects: no device is given to two jobs, and none stays held for ever, because of something remembered: not of
    an owner that only time releases, nor of what a decision assumed and nobody wrote."""
    store, memo = RegionStore(quick()), Memo()
    store.fleet(4, 2)
    store.settle()
    reservations: dict[JobId, Versioned[ReservationRecord]] = {}
    ownership: dict[JobId, Versioned[OwnershipRecord]] = {}
    runs: dict[str, Versioned[RunRecord]] = {}
    health, mono_ms, revision = store.state().health, 0, 100
    for what, name, node in moves:
        job, revision = JobId(name), revision + 1
        devices = tuple(DeviceId(f"n{node}/gpu{index}") for index in range(2))
        match what:
            case "owned" | "revoked" | "exited":
                owner, run = _job_world(job, node, what)
                ownership = {**ownership, job: Versioned(owner, Revision(revision), Revision(1), mono_ms)}
                key = run_key(job, Epoch(1, 1)).removeprefix(KEYS.prefix("runs"))
                runs = {**runs, key: Versioned(run, Revision(revision), Revision(1), mono_ms)}
            case "reserve":
                record = ReservationRecord(job, MigrationId("m"), NodeId(f"n{node}"), devices, 0)
                reservations = {**reservations, job: Versioned(record, Revision(revision), Revision(1), mono_ms)}
            case "release":
                reservations = {key: held for key, held in reservations.items() if key != job}
            case "wait":
                mono_ms += 20_000
            case "drain":
                device = devices[0]
                ill = replace(health[device].record, state=HealthState.DRAINING)
                health = {**health, device: replace(health[device], record=ill)}
        state = replace(store.state(), health=health, reservations=reservations, memo=memo)
        world = GlobalState(ownership=ownership, runs=runs)
        room, holders = occupied(state, world, mono_ms, store.settings.timings)
        other_room, others = occupied(replace(state, memo=Memo()), world, mono_ms, store.settings.timings)
        assert holders.by_device == others.by_device
        assert {job: held for job, held in holders.by_job.items() if held} == others.by_job
        assert sorted(room.counts()) == sorted(other_room.counts())
        assert {node: room.free(node) for node in room.candidates} == {
            node: other_room.free(node) for node in other_room.candidates
        }
        if what == "assume":
            holders.add(job, devices, FUTURE - 1)
            holders.drop(job, devices[:1])
