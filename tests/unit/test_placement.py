"""Protects placement: only devices that are known to be good, a whole gang on one node, nothing given twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.store.limits import check_txn
from failover.domain.placement import decide_offers, decide_reservations, published_region
from failover.domain.regions import choose_region
from gridkeeper.hearing import in_doubt
from gridkeeper.ids import DeviceId, JobId, NodeId, RegionId, ReplicaId
from gridkeeper.keys import KEYS, RegionKeys
from gridkeeper.policy.model import Policy
from gridkeeper.ports.store import Compare
from gridkeeper.records.faults import DrainState
from gridkeeper.records.fleet import (
    CordonReason,
    CordonRecord,
    HealthState,
    LivenessRecord,
    NodeState,
    SessionRecord,
)
from gridkeeper.records.jobs import JobState, MigrationKind, MigrationState, RegionRecord
from gridkeeper.snapshot import Settings
from tests.unit.failover_world import SETTINGS, Grid, spec_of

EAST, WEST = RegionId("east"), RegionId("west")
KEYS_EAST = RegionKeys(EAST)
GPU0 = DeviceId("east-1/gpu0")


def waiting(sizes: dict[str, dict[str, int]], /, **spec: object) -> Grid:
    """A job whose start waits for this region's devices."""
    grid = Grid(sizes)
    grid.submit(spec_of("train", **spec))
    grid.lead("east")
    grid.lead("west") if "west" in sizes else None
    grid.lead("global")
    grid.lead("global")
    return grid


def place(grid: Grid, where: str = "east") -> tuple[DeviceId, ...]:
    """What the region reserves now."""
    grid.lead(where)
    record = grid.memory.record(RegionKeys(RegionId(where)).reservation(JobId("train")))
    return record.devices if record else ()


def refusal(grid: Grid) -> str:
    grid.lead("east")
    offers = [r for k, (r, _, _) in grid.memory.items.items() if k.startswith(KEYS.prefix("offers"))]
    return offers[0].refusal if offers else ""


def spoil(grid: Grid, how: str) -> None:
    """Make ``east-1/gpu0`` (or its node) no place for new work."""
    memory, now = grid.memory, grid.time_ms
    cordon = (CordonReason("bob", "hands off", now, 0),)
    if how in set(HealthState):
        grid.set_health(GPU0, HealthState(how))
    elif how == "no health record":
        del memory.items[KEYS_EAST.health(GPU0)]
    elif how == "missing":
        memory.put(KEYS_EAST.device(GPU0), replace(memory.record(KEYS_EAST.device(GPU0)), present=False))
    elif how == "swapped":
        memory.put(KEYS_EAST.device(GPU0), replace(memory.record(KEYS_EAST.device(GPU0)), uuid="another card"))
    elif how == "cordoned":
        memory.put(KEYS_EAST.cordon(GPU0), CordonRecord(GPU0, cordon))
    elif how == "node cordoned":
        memory.put(KEYS_EAST.cordon("east-1"), CordonRecord("east-1", cordon))
    elif how == "unreachable":
        node = NodeId("east-1")
        memory.put(KEYS_EAST.liveness(node), LivenessRecord(node, NodeState.UNREACHABLE, now, "silent"))
    elif how == "never judged":
        del memory.items[KEYS_EAST.liveness(NodeId("east-1"))]
    elif how == "session ended":
        node = NodeId("east-1")
        memory.put(KEYS_EAST.session(node), SessionRecord(node, ReplicaId("gone"), "s", True, now))
    elif how == "refused drain":
        grid.drain(GPU0)
        grid.set_health(GPU0, HealthState.HEALTHY)
        key = KEYS_EAST.drain("d-east-1-gpu0")
        memory.put(key, replace(memory.record(key), state=DrainState.REFUSED))
    else:
        raise AssertionError(how)


BAD = (
    *(state.value for state in HealthState if state is not HealthState.HEALTHY),
    "no health record", "missing", "swapped", "cordoned", "node cordoned", "unreachable", "never judged",
    "session ended", "refused drain",
)  # fmt: skip


