"""The cache of objects rebuilds little, and is still never wrong: after any changes it holds what building anew gives,
and its deltas lead from any older table to the newest."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.rpc.listing import scene_of
from controlplane.rpc.objects import DELTAS, SPECS, ObjectCache, objects_of
from gridkeeper.ids import JobId, NodeId
from gridkeeper.keys import KEYS
from gridkeeper.records.fleet import CordonReason, CordonRecord, HealthState, NodeState
from gridkeeper.records.jobs import JobState, ReservationRecord
from gridkeeper.v1 import api_pb2
from gridkeeper.v1.api_pb2 import Object
from tests.fixtures import records
from tests.fixtures.grid import FakeGrid

NODES = ("east-1", "east-2")
DEVICES = tuple(f"{node}/gpu{i}" for node in NODES for i in range(2))
KINDS = (api_pb2.KIND_NODE, api_pb2.KIND_DEVICE, api_pb2.KIND_INCIDENT, api_pb2.KIND_JOB, api_pb2.KIND_CHECKPOINT)

WHAT = (
    *("node", "no node", "device", "no device", "health", "no health", "liveness", "cordon", "no cordon"),
    *("own", "job over", "reserve", "no reserve", "incident", "no incident", "head", "checkpoint"),
)
CHANGES = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 3)), max_size=25)


def _change(grid: FakeGrid, what: str, which: int) -> None:
    device, node = DEVICES[which], NodeId(NODES[which % 2])
    target = device if which < 2 else node
    job = JobId("train")
    held = records.device(device)
    match what:
        case "node":
            grid.put(grid.keys.node(node), records.node(node))
        case "no node":
            grid.delete(grid.keys.node(node))
        case "device":
            grid.put(grid.keys.device(held.id), held)
        case "no device":
            grid.delete(grid.keys.device(held.id))
        case "health":
            state = list(HealthState)[which]
            grid.put(grid.keys.health(held.id), records.health(device, state))
        case "no health":
            grid.delete(grid.keys.health(held.id))
        case "liveness":
            state_of_node = NodeState.ALIVE if which < 2 else NodeState.UNREACHABLE
            grid.put(grid.keys.liveness(node), records.liveness(node, state_of_node))
        case "cordon":
            reason = CordonReason("user/ann", "test", records.T0, 0)
            grid.put(grid.keys.cordon(target), CordonRecord(target, (reason,)))
        case "no cordon":
            grid.delete(grid.keys.cordon(target))
        case "own":
            grid.put(KEYS.job(job), records.job())
            grid.put(KEYS.ownership(job), records.ownership(devices=(device,)))
        case "job over":
            grid.put(KEYS.job(job), records.job(state=JobState.STOPPED))
        case "reserve":
            reserved = ReservationRecord(job, records.migration().id, node, (held.id,), records.T0)
            grid.put(grid.keys.reservation(job), reserved)
        case "no reserve":
            grid.delete(grid.keys.reservation(job))
        case "incident":
            grid.put(grid.keys.incident(f"i{which}"), records.incident(f"i{which}", device))
        case "no incident":
            grid.delete(grid.keys.incident(f"i{which}"))
        case "head":
            grid.put(KEYS.head(job), records.head(step=which))
        case "checkpoint":
            grid.put(KEYS.checkpoint(job, which), records.checkpoint(step=which))


@settings(max_examples=150, deadline=None)
@given(CHANGES)
def test_the_cache_agrees_with_building_anew_and_its_deltas_with_the_tables(changes: list[tuple[str, int]]) -> None:
    grid, cache = FakeGrid("east"), ObjectCache()
    follower: dict[int, dict[str, Object]] = {}
    versions: dict[int, int] = {}
    for kind in KINDS:
        first = cache.table(kind, scene_of(grid))
        follower[kind], versions[kind] = dict(first.objects), first.version
    for step, (what, which) in enumerate(changes):
        _change(grid, what, which)
        if step % 3 == 1:
            continue  # a watcher does not look after every change
        for kind in KINDS:
            table = cache.table(kind, scene_of(grid))
            assert dict(table.objects) == dict(objects_of(kind, scene_of(grid)))
            assert list(table.objects) == list(objects_of(kind, scene_of(grid)))
            deltas = cache.since(kind, versions[kind])
            assert deltas is not None
            for delta in deltas:
                for name in (*delta.put, *delta.gone):
                    if name in table.objects:
                        follower[kind][name] = table.objects[name]
                    else:
                        follower[kind].pop(name, None)
            versions[kind] = table.version
            assert follower[kind] == dict(table.objects)


def test_a_watcher_too_far_behind_has_to_compare() -> None:
    grid, cache = FakeGrid("east"), ObjectCache()
    start = cache.table(api_pb2.KIND_INCIDENT, scene_of(grid)).version
    for i in range(DELTAS + 1):
        grid.put(grid.keys.incident("i1"), records.incident())
        cache.table(api_pb2.KIND_INCIDENT, scene_of(grid))
        assert (cache.since(api_pb2.KIND_INCIDENT, start) is None) is (i >= DELTAS)


def test_every_kind_but_the_audit_trail_is_cached() -> None:
    assert set(SPECS) | {api_pb2.KIND_AUDIT} == {number for number in api_pb2.Kind.values() if number}
