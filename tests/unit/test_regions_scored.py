"""Protects the choice of a region: who may not take a job takes none whatever its score, the rest is weighed as the
policy says, and what was considered is on record."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from controlplane.rpc.choices import choices
from failover.checkpoint.replicate import wanted_copies
from failover.domain.regions import barred_from, weigh_regions
from failover.domain.targets import Ask, Ready, Wait, seek_target
from gridkeeper.decision import Now, Versioned
from gridkeeper.ids import DeviceId, Epoch, JobId, MigrationId, NodeId, RegionId, ReplicaId, Revision
from gridkeeper.policy.model import PlacementPolicy, PlacementWeights, Policy, RegionTerms
from gridkeeper.records.jobs import GrantRecord, HeadRecord, JobSpec, MigrationRecord, OfferRecord, RegionRecord
from gridkeeper.snapshot import GlobalState, Settings
from tests.fixtures import records
from tests.unit.failover_world import SETTINGS, Grid, spec_of

EAST, WEST, NORTH = REGIONS = tuple(map(RegionId, ("east", "west", "north")))
TRAIN = JobId("train")
MOVE = replace(
    records.migration(), job=TRAIN, refused=(), wanted_region=RegionId(""), source_region=RegionId(""), regions=()
)


def held(record: object) -> Versioned[object]:
    return Versioned(record, Revision(1), Revision(1), 0)


def world(
    free: dict[RegionId, int], at: tuple[RegionId, ...] = REGIONS, doubtful: frozenset[RegionId] = frozenset()
) -> GlobalState:
    """Regions with so many free devices of 16 on one node each; the job's checkpoint is in ``at``."""
    regions = {
        r: RegionRecord(r, ReplicaId("r"), 1, 1, 16, 16, count, count, r in doubtful, 0) for r, count in free.items()
    }
    head = HeadRecord(TRAIN, 10, Epoch(1, 1), "d", 100, at, 0)
    return GlobalState(
        regions={r: held(record) for r, record in regions.items()},  # type: ignore[misc]
        grants={r: held(GrantRecord(r, 1, ReplicaId("r"), 0)) for r in free},  # type: ignore[misc]
        heads={TRAIN: held(head)},  # type: ignore[dict-item]
        jobs={TRAIN: held(replace(records.job(), spec=spec_of("train")))},  # type: ignore[dict-item]
    )


def order(state: GlobalState, policy: PlacementPolicy, spec: JobSpec | None = None) -> list[RegionId]:
    return [o.region for o in weigh_regions(spec or spec_of("train"), state, MOVE, policy) if not o.refused]


EVEN = dict.fromkeys(REGIONS, 8)


def test_the_cheaper_the_safer_and_the_one_with_the_checkpoint_comes_first() -> None:
    prices = PlacementPolicy(regions=(RegionTerms(EAST, 3.0), RegionTerms(WEST, 2.0), RegionTerms(NORTH, 2.5)))
    assert order(world(EVEN), prices) == [WEST, NORTH, EAST]
    risks = PlacementPolicy(regions=(RegionTerms(EAST, spot_risk=0.2), RegionTerms(WEST, spot_risk=0.1)))
    assert order(world(EVEN), risks) == [NORTH, WEST, EAST]
    assert order(world(EVEN, at=(EAST,)), prices)[0] == EAST, "a checkpoint weighs more than the price"
    heavy = replace(prices, weights=PlacementWeights(price=1_000))
    assert order(world(EVEN, at=(EAST,)), heavy)[0] == WEST


def test_an_unknown_price_counts_as_the_dearest() -> None:
    policy = PlacementPolicy(regions=(RegionTerms(WEST, 2.0), RegionTerms(NORTH, 3.0)))
    assert order(world(EVEN), policy) == [WEST, EAST, NORTH]


def test_neither_a_job_nor_its_checkpoints_leave_their_residency() -> None:
    policy = PlacementPolicy(regions=(RegionTerms(EAST, residency=("eu", "gdpr")), RegionTerms(WEST)))
    state, spec = world(EVEN, at=(EAST,)), spec_of("train", residency="eu")
    assert order(state, policy, spec) == [EAST]
    assert order(state, PlacementPolicy(), spec) == [], "what the policy does not list has no residency"
    job = replace(records.job(), spec=spec)
    state = replace(state, jobs={TRAIN: held(job)})  # type: ignore[dict-item]
    assert wanted_copies(state, WEST, policy) == ()
    assert [t.job for t in wanted_copies(replace(state, jobs=world(EVEN).jobs), WEST, policy)] == [TRAIN]


terms = st.builds(
    RegionTerms,
    st.just(EAST),
    st.floats(0, 100),
    st.floats(0, 1),
    st.lists(st.sampled_from(["eu", "us"]), max_size=2).map(tuple),
)
policies = st.builds(
    PlacementPolicy,
    st.builds(
        PlacementWeights,
        **{name: st.integers(0, 1_000) for name in ("checkpoint", "capacity", "price", "spot", "room")},
    ),
    st.tuples(terms, terms, terms).map(lambda t: tuple(replace(t[i], region=r) for i, r in enumerate(REGIONS))),
)