@pytest.mark.parametrize("how", BAD)
def test_what_is_not_known_to_be_good_gets_no_new_work(how: str) -> None:
    grid = waiting({"east": {"east-1": 2}})
    spoil(grid, how)
    assert place(grid) == ()
    assert "no node of east has 2 free healthy devices" in refusal(grid)


@pytest.mark.parametrize("how", BAD)
def test_a_reservation_that_is_no_longer_good_is_moved_before_it_is_used(how: str) -> None:
    grid = waiting({"east": {"east-1": 2, "east-2": 3}})
    assert place(grid) == ("east-1/gpu0", "east-1/gpu1")
    place(grid)
    offered = KEYS.offer(grid.migrations("train")[0].id)
    assert grid.memory.record(offered).devices == ("east-1/gpu0", "east-1/gpu1")
    spoil(grid, how)
    view = grid.leaders["east"]
    view.look(grid.time_ms)
    state, world = view.region(EAST), view.world()
    assert decide_reservations(state, world, SETTINGS, grid.now("east")) == (), "the ownership may move there yet"
    place(grid)
    assert grid.memory.record(offered) is None, "the offer goes first"
    assert place(grid) == ("east-2/gpu0", "east-2/gpu1")
    grid.lead("east")
    [offer] = [r for k, (r, _, _) in grid.memory.items.items() if k.startswith(KEYS.prefix("offers"))]
    assert (offer.node, offer.devices) == ("east-2", ("east-2/gpu0", "east-2/gpu1"))


def test_a_key_that_does_not_decode_is_unknown_and_gets_no_work() -> None:
    for key in (KEYS_EAST.health(GPU0), KEYS_EAST.cordon("east-1"), KEYS_EAST.liveness(NodeId("east-1"))):
        grid = waiting({"east": {"east-1": 2}})
        view = grid.leaders["east"]
        view.look(grid.time_ms)
        state = replace(view.region(EAST), suspect_keys=frozenset({key}))
        decided = decide_reservations(state, view.world(), SETTINGS, grid.now("east"))
        assert not [d for d in decided if d.step == "place.reserve"]
        [offer] = decide_offers(state, view.world(), SETTINGS, grid.now("east"))
        assert "cannot take train" in offer.sentence


def test_a_gang_stays_on_one_node_and_leaves_large_gaps_whole() -> None:
    grid = waiting({"east": {"east-1": 1, "east-2": 4, "east-3": 3}}, devices=3)
    assert place(grid) == ("east-3/gpu0", "east-3/gpu1", "east-3/gpu2")
    assert place(waiting({"east": {"east-1": 4, "east-2": 4}}, devices=8)) == ()


def large() -> Grid:
    """A gang of 128 devices that waits for its place."""
    grid = waiting({"east": {f"east-{n}": 8 for n in range(16)}}, nodes=16, devices=8)
    grid.leaders["east"].look(grid.time_ms)
    return grid


def test_a_gang_of_any_size_is_reserved_in_one_transaction() -> None:
    """Protects: a store takes so many compares at once; a decision that is larger would be refused for ever."""
    grid = large()
    view = grid.leaders["east"]
    [decision] = decide_reservations(view.region(EAST), view.world(), SETTINGS, grid.now("east"))
    check_txn([Compare(item.key, item.expected) for item in (*decision.guards, *decision.writes)], [], [])
    assert len(place(grid)) == 128


def test_a_device_that_goes_while_a_large_gang_is_reserved_is_never_offered() -> None:
    """Protects: nothing starts on a device that a drain took meanwhile, though nothing compares it."""
    grid = large()
    view = grid.leaders["east"]
    [decision] = decide_reservations(view.region(EAST), view.world(), SETTINGS, grid.now("east"))
    grid.set_health(GPU0, HealthState.DRAINING)
    assert grid.apply(decision)
    assert "has not 16 nodes" in refusal(grid)


