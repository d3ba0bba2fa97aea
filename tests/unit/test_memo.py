"""What is remembered from earlier snapshots changes no decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.region import STAGES, disjoint
from failover.domain.eligible import eligible, usable, usable_count
from failover.domain.fit import NoRoom, Place, find_place
from failover.domain.holders import Holders, Room
from gridkeeper.ids import DeviceId, JobId, MigrationId, NodeId
from gridkeeper.memo import Memo
from gridkeeper.records.fleet import CordonReason, CordonRecord
from gridkeeper.records.jobs import JobSpec, MigrationKind, MigrationRecord, MigrationState
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
        assert place == expected
