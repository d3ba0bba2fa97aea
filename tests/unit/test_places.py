"""Protects placement within a region: filters decide before scores, nothing is given twice, and every process finds the
same place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from failover.domain.domains import NEARNESS, domain_of, incident_points
from failover.domain.holders import Holders, Room
from failover.domain.leftout import nodes_left_out
from failover.domain.places import Found, NoRoom, Request, place
from failover.domain.scoring import FULL
from gridkeeper.decision import Now, Versioned
from gridkeeper.ids import DeviceId, DrainId, FindingId, IncidentId, JobId, NodeId, RegionId, Revision
from gridkeeper.policy.model import PlacementWeights
from gridkeeper.records.common import Label, Severity
from gridkeeper.records.faults import IncidentRecord, IncidentState
from gridkeeper.records.fleet import DeviceRecord, NodeRecord
from gridkeeper.snapshot import RegionState

R = TypeVar("R")
EAST, TRAIN = RegionId("east"), JobId("train")
DAY_MS = 24 * 3_600_000
NOW = Now(mono_ms=10 * DAY_MS, ledger_ms=100 * DAY_MS)


@dataclass
class Fleet:
    """Nodes ``n00``, ``n01``, … of ``size`` devices each."""

    racks: list[str]
    size: int = 4
    links: dict[int, str] = field(default_factory=dict)  # NVLink domains
    models: dict[int, str] = field(default_factory=dict)
    bad: set[int] = field(default_factory=set)  # devices, counted through, that may take no work
    held: dict[int, str] = field(default_factory=dict)
    sick: dict[int, int] = field(default_factory=dict)  # node -> incidents, seen so many ms ago

    def node(self, number: int) -> NodeId:
        return NodeId(f"n{number:02d}")

    def devices(self, number: int) -> tuple[DeviceId, ...]:
        return tuple(DeviceId(f"{self.node(number)}/gpu{slot}") for slot in range(self.size))

    def all(self) -> Iterator[tuple[int, DeviceId]]:
        return enumerate(device for number in range(len(self.racks)) for device in self.devices(number))

    def state(self) -> RegionState:
        nodes, devices, incidents = {}, {}, {}
        for number, rack in enumerate(self.racks):
            name, mine = self.node(number), self.devices(number)
            labels = (Label("nvlink-domain", self.links[number]),) if number in self.links else ()
            nodes[name] = _held(NodeRecord(name, EAST, rack, labels, "b", "1", (), mine, 0))
            for device in mine:
                model = self.models.get(number, "H100")
                slot = device.partition("/")[2]
                devices[device] = _held(
                    DeviceRecord(device, name, slot, "u", "nvidia", model, "", "", "", 0, "", rack, EAST, True)
                )
            if number in self.sick:
                seen = NOW.ledger_ms - self.sick[number]
                incidents[f"i{number}"] = _held(
                    IncidentRecord(
                        IncidentId(f"i{number}"), EAST, mine[0], "memory", IncidentState.RESOLVED, Severity.FATAL, "",
                        seen, seen, seen, 1, (FindingId("f"),), DrainId(""), "", seen, "", "",
                    )
                )  # fmt: skip
        return RegionState(EAST, nodes=nodes, devices=devices, incidents=incidents)

    def room(self, state: RegionState) -> tuple[Room, Holders]:
        holders = Holders()
        for index, device in self.all():
            if index in self.held:
                holders.add(JobId(self.held[index]), (device,), 0)
        room = Room({}, holders)
        for number in range(len(self.racks)):
            good = [d for i, d in self.all() if i // self.size == number and i not in self.bad]
            room.put(self.node(number), good, self.size)
        room.rate(incident_points(state, DAY_MS, NOW))
        return room, holders

    def place(self, request: Request, weights: PlacementWeights | None = None) -> Found | NoRoom:
        state = self.state()
        return place(state, request, *self.room(state), weights or PlacementWeights())


def _held(record: R) -> Versioned[R]:
    return Versioned(record, Revision(1), Revision(1), 0)


def nodes_of(found: Found | NoRoom) -> list[str]:
    assert isinstance(found, Found), found
    return [p.node for p in found.places]


# -- what counts -------------------------------------------------------------------------------------------------------


def test_a_node_with_good_devices_only_is_taken_before_one_with_a_bad_one() -> None:
    fleet = Fleet(["r1"] * 2, bad={0})
    found = fleet.place(Request(TRAIN, 3))
    assert nodes_of(found) == ["n01"]
    assert isinstance(found, Found)
    assert [c.name for c in found.considered] == ["n01", "n00"]
    assert found.considered[1].scores == "health 750×60, incidents 1000×60, packing 1000×20"
    assert nodes_of(fleet.place(Request(TRAIN, 3), PlacementWeights(health=0))) == ["n00"], "the gap fits exactly"


def test_incidents_count_against_their_node_and_a_share_of_them_against_the_rack_while_they_are_recent() -> None:
    assert nodes_of(Fleet(["r1", "r1"], sick={0: 0}).place(Request(TRAIN, 1))) == ["n01"]
    racks = ["r1"] * 4 + ["r2"] * 4
    assert nodes_of(Fleet(racks, sick={1: 0}).place(Request(TRAIN, 1))) == ["n04"], "n00 shares a rack with n01"
    assert nodes_of(Fleet(racks, sick={1: DAY_MS + 60_000}).place(Request(TRAIN, 1))) == ["n00"], "long ago"
    large = incident_points(Fleet(["r1"] * 40, sick={1: 0}).state(), DAY_MS, NOW)
    assert set(large) == {"n01"}, "one node of a large rack says nothing about the others"


def test_the_node_that_is_to_be_left_comes_last_however_good_it_is() -> None:
    fleet = Fleet(["r1"] * 2, sick={1: 0}, bad={4})
    assert nodes_of(fleet.place(Request(TRAIN, 3, last=frozenset({NodeId("n00")})))) == ["n01"]
    assert nodes_of(fleet.place(Request(TRAIN, 4, last=frozenset({NodeId("n00")})))) == ["n00"]


def test_a_gang_stays_in_one_nvlink_domain_else_in_one_rack() -> None:
    racks = ["r1", "r2", "r2", "r1", "r1"]
    assert nodes_of(Fleet(racks).place(Request(TRAIN, 4, members=3))) == ["n00", "n03", "n04"]
    linked = Fleet(racks, links={1: "a", 2: "a", 0: "b"})
    found = linked.place(Request(TRAIN, 4, members=2))
    assert nodes_of(found) == ["n01", "n02"]
    assert isinstance(found, Found)
    assert found.considered[0].name == "nvlink a" and "topology 1000×80" in found.considered[0].scores
    assert [c.name for c in found.considered] == ["nvlink a", "rack r1", "rack r2", "region east"]
    refused = linked.place(Request(TRAIN, 4, members=6))
    assert refused == NoRoom("east has not 6 nodes with 4 free healthy devices each (5 have)")


def test_a_member_is_replaced_near_those_that_stay_and_never_on_their_nodes() -> None:
    fleet = Fleet(["r1", "r2", "r2", "r1"], links={0: "a", 1: "b"})
    beside = Request(TRAIN, 2, beside=(NodeId("n02"),))
    assert nodes_of(fleet.place(beside)) == ["n01"]
    both = replace(beside, beside=(NodeId("n01"), NodeId("n02")))
    found = fleet.place(both)
    assert nodes_of(found) == ["n00"]
    assert isinstance(found, Found) and f"topology {NEARNESS['region']}×80" in found.considered[0].scores


def test_people_are_told_what_is_wrong_with_each_node_that_is_left_out() -> None:
    fleet = Fleet(["r1"] * 2, size=2, models={1: "A100"}, held={0: "other"})
    state = fleet.state()
    _, holders = fleet.room(state)
    told = nodes_left_out(state, Request(TRAIN, 2, model="H100"), holders)
    assert [c.name for c in told] == ["n00", "n01"]
    assert "0 of its 2 devices can be given" in told[0].refused, "nothing is known to be healthy in this state"


# -- for all fleets ----------------------------------------------------------------------------------------------------

NODES, SIZE = 6, 4
fleets = st.builds(
    Fleet,
    racks=st.lists(st.sampled_from(["r1", "r2", "r3"]), min_size=NODES, max_size=NODES),
    links=st.dictionaries(st.integers(0, NODES - 1), st.sampled_from("ab")),
    models=st.dictionaries(st.integers(0, NODES - 1), st.sampled_from(["H100", "A100"])),
    bad=st.sets(st.integers(0, NODES * SIZE - 1), max_size=8),
    held=st.dictionaries(st.integers(0, NODES * SIZE - 1), st.sampled_from(["train", "other"]), max_size=8),
    sick=st.dictionaries(st.integers(0, NODES - 1), st.sampled_from([0, DAY_MS - 60_000, 2 * DAY_MS]), max_size=3),
)
weights = st.builds(
    PlacementWeights,
    **{name: st.integers(0, 1_000) for name in ("health", "incidents", "packing", "topology")},
)
nodes = st.integers(0, NODES - 1).map(lambda n: NodeId(f"n{n:02d}"))
requests = st.builds(
    Request,
    job=st.just(TRAIN),
    devices=st.integers(1, SIZE),
    members=st.integers(1, 3),
    model=st.sampled_from(["", "H100", "B200"]),
    avoid=st.frozensets(st.tuples(nodes, st.integers(0, SIZE - 1)).map(lambda p: DeviceId(f"{p[0]}/gpu{p[1]}"))),
    last=st.frozensets(nodes, max_size=2),
    beside=st.lists(nodes, max_size=1).map(tuple),
)


def _free(fleet: Fleet, state: RegionState, request: Request, holders: Holders, number: int) -> list[DeviceId]:
    """By the rule as it is written down, without any index."""
    if fleet.node(number) in request.beside:
        return []
    return [
        device
        for index, device in fleet.all()
        if index // fleet.size == number
        and index not in fleet.bad
        and device not in request.avoid
        and not holders.others(device, request.job)
        and holders.by_device.get(device, {}).get(request.job) != 0
        and request.model in ("", state.devices[device].record.model)
    ]


@given(fleets, requests, weights)
def test_no_weight_brings_back_what_a_filter_leaves_out(
    fleet: Fleet, request: Request, weight: PlacementWeights
) -> None:
    """Protects: every device that is given passes every filter, each member has all of its own on a node of its own,
    and a request is refused only if too few nodes pass."""
    state = fleet.state()
    room, holders = fleet.room(state)
    fits = {fleet.node(n): _free(fleet, state, request, holders, n) for n in range(NODES)}
    able = [n for n in fits if len(fits[n]) >= request.devices]
    found = place(state, request, room, holders, weight)
    if isinstance(found, NoRoom):
        assert len(able) < request.members
        return
    assert len(found.places) == request.members == len({p.node for p in found.places})
    for given_place in found.places:
        assert len(given_place.devices) == request.devices == len(set(given_place.devices))
        assert set(given_place.devices) <= set(fits[given_place.node])
    if len(set(able) - request.last) >= request.members and request.members == 1:
        assert found.places[0].node not in request.last


@given(fleets, requests, weights, st.permutations(range(NODES)))
def test_the_same_place_is_found_whatever_happened_before(
    fleet: Fleet, request: Request, weight: PlacementWeights, order: list[int]
) -> None:
    """Protects: scoring is deterministic: nodes that came in another order, ratings that were others before, and
    devices that were given and came back change nothing."""
    state = fleet.state()
    expected = place(state, request, *fleet.room(state), weight)
    room, holders = fleet.room(state)
    points = incident_points(state, DAY_MS, NOW)
    room.rate({fleet.node(n): n * 100 for n in order[:3]})
    for number in order:
        mine = list(room.candidates.get(fleet.node(number), ()))
        passing = tuple(d for d in mine if not holders.by_device.get(d))
        holders.add(JobId("passing"), passing, 5)
        room.put(fleet.node(number), (), 0)
        room.put(fleet.node(number), mine, SIZE)
        holders.drop(JobId("passing"), passing)
    room.rate(dict(points))
    assert place(state, request, room, holders, weight) == expected


@given(fleets, weights, st.sampled_from(["", "H100"]), st.integers(1, SIZE))
def test_one_node_is_chosen_as_if_all_were_looked_at(
    fleet: Fleet, weight: PlacementWeights, model: str, need: int
) -> None:
    """Protects: the shelves only save work."""
    fleet = replace(fleet, held={i: j for i, j in fleet.held.items() if j != TRAIN})
    state = fleet.state()
    room, holders = fleet.room(state)
    request = Request(TRAIN, need, model=model)
    points = incident_points(state, DAY_MS, NOW)
    scored = []
    for number in range(NODES):
        free = _free(fleet, state, request, holders, number)
        if len(free) < need:
            continue
        name = fleet.node(number)
        good = sum(1 for i, _ in fleet.all() if i // SIZE == number and i not in fleet.bad)
        score = weight.health * (FULL * good // SIZE) + weight.incidents * points.get(name, FULL)
        scored.append((-score - weight.packing * (FULL * need // len(room.free(name))), name))
    found = place(state, request, room, holders, weight)
    assert [p.node for p in found.places] == [min(scored)[1]] if isinstance(found, Found) else not scored


@given(fleets, st.lists(st.tuples(st.integers(1, SIZE), st.integers(1, 3)), max_size=8), weights)
def test_no_device_is_given_to_two(fleet: Fleet, wanted: list[tuple[int, int]], weight: PlacementWeights) -> None:
    """Protects: what is given is held, and counted for nobody else, gangs included."""
    state = fleet.state()
    room, holders = fleet.room(state)
    given_away = {device for index, device in fleet.all() if index in fleet.held}
    for number, (need, members) in enumerate(wanted):
        job = JobId(f"job-{number}")
        found = place(state, Request(job, need, members), room, holders, weight)
        if isinstance(found, Found):
            mine = {device for p in found.places for device in p.devices}
            assert len(mine) == need * members
            assert not mine & given_away
            given_away |= mine
            for p in found.places:
                holders.add(job, p.devices, number + 1)


@given(fleets, st.integers(1, SIZE), st.integers(2, 3))
def test_a_gang_is_never_further_apart_than_it_must_be_where_only_nearness_counts(
    fleet: Fleet, need: int, members: int
) -> None:
    """Protects: topology is a criterion of the domain that the members really share."""
    state = fleet.state()
    room, holders = fleet.room(state)
    only = PlacementWeights(health=0, incidents=0, packing=0)
    request = Request(TRAIN, need, members)
    found = place(state, request, room, holders, only)
    able = [n for n in range(NODES) if len(_free(fleet, state, request, holders, n)) >= need]
    shared = [
        level
        for level in ("nvlink", "rack")
        for domain in {domain_of(state.nodes[fleet.node(n)].record, level) for n in able} - {""}
        if sum(domain_of(state.nodes[fleet.node(n)].record, level) == domain for n in able) >= members
    ]
    if isinstance(found, Found):
        best = shared[0] if shared else "region"
        assert found.considered[0].name.startswith(best)
        names = {domain_of(state.nodes[p.node].record, best) for p in found.places}
        assert len(names) == 1
    else:
        assert len(able) < members