def test_what_is_reserved_and_offered_is_not_written_again() -> None:
    grid = waiting({"east": {"east-1": 4}})
    place(grid)
    grid.lead("east")
    grid.leaders["east"].look(grid.time_ms)
    assert [d.step for d in grid.decisions("east")] == []


def test_slots_are_taken_in_natural_order() -> None:
    assert place(waiting({"east": {"east-1": 12}}, devices=11))[-1] == "east-1/gpu10"


def test_the_model_must_match() -> None:
    assert place(waiting({"east": {"east-1": 2}}, model="H100")) != ()
    grid = waiting({"east": {"east-1": 2}}, model="B200")
    assert place(grid) == ()
    assert "of model B200" in refusal(grid)


def test_two_jobs_never_get_the_same_devices() -> None:
    grid = Grid({"east": {"east-1": 4}})
    for name in ("a", "b", "c"):
        grid.submit(spec_of(name))
    grid.run(16)
    states = [grid.job(name).state for name in ("a", "b", "c")]
    assert states == [JobState.RUNNING, JobState.RUNNING, JobState.PENDING]
    assert not set(grid.owner("a").devices) & set(grid.owner("b").devices)


def test_of_two_reservations_of_one_device_only_the_earlier_is_offered() -> None:
    """A leader whose mirror lagged may reserve twice; the offers are made in the order of revisions."""
    grid = Grid({"east": {"east-1": 2}})
    for name in ("a", "b"):
        grid.submit(spec_of(name))
    grid.lead("east")
    grid.lead("global")
    grid.lead("global")
    grid.leaders["east"].look(grid.time_ms)
    reserved = [d for d in grid.decisions("east") if d.step == "place.reserve"]
    assert [d.subject for d in reserved] == ["job/a"]
    for name in ("b", "a"):  # what a lagging decider might have written
        record = replace(reserved[0].writes[0].record, job=JobId(name), migration=f"{name}-e1.0")  # type: ignore[union-attr]
        grid.memory.put(KEYS_EAST.reservation(JobId(name)), record)
    view = grid.leaders["east"]
    view.look(grid.time_ms)
    offers = decide_offers(view.region(EAST), view.world(), SETTINGS, grid.now("east"))
    said = {d.subject: d.sentence for d in offers}
    assert "east offers" in said["migration/b-e1.0"]
    assert "cannot take a" in said["migration/a-e1.0"]


def test_a_reservation_is_released_when_its_migration_goes_elsewhere() -> None:
    grid = waiting({"east": {"east-1": 2}, "west": {"west-1": 2}})
    assert place(grid) != ()
    key = KEYS.migration(grid.migrations("train")[0].id)
    grid.memory.put(key, replace(grid.memory.record(key), target_region=WEST, attempt=2))
    assert place(grid) == ()


def test_nothing_is_released_while_what_it_rests_on_does_not_decode() -> None:
    grid = waiting({"east": {"east-1": 2}})
    assert place(grid) != ()
    view = grid.leaders["east"]
    view.look(grid.time_ms)
    for key in (KEYS.job(JobId("train")), KEYS.migration(grid.migrations("train")[0].id)):
        world = replace(view.world(), suspect_keys=frozenset({key}), jobs=view.world().jobs, migrations={})
        assert decide_reservations(view.region(EAST), world, SETTINGS, grid.now("east")) == ()


def test_nothing_is_decided_while_the_global_store_is_away() -> None:
    grid = waiting({"east": {"east-1": 2}})
    view = grid.leaders["east"]
    view.look(grid.time_ms)
    state, world, now = view.region(EAST), replace(view.world(), fresh=False), grid.now("east")
    assert decide_reservations(state, world, SETTINGS, now) == ()
    assert decide_offers(state, world, SETTINGS, now) == ()
    assert published_region(state, world, SETTINGS, now, ReplicaId("r")) is None


# -- regions ---------------------------------------------------------------------------


def capacity(grid: Grid, region: RegionId, largest_free: int, in_doubt: bool = False) -> None:
    record = RegionRecord(region, ReplicaId("r"), 1, 1, 8, 8, largest_free, largest_free, in_doubt, 0)
    grid.memory.put(KEYS.region(region), record)