@given(
    policies,
    st.fixed_dictionaries({r: st.integers(0, 16) for r in REGIONS}),
    st.lists(st.sampled_from(REGIONS), unique=True).map(tuple),
    st.lists(st.sampled_from(REGIONS), unique=True).map(tuple),
    st.sampled_from(["", "eu"]),
    st.frozensets(st.sampled_from(REGIONS)),
    st.permutations(REGIONS),
)
def test_no_weight_brings_back_a_region_that_is_left_out(
    policy: PlacementPolicy,
    free: dict[RegionId, int],
    at: tuple[RegionId, ...],
    allowed: tuple[RegionId, ...],
    residency: str,
    doubtful: frozenset[RegionId],
    shuffled: list[RegionId],
) -> None:
    """Protects: exactly the regions that pass every filter are options, and in the same order whatever the order of the
    records."""
    spec, state = spec_of("train", regions=allowed, residency=residency), world(free, at, doubtful)
    options = weigh_regions(spec, state, MOVE, policy)
    fitting = {o.region for o in options if not o.refused}
    may = {r for r in REGIONS if not barred_from(spec, r, policy) and r not in doubtful and free[r] >= spec.devices}
    assert fitting == may
    assert {o.region for o in options} == set(REGIONS)
    assert all(0 <= mark.points <= 1000 for o in options for mark in o.marks)
    again = replace(state, regions={r: state.regions[r] for r in shuffled})
    assert weigh_regions(spec, again, MOVE, policy) == options


def answered(devices: int, spec: JobSpec, policy: PlacementPolicy) -> Ready | Ask | Wait:
    """Where the search stands once east has offered so many devices to a job that it was asked for."""
    gpus = tuple(DeviceId(f"n1/gpu{number}") for number in range(devices))
    asked = replace(MOVE, target_region=EAST, attempt=1)
    offer = OfferRecord(asked.id, 1, EAST, NodeId("n1"), gpus, "", 1)
    state = replace(world(EVEN), offers={asked.id: held(offer)})  # type: ignore[dict-item]
    settings = Settings(SETTINGS.timings, Policy(placement=policy))
    return seek_target(state, spec, held(asked), settings, Now(1, 1))  # type: ignore[arg-type]


def test_an_offer_of_a_region_that_may_not_have_the_job_any_more_is_not_taken() -> None:
    """Protects: residency. The first region is chosen as a move begins, maybe by a leader that has an older policy."""
    old = PlacementPolicy(regions=tuple(RegionTerms(r, residency=("eu",)) for r in (EAST, WEST)))
    new = PlacementPolicy(regions=(RegionTerms(WEST, residency=("eu",)),))
    spec = spec_of("train", residency="eu")
    assert isinstance(answered(2, spec, old), Ready)
    found = answered(2, spec, new)
    assert isinstance(found, Ask) and found.record.target_region == WEST and "residency eu" in found.sentence
    assert isinstance(answered(2, spec, PlacementPolicy()), Wait), "nowhere, then"


def test_an_offer_of_too_few_devices_counts_as_a_refusal() -> None:
    """Protects: a region whose version knows no gangs offers one member's devices; the job would start crippled."""
    gang = replace(spec_of("train"), nodes=2)
    assert isinstance(answered(4, gang, PlacementPolicy()), Ready)
    found = answered(2, gang, PlacementPolicy())
    assert isinstance(found, Ask) and found.record.target_region != EAST
    assert "it offers 2 of 4 devices" in found.sentence


def test_what_was_considered_is_on_record_and_explained() -> None:
    grid = Grid({"east": {"east-1": 2, "east-2": 3}, "west": {"west-1": 1}}, SETTINGS)
    grid.submit(spec_of("train"))
    grid.run(12)
    [move] = grid.migrations("train")
    assert [(c.name, bool(c.refused)) for c in move.regions] == [("east", False), ("west", True)]
    assert [c.name for c in move.places] == ["east-1", "east-2"]
    view = grid.leaders["east"]
    view.look(grid.time_ms)
    settings = Settings(SETTINGS.timings, Policy())
    links = list(choices([move.id], view.region(EAST), view.world(), settings, grid.now("east")))
    said = [link.sentence for link in links]
    assert said[0].startswith("region east scores ") and "checkpoint 1000×100" in said[0]
    assert said[1] == "region west is left out: no node there has 2 free devices"
    assert said[2].startswith("node east-1 scores ") and "packing 1000×20" in said[2]


def test_what_a_job_waits_for_is_explained_as_it_is_now() -> None:
    grid = Grid({"east": {"east-1": 2}}, SETTINGS)
    for name in ("holder", "train"):
        grid.submit(spec_of(name))
    grid.run(12)
    [move] = grid.migrations("train")
    view = grid.leaders["east"]
    view.look(grid.time_ms)
    asked: MigrationRecord = replace(move, target_region=EAST)
    state = replace(view.world(), migrations={move.id: held(asked)})  # type: ignore[dict-item]
    links = list(choices([MigrationId(move.id)], view.region(EAST), state, grid.settings, Now(grid.time_ms, 0)))
    assert any("0 of its 2 devices can be given: 2 held by holder" in link.sentence for link in links)