def chosen(grid: Grid, **changes: object) -> RegionId | None:
    view = grid.leaders["global"]
    view.look(grid.time_ms)
    migration = replace(grid.migrations("train")[-1], **changes)  # type: ignore[arg-type]
    spec = grid.job("train").spec
    return choose_region(spec, view.world(), migration, grid.settings.policy.placement)


def test_the_region_with_most_room_is_asked_first_and_those_that_refused_last() -> None:
    grid = waiting({"east": {"east-1": 4}, "west": {"west-1": 8}})
    assert chosen(grid) == WEST
    assert chosen(grid, refused=("west: full",)) == EAST
    assert chosen(grid, refused=("west: full", "east: full")) == WEST, "longest ago first"
    assert chosen(grid, wanted_region=EAST) == EAST
    assert chosen(grid, wanted_region=RegionId("north")) is None
    capacity(grid, WEST, 1)
    assert chosen(grid) == EAST
    capacity(grid, WEST, 8, in_doubt=True)
    assert chosen(grid) == EAST
    del grid.memory.items[KEYS.grant(EAST)]
    assert chosen(grid) is None


def test_a_displaced_job_prefers_the_other_region_and_a_crashed_one_its_own() -> None:
    grid = waiting({"east": {"east-1": 4}, "west": {"west-1": 8}})
    source = {"kind": MigrationKind.RECOVERY, "source_region": WEST, "state": MigrationState.SOURCE_FENCED}
    assert chosen(grid, **source, drain="d") == EAST
    assert chosen(grid, **source) == EAST, "silence: the node is to blame"
    key = KEYS.job(JobId("train"))
    grid.memory.put(key, replace(grid.job("train"), spec=spec_of("train", prefer_other_region=False)))
    assert chosen(grid, **source, drain="d") == WEST


def test_capacity_is_published_on_change_only_and_counts_what_is_out() -> None:
    grid = Grid({"east": {"east-1": 4, "east-2": 2}})
    grid.lead("east")
    record = grid.memory.record(KEYS.region(EAST))
    assert (record.devices, record.usable, record.free, record.largest_free) == (6, 6, 6, 4)
    grid.advance(1_000)
    grid.leaders["east"].look(grid.time_ms)
    assert not [d for d in grid.decisions("east") if d.step == "region.publish"]
    grid.set_health(GPU0, HealthState.SUSPECT)
    grid.set_health(DeviceId("east-1/gpu1"), HealthState.DRAINED)
    grid.lead("east")
    record = grid.memory.record(KEYS.region(EAST))
    assert (record.devices, record.usable, record.free, record.largest_free) == (6, 5, 4, 2)
    assert not record.in_doubt


def test_a_region_that_hears_too_few_of_its_nodes_says_so() -> None:
    grid = Grid({"east": {"east-1": 1, "east-2": 1, "east-3": 1}})
    for node in ("east-1", "east-2"):
        grid.memory.put(KEYS_EAST.session(NodeId(node)), SessionRecord(NodeId(node), ReplicaId("r"), "s", False, 0))
    grid.lead("east")
    assert grid.memory.record(KEYS.region(EAST)).in_doubt


def test_doubt_is_one_rule_for_judging_nodes_and_for_choosing_regions() -> None:
    """29 of 100 are not more than 0.29 of them, whatever floating point says."""
    silent = [f"n{number}" for number in range(29)]
    nodes = {f"n{number}": 1 for number in range(100)}
    grid = Grid({"east": nodes}, Settings(SETTINGS.timings, Policy(freeze_fraction=0.29)))
    for node in silent:
        grid.memory.put(KEYS_EAST.session(NodeId(node)), SessionRecord(NodeId(node), ReplicaId("r"), "s", False, 0))
    grid.lead("east")
    assert not grid.memory.record(KEYS.region(EAST)).in_doubt
    assert not in_doubt(grid.leaders["east"].region(EAST), grid.settings)
